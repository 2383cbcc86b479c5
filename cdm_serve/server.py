"""The life of the server: Triton up, HTTP up, a signal, HTTP drained, Triton down."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import webbrowser
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from rich.console import Console
from starlette.types import ASGIApp

import cdm_serve
from cdm_serve.api.app import create_app
from cdm_serve.api.auth import Keys
from cdm_serve.errors import StartError
from cdm_serve.settings import Settings
from cdm_serve.triton.devices import Devices
from cdm_serve.triton.supervisor import Supervisor
from cdm_serve.triton.wheel import TritonWheel

logger = logging.getLogger(__name__)

ENCODERS = 2
# Longer than balancers and clients keep idle connections, commonly 60 s: if the server is the first
# to close one, a request that is sent at that moment is lost.
KEEP_ALIVE_SECONDS = 75


class HttpServer(uvicorn.Server):
    """uvicorn, leaving the signals to ``serve``, which has Triton to stop as well."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def serve(
    settings: Settings,
    keys: Keys,
    wheel: TritonWheel | None,
    listener: socket.socket,
    console: Console,
) -> None:
    """Serve on a bound socket until SIGINT or SIGTERM.

    Raises:
        StartError: Triton did not come up.
    """
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled.set)
    supervisor = _supervisor(settings, wheel)
    where = "the bundled Triton" if wheel else f"Triton at {settings.triton}"
    console.print(f"[bold]cdm-serve[/] {cdm_serve.__version__}: starting {where} ...")
    logger.info("starting", extra={"version": cdm_serve.__version__, "triton": where})
    with ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode") as executor:
        http = HttpServer(_http_config(settings, create_app(settings, keys, supervisor, executor)))
        # HTTP is up from the first moment, so that /readyz can say "not yet".
        serving = asyncio.create_task(http.serve([listener]))
        starting = asyncio.create_task(supervisor.start())
        stopping = asyncio.create_task(signalled.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                _greet(settings, supervisor, console)
                if settings.open and _has_screen():
                    webbrowser.open(_url(settings))
                await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
                console.print("stopping: finishing what is in flight ...")
                logger.info("stopping")
        finally:
            # Requests in flight are finished, new connections are refused.
            http.should_exit = True
            await serving
            stopping.cancel()
            starting.cancel()
            await asyncio.wait([starting])
            await supervisor.stop()
    console.print("stopped")
    logger.info("stopped")


def check_devices(settings: Settings) -> list[str]:
    """The GPUs to use, if they are named.

    Raises:
        StartError: it is not for this server to say.
    """
    if settings.devices is None:
        return []
    if settings.triton or settings.ray:
        raise StartError(
            "--devices is for the bundled Triton: leave it out, and give each Triton, or each "
            "engine by --engine-gpus, its GPU"
        )
    return [device.strip() for device in settings.devices.split(",")]


def _supervisor(settings: Settings, wheel: TritonWheel | None) -> Supervisor | Devices:
    devices = check_devices(settings)
    if not devices:
        return Supervisor(settings, wheel)
    return Devices([Supervisor(settings, wheel, device) for device in devices])


def _http_config(settings: Settings, app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # the application looks at them
        server_header=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # uvicorn takes whole seconds.
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )


def _has_screen() -> bool:
    """Without one, ``webbrowser`` would take over the terminal with a text browser."""
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def _greet(settings: Settings, supervisor: Supervisor | Devices, console: Console) -> None:
    for card in supervisor.models.values():
        console.print(
            f"  [green]ready[/] [bold]{card.id}[/] {', '.join(card.sizes)}, "
            f"{card.default_steps} steps, {card.fingerprint[:12]}"
        )
    url = _url(settings)
    logger.info("ready", extra={"url": url, "models": list(supervisor.models)})
    console.print(f"  [bold]{url}[/]  playground, API and /v1/models; Ctrl-C stops")
    console.print(
        f"  curl {url}/v1/images/generations -H 'content-type: application/json' "
        """-H 'accept: image/png' -d '{"prompt": "a fox in the snow", "seed": 7}' -o fox.png""",
        soft_wrap=True,
        markup=False,
    )


def listen(settings: Settings) -> socket.socket:
    """Take the port before the slow part, so that a taken one is known at once.

    Raises:
        StartError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio turns off Nagle's algorithm, which holds answers for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port} ({reason}): "
            "choose another port with --port, or stop what uses it"
        ) from error
    return listener
