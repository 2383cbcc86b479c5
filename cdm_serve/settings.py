"""Every setting of the server, with its default; the command line is made from this."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _setting(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class Settings:
    """What ``cdm-serve`` is told."""

    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8000, "port to listen on")
    model_repository: Path = _setting(Path("model_repository"), "folder that cdm-export wrote")
    triton: str | None = _setting(None, "HOST:PORT of a running Triton's gRPC, not the bundled one")
    triton_log: Path | None = _setting(None, "keep what the bundled Triton prints in this file")
    open: bool = _setting(False, "open the playground in a browser when ready")
    body_limit: int = _setting(65536, "largest request body in bytes")
    prompt_limit: int = _setting(4000, "longest prompt in characters")
    start_seconds: float = _setting(600.0, "how long Triton may take to load the models")
    drain_seconds: float = _setting(30.0, "how long requests in flight may take after Ctrl-C")
    heartbeat_seconds: float = _setting(2.0, "how often each model is asked whether it is alive")
    heartbeat_timeout: float = _setting(10.0, "after how long without an answer Triton restarts")
