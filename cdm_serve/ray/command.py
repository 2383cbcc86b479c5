"""``cdm-serve --ray``: join or start a cluster, deploy, wait for a signal, take down."""

import logging
import os
import signal
import threading

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from rich.console import Console

import cdm_serve
from cdm_serve.api.auth import Keys
from cdm_serve.errors import StartError
from cdm_serve.ray.application import build
from cdm_serve.settings import Settings

logger = logging.getLogger(__name__)

NAME = "cdm-serve"


def serve_on_ray(settings: Settings, keys: Keys, console: Console) -> None:
    """Serve until SIGINT or SIGTERM; a cluster that was there before stays.

    Raises:
        StartError: there is no such cluster, or no engine came up.
    """
    application = build(settings, keys)
    address = os.environ.get("RAY_ADDRESS")
    console.print(f"[bold]cdm-serve[/] {cdm_serve.__version__}: starting engines on Ray ...")
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise StartError(
            f"no Ray cluster at {address} that lets us in: start one with `ray start --head`, set "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN as it has them, or unset RAY_ADDRESS for one on this "
            "machine"
        ) from error
    try:
        try:
            serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=HTTPOptions(host=settings.host, port=settings.port),
            )
            serve.run(application, name=NAME, route_prefix="/")
        except (RayError, RuntimeError) as error:
            raise StartError(f"the server did not come up on Ray: {error}") from error
        # Only now, since Ray has put its own in place.
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        url = f"http://{settings.host}:{settings.port}"
        console.print(f"  [bold]{url}[/]  up to {settings.engines} engines; Ctrl-C stops")
        logger.info("ready", extra={"url": url})
        stop.wait()
        console.print("stopping: finishing what is in flight ...")
    finally:
        serve.shutdown()
        ray.shutdown()
    console.print("stopped")
