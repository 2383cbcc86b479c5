"""The application: routes, error handling, edge."""

import time
from concurrent.futures import Executor
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.types import ASGIApp

import cdm_serve
from cdm_serve.api.edge import Edge
from cdm_serve.api.errors import install_handlers
from cdm_serve.api.files import FileStore, files_router
from cdm_serve.api.health import health_router
from cdm_serve.api.images import images_router
from cdm_serve.api.keys import Keys
from cdm_serve.api.limits import Limits
from cdm_serve.api.models import models_router
from cdm_serve.api.studio import Studio
from cdm_serve.settings import Settings
from cdm_serve.triton.supervisor import Supervisor


def create_app(
    settings: Settings, keys: Keys, supervisor: Supervisor, executor: Executor
) -> ASGIApp:
    """The gateway in front of the supervisor's Triton."""
    # FastAPI's own documentation pages load scripts from elsewhere; the schema is served.
    app = FastAPI(title="cdm-serve", version=cdm_serve.__version__, docs_url=None, redoc_url=None)
    install_handlers(app)
    store = FileStore(settings.url_bytes, settings.url_seconds)
    studio = Studio(supervisor, executor)
    limits = Limits(settings.requests_per_minute, settings.images_per_minute)
    app.include_router(images_router(settings, supervisor, limits, studio, store))
    app.include_router(files_router(store))
    app.include_router(models_router(supervisor, created=int(time.time())))
    app.include_router(health_router(supervisor))
    page = files("cdm_serve").joinpath("playground.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page)

    return Edge(app, keys, settings.body_limit)
