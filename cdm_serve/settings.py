"""Every setting of the server: a flag, else of the environment, else of a TOML file, else this."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

PREFIX = "CDM_SERVE_"


@dataclass(frozen=True)
class Flag:
    """A setting in ``cdm-serve --help``: its group, what its value is called, and its line."""

    group: str
    value: str
    text: str


Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """What ``cdm-serve`` is told. A field without ``Flag`` cannot be given as one.

    Raises:
        ValidationError: a value is not what it must be.
        OSError, TOMLDecodeError, UnicodeDecodeError: of the file ``config``.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: Annotated[str, Flag("listen", "ADDRESS", "address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0), Flag("listen", "N", "port to listen on")] = 8000
    public_url: Annotated[
        str | None, Flag("listen", "URL", "this server's address in links to pictures")
    ] = None
    open: Annotated[bool, Flag("listen", "", "open the playground, where there is a screen")] = (
        False
    )

    model_repository: Annotated[Path, Flag("models", "FOLDER", "what cdm-export wrote")] = Path(
        "model_repository"
    )
    triton: Annotated[
        str | None,
        Flag("models", "HOST:PORT", "a running Triton (gRPC) to use, or several, with commas"),
    ] = None
    triton_log: Annotated[
        Path | None, Flag("models", "FILE", "keep what the bundled Triton prints")
    ] = None
    warm_up_seconds: Annotated[
        float | None,
        Field(gt=0),
        Flag("models", "SECONDS", "to measure each graph and size; else as config.pbtxt says"),
    ] = None

    api_keys: Annotated[str | None, Field(repr=False)] = None  # a flag is seen by everyone
    api_key_file: Annotated[
        Path | None, Flag("keys and limits", "FILE", "one key a line; or CDM_SERVE_API_KEYS")
    ] = None
    without_keys: Annotated[
        bool, Flag("keys and limits", "", "let in everyone who reaches an address beyond here")
    ] = False
    requests_per_minute: Annotated[
        int | None, Field(gt=0), Flag("keys and limits", "N", "of one key")
    ] = None
    images_per_minute: Annotated[
        int | None, Field(gt=0), Flag("keys and limits", "N", "of one key")
    ] = None
    body_limit: Annotated[Count, Flag("keys and limits", "BYTES", "largest request body")] = 65536
    prompt_limit: Annotated[Count, Flag("keys and limits", "CHARACTERS", "longest prompt")] = 4000
    queue_seconds: Annotated[
        Seconds, Flag("keys and limits", "SECONDS", "most work that may wait, else 429")
    ] = 10.0
    url_bytes: Annotated[
        Count, Flag("keys and limits", "BYTES", "memory for pictures behind links")
    ] = 256 * 2**20
    url_seconds: Annotated[Seconds, Flag("keys and limits", "SECONDS", "how long links last")] = (
        3600.0
    )

    ray: Annotated[
        bool, Flag("cluster", "", "on the Ray cluster at RAY_ADDRESS, else one of this machine")
    ] = False
    engines: Annotated[Count, Flag("cluster", "N", "most engines, each with its Triton")] = 8
    engines_least: Annotated[Count, Flag("cluster", "N", "kept without any requests")] = 1
    engine_requests: Annotated[Count, Flag("cluster", "N", "most at once to an engine")] = 32
    engine_cpus: Annotated[
        float, Field(gt=0), Flag("cluster", "CPUS", "that Ray keeps for an engine")
    ] = 1.0
    engine_gpus: Annotated[
        float, Field(ge=0), Flag("cluster", "GPUS", "that Ray keeps for an engine")
    ] = 0.0

    embed_prompt: Annotated[
        bool, Flag("pictures", "", "write the prompt into the file, beside seed, steps and model")
    ] = False

    start_seconds: Annotated[
        Seconds, Flag("life", "SECONDS", "how long Triton may take to load")
    ] = 600.0
    drain_seconds: Annotated[
        Seconds, Flag("life", "SECONDS", "how long work in flight may take at the end")
    ] = 30.0
    retry_seconds: Annotated[
        Seconds, Flag("life", "SECONDS", "how long a request waits for a restart")
    ] = 30.0
    heartbeat_seconds: Annotated[
        Seconds, Flag("life", "SECONDS", "between two signs of life of a model")
    ] = 2.0
    heartbeat_timeout: Annotated[
        Seconds, Flag("life", "SECONDS", "without a sign so long, Triton restarts")
    ] = 10.0

    log: Annotated[
        Literal["text", "json"],
        Flag("observe", "text|json", "what matters; or every request, a line each"),
    ] = "text"
    traces: Annotated[
        bool, Flag("observe", "", "send OpenTelemetry traces, as OTEL_* variables say")
    ] = False

    config: Annotated[Path | None, Flag("other", "FILE", "TOML file with settings")] = None

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """To Python true is the number 1; to those who write settings it is not."""
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("it must be a number or text")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """In the order of precedence."""
        file = (env_settings() | init_settings()).get("config")
        if file is None:
            return init_settings, env_settings
        # Resolved, since one that is missing would be passed over.
        toml = TomlConfigSettingsSource(settings_cls, Path(file).resolve(strict=True))
        return init_settings, env_settings, toml
