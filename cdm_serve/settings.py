"""Every setting of the server, with its default and its line in ``cdm-serve --help``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True)
class Settings:
    """What ``cdm-serve`` is told; the command line is made from these fields."""

    host: Annotated[str, "address to listen on"] = "127.0.0.1"
    port: Annotated[int, "port to listen on"] = 8000
    model_repository: Annotated[Path, "folder that cdm-export wrote"] = Path("model_repository")
    triton: Annotated[str | None, "HOST:PORT of a running Triton, gRPC, to use instead"] = None
    triton_log: Annotated[Path | None, "keep what the bundled Triton prints in this file"] = None
    open: Annotated[bool, "open the playground in a browser, where there is a screen"] = False
    body_limit: Annotated[int, "largest request body in bytes"] = 65536
    prompt_limit: Annotated[int, "longest prompt in characters"] = 4000
    public_url: Annotated[
        str | None, "address of this server in links, if not what clients use"
    ] = None
    url_bytes: Annotated[int, "memory for pictures behind links"] = 256 * 2**20
    url_seconds: Annotated[float, "how long links to pictures last"] = 3600.0
    start_seconds: Annotated[float, "how long Triton may take to load the models"] = 600.0
    drain_seconds: Annotated[float, "how long requests in flight may take after Ctrl-C"] = 30.0
    heartbeat_seconds: Annotated[float, "how often each model is asked for a sign of life"] = 2.0
    heartbeat_timeout: Annotated[float, "without an answer for this long Triton restarts"] = 10.0
