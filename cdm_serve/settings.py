"""Every setting of the server: a flag, else of the environment, else of a TOML file, else this."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, IPvAnyNetwork, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

PREFIX = "CDM_SERVE_"
LIMITS = "keys and limits"
REQUESTS = "requests"


def _flag(group: str, value: str, text: str, default: Any, **bounds: Any) -> Any:
    """A setting that is a flag too: its group in ``--help``, what its value is called, its line."""
    shown: dict[str, Any] = {"group": group, "value": value}
    return Field(default, description=text, json_schema_extra=shown, **bounds)


def _words(value: Any) -> Any:
    """Of a flag that is given several times, of a text with commas, or of a TOML array."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return value
    return [word.strip() for text in value for word in str(text).split(",") if word.strip()]


def _pairs(value: Any) -> Any:
    words = _words(value)
    if not isinstance(words, list):
        return words
    pairs = [word.partition("=") for word in words]
    if not all(name and model for name, _, model in pairs):
        raise ValueError("it must be NAME=MODEL")
    return {name.strip(): model.strip() for name, _, model in pairs}


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Networks = Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_words)]
Pairs = Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs)]


class Settings(BaseSettings):
    """What ``cdm-serve`` is told.

    Raises:
        ValidationError: a value is not what it must be.
        OSError, TOMLDecodeError, UnicodeDecodeError: of the file ``config``.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = _flag("listen", "ADDRESS", "address to listen on", "127.0.0.1")
    port: int = _flag("listen", "N", "port to listen on", 8000, ge=0)
    public_url: str | None = _flag("listen", "URL", "this server's, in links to pictures", None)
    root_path: str = _flag(
        "listen", "PATH", "that a proxy serves this below", "", pattern=r"^(/[A-Za-z0-9._~-]+)*$"
    )
    trusted_proxy: Networks = _flag(
        "listen", "NETWORK", "whose X-Forwarded-* hold, besides this machine", ()
    )
    allowed_host: Words = _flag("listen", "NAME", "to answer for, besides localhost", ())
    cors_origin: Words = _flag("listen", "ORIGIN", "whose pages may use this; * is any", ())
    open: bool = _flag("listen", "", "open the playground, where there is a screen", False)

    model_repository: Path = _flag(
        "models", "FOLDER", "what cdm-export wrote", Path("model_repository")
    )
    triton: str | None = _flag(
        "models", "HOST:PORT", "a running Triton (gRPC) to use, or several, with commas", None
    )
    devices: str | None = _flag(
        "models", "N,...", "GPUs to use, such as 0,1: a Triton on each", None
    )
    triton_log: Path | None = _flag("models", "FILE", "keep what the bundled Triton prints", None)
    warm_up_seconds: float | None = _flag(
        "models", "SECONDS", "to measure each graph and size; else as config.pbtxt says", None, gt=0
    )

    alias: Pairs = _flag(REQUESTS, "NAME=MODEL", "serve MODEL under NAME too; * is any name", {})
    size: Literal["nearest", "refuse"] = _flag(
        REQUESTS, "nearest|refuse", "for a size that is not served", "nearest"
    )
    response_format: Literal["b64_json", "url"] | None = _flag(
        REQUESTS, "FORM", "b64_json or url, where a request says neither", None
    )
    decoder: Literal["full", "tiny"] = _flag(
        REQUESTS, "full|tiny", "for pictures, of models that have both; previews are quick", "full"
    )
    strict: bool = _flag(
        REQUESTS, "", "refuse what cannot be done to the letter, instead of warning", False
    )

    api_keys: str | None = Field(None, repr=False)  # no flag: everyone on a machine sees flags
    api_key_file: Path | None = _flag(LIMITS, "FILE", "one key a line; or CDM_SERVE_API_KEYS", None)
    without_keys: bool = _flag(LIMITS, "", "let in everyone who reaches the address", False)
    requests_per_minute: int | None = _flag(LIMITS, "N", "of one key", None, gt=0)
    images_per_minute: int | None = _flag(LIMITS, "N", "of one key", None, gt=0)
    redis: str | None = _flag(
        LIMITS, "URL", "where gateways count these together; else each by itself", None
    )
    body_limit: int = _flag(LIMITS, "BYTES", "largest request body", 65536, gt=0)
    upload_limit: int = _flag(LIMITS, "BYTES", "largest request with pictures", 32 * 2**20, gt=0)
    prompt_limit: int = _flag(LIMITS, "CHARACTERS", "longest prompt", 4000, gt=0)
    queue_seconds: float = _flag(LIMITS, "SECONDS", "most work that may wait, else 429", 10.0, gt=0)
    max_pixels: int | None = _flag(
        LIMITS, "N", "of any size that a model divides; else only its own sizes", None, gt=0
    )
    url_bytes: int = _flag(LIMITS, "BYTES", "most of pictures behind links", 256 * 2**20, gt=0)
    url_seconds: float = _flag(LIMITS, "SECONDS", "how long links last", 3600.0, gt=0)
    link_folder: Path | None = _flag(
        LIMITS, "FOLDER", "keep them there, for all gateways that share it; else in memory", None
    )
    moderation: str | None = _flag(
        LIMITS, "URL", "that is asked about each prompt, as OpenAI's is", None, pattern="^https?://"
    )
    moderation_key: str | None = Field(None, repr=False)  # no flag, as above

    ray: bool = _flag(
        "cluster", "", "on the Ray cluster at RAY_ADDRESS, else one of this machine", False
    )
    engines: int = _flag("cluster", "N", "most engines, each with its Triton", 8, gt=0)
    engines_least: int = _flag("cluster", "N", "kept without any requests", 1, gt=0)
    engine_requests: int = _flag("cluster", "N", "most at once to an engine", 32, gt=0)
    engine_cpus: float = _flag("cluster", "CPUS", "that Ray keeps for an engine", 1.0, gt=0)
    engine_gpus: float = _flag("cluster", "GPUS", "that Ray keeps for an engine", 0.0, ge=0)

    embed_prompt: bool = _flag(
        "pictures", "", "write the prompt into the file, beside seed, steps and model", False
    )
    provenance: bool = _flag(
        "pictures", "", "write into the file, in IPTC's terms, that a model made it", False
    )
    c2pa_certificate: Path | None = _flag(
        "pictures", "FILE", "PEM, with which each picture's origin is signed into its file", None
    )
    c2pa_key: Path | None = _flag("pictures", "FILE", "PEM, of that certificate", None)
    on_picture: str | None = _flag(
        "pictures", "MODULE:FUNCTION", "of yours, that checks or changes each picture", None
    )

    start_seconds: float = _flag("life", "SECONDS", "that Triton may take to load", 600.0, gt=0)
    drain_seconds: float = _flag(
        "life", "SECONDS", "that work in flight may take at the end", 30.0, gt=0
    )
    retry_seconds: float = _flag("life", "SECONDS", "that a request waits for restarts", 30.0, gt=0)
    heartbeat_seconds: float = _flag(
        "life", "SECONDS", "between two signs of life of a model", 2.0, gt=0
    )
    heartbeat_timeout: float = _flag(
        "life", "SECONDS", "without a sign, until Triton is restarted", 10.0, gt=0
    )

    log: Literal["text", "json"] = _flag(
        "observe", "text|json", "what matters; or every request, a line each", "text"
    )
    traces: bool = _flag("observe", "", "send OpenTelemetry traces, as OTEL_* variables say", False)

    config: Path | None = _flag("other", "FILE", "TOML file with settings", None)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """To Python true is the number 1; to those who write settings it is not."""
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("it must be a number or text")
        return value

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """No shell has read what stands in a file."""
        return (
            value.expanduser() if isinstance(value, Path) and value.parts[:1] == ("~",) else value
        )

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
