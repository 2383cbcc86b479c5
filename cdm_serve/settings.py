"""Every setting of the server: its group and line in ``cdm-serve --help``, and its default."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from cdm_serve.errors import StartError


@dataclass(frozen=True)
class Settings:
    """What ``cdm-serve`` is told; flags, environment and file are made from these fields."""

    host: Annotated[str, "listen", "address to listen on"] = "127.0.0.1"
    port: Annotated[int, "listen", "port to listen on"] = 8000
    public_url: Annotated[str | None, "listen", "this server's address in links to pictures"] = None
    open: Annotated[bool, "listen", "open the playground, where there is a screen"] = False

    model_repository: Annotated[Path, "models", "folder that cdm-export wrote"] = Path(
        "model_repository"
    )
    triton: Annotated[
        str | None, "models", "HOST:PORT of a running Triton (gRPC) to use, or several, with commas"
    ] = None
    triton_log: Annotated[Path | None, "models", "keep what the bundled Triton prints"] = None

    api_keys: Annotated[
        str | None, "keys and limits", "keys, with commas between; not as a flag"
    ] = field(default=None, repr=False)
    api_key_file: Annotated[Path | None, "keys and limits", "file with one key a line"] = None
    without_keys: Annotated[
        bool, "keys and limits", "let in everyone who reaches an address beyond this machine"
    ] = False
    requests_per_minute: Annotated[int | None, "keys and limits", "of one key"] = None
    images_per_minute: Annotated[int | None, "keys and limits", "of one key"] = None
    body_limit: Annotated[int, "keys and limits", "largest request body in bytes"] = 65536
    prompt_limit: Annotated[int, "keys and limits", "longest prompt in characters"] = 4000
    queue_seconds: Annotated[
        float, "keys and limits", "most work that may wait; beyond it requests are refused"
    ] = 10.0
    url_bytes: Annotated[int, "keys and limits", "memory for pictures behind links"] = 256 * 2**20
    url_seconds: Annotated[float, "keys and limits", "how long links last"] = 3600.0

    ray: Annotated[
        bool, "cluster", "deploy on the Ray cluster at RAY_ADDRESS, else on one of this machine"
    ] = False
    engines: Annotated[int, "cluster", "most engines, each with a Triton of its own"] = 8
    engines_least: Annotated[int, "cluster", "engines that are kept without any requests"] = 1
    engine_requests: Annotated[int, "cluster", "most requests that an engine has at once"] = 32
    engine_cpus: Annotated[float, "cluster", "CPUs that Ray keeps for an engine"] = 1.0
    engine_gpus: Annotated[float, "cluster", "GPUs that Ray keeps for an engine"] = 0.0

    start_seconds: Annotated[float, "life", "how long Triton may take to load"] = 600.0
    drain_seconds: Annotated[float, "life", "how long work in flight may take at the end"] = 30.0
    retry_seconds: Annotated[float, "life", "how long a request waits for a restart"] = 30.0
    heartbeat_seconds: Annotated[float, "life", "between two signs of life of a model"] = 2.0
    heartbeat_timeout: Annotated[float, "life", "without a sign this long, Triton restarts"] = 10.0

    log: Annotated[
        Literal["text", "json"], "watch", "text: what matters; json: every request, a line each"
    ] = "text"
    traces: Annotated[bool, "watch", "send OpenTelemetry traces, as OTEL_* variables say"] = False

    def __post_init__(self) -> None:
        """Raises StartError for a number that means nothing."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                # Any free port; no GPU.
                if setting.name in ("port", "engine_gpus") and value == 0:
                    continue
                raise StartError(f"{setting.name} is {value}: it must be more than 0")
