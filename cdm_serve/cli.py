"""``cdm-serve``: check, start Triton, serve, drain, leave nothing behind; or ``doctor``."""

import logging
import sys
from collections.abc import Sequence

import uvloop
from rich.console import Console
from rich.markup import escape

from cdm_serve.api.auth import Keys, read_keys
from cdm_serve.api.folder import check_folder
from cdm_serve.api.hook import load_hook
from cdm_serve.api.shared_limits import check_redis
from cdm_serve.api.signing import signatory_of
from cdm_serve.configuration import load_settings
from cdm_serve.errors import StartError
from cdm_serve.log import configure_logging
from cdm_serve.repository import check_repository
from cdm_serve.server import check_devices, listen, serve
from cdm_serve.settings import Settings
from cdm_serve.tracing import exporting
from cdm_serve.triton.wheel import TritonWheel, find_wheel

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after Ctrl-C or SIGTERM, 2 when the server cannot start; of ``doctor``, could not."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    examined = words[:1] == ["doctor"]
    try:
        settings = load_settings(words[examined:])
    except StartError as error:
        _complain(configure_logging("text"), error)
        return 2
    if examined:
        from cdm_serve.doctor import doctor

        return doctor(settings, Console())
    console = configure_logging(settings.log)
    try:
        check_devices(settings)
        keys = read_keys(settings)
        if settings.link_folder is not None:
            check_folder(settings.link_folder)
        if settings.on_picture is not None:
            load_hook(settings.on_picture)
        signatory_of(settings)
        if settings.redis is not None:
            check_redis(settings.redis)
        if settings.ray:
            _on_ray(settings, keys, console)
            return 0
        with listen(settings) as listener, exporting(settings.traces):
            uvloop.run(serve(settings, keys, _find_triton(settings), listener, console))
    except StartError as error:
        _complain(console, error)
        return 2
    return 0


def _on_ray(settings: Settings, keys: Keys, console: Console) -> None:
    try:
        from cdm_serve.ray.command import serve_on_ray
    except ModuleNotFoundError as error:
        raise StartError("Ray is not installed: run `pip install 'cdm-serve[cpu,ray]'`") from error
    serve_on_ray(settings, keys, console)


def _complain(console: Console, error: StartError) -> None:
    if console.quiet:
        logger.error("%s", error)
    else:
        console.print(f"[bold red]cdm-serve:[/] {escape(str(error))}", soft_wrap=True)


def _find_triton(settings: Settings) -> TritonWheel | None:
    if settings.triton is not None:
        return None
    check_repository(settings.model_repository)
    return find_wheel()


if __name__ == "__main__":
    sys.exit(main())
