"""The application: routes, error handling, middleware."""

import time
from concurrent.futures import Executor
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import cdm_serve
from cdm_serve.api.admission import Admission
from cdm_serve.api.auth import Keys
from cdm_serve.api.edits import Edits
from cdm_serve.api.errors import install_handlers
from cdm_serve.api.files import MemoryStore, files_router
from cdm_serve.api.folder import FolderStore
from cdm_serve.api.generation import ImageGenerator
from cdm_serve.api.hook import load_hook
from cdm_serve.api.images import Images
from cdm_serve.api.jobs import Jobs
from cdm_serve.api.limits import RATED, RateLimits
from cdm_serve.api.metrics import Metrics
from cdm_serve.api.middleware import RequestMiddleware
from cdm_serve.api.models import models_router
from cdm_serve.api.moderation import Moderation
from cdm_serve.api.operations import State, operations_router
from cdm_serve.api.playground import playground_router
from cdm_serve.api.shared_limits import shared_buckets
from cdm_serve.api.signing import signatory_of
from cdm_serve.backend import Backend
from cdm_serve.settings import Settings

RATES = [f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in RATED]
# Of an answer to another origin, pages read only the headers that are named.
EXPOSED = [
    *("x-request-id", "location", "retry-after", "retry-after-ms", "x-should-retry"),
    *("x-seed", "x-steps", "x-receipt", "x-warnings", *RATES),
]


def create_app(settings: Settings, keys: Keys, backend: Backend, executor: Executor) -> ASGIApp:
    """The gateway in front of the backend."""
    # FastAPI's own /docs loads its scripts from elsewhere.
    app = FastAPIOffline(title="cdm-serve", version=cdm_serve.__version__, redoc_url=None)
    install_handlers(app)
    metrics = Metrics()
    admission = Admission(settings.queue_seconds)
    rates = settings.requests_per_minute, settings.images_per_minute
    limits = RateLimits(*rates, shared_buckets(settings.redis))
    bounds = settings.url_bytes, settings.url_seconds
    folder = settings.link_folder
    store = MemoryStore(*bounds) if folder is None else FolderStore(folder, *bounds)
    jobs = Jobs(store, settings.public_url)
    images = Images(
        settings=settings,
        backend=backend,
        limits=limits,
        admission=admission,
        generator=ImageGenerator(
            backend,
            executor,
            metrics,
            settings.retry_seconds,
            embed_prompt=settings.embed_prompt,
            provenance=settings.provenance,
            signatory=signatory_of(settings),
            hook=load_hook(settings.on_picture) if settings.on_picture else None,
        ),
        store=store,
        jobs=jobs,
        metrics=metrics,
        moderation=Moderation(settings, metrics),
    )
    app.include_router(images.router())
    app.include_router(jobs.router())
    app.include_router(Edits(images, executor).router())
    app.include_router(files_router(store))
    app.include_router(models_router(backend, int(time.time()), settings))
    app.include_router(operations_router(backend, metrics, State(backend, admission, store)))
    app.include_router(playground_router())
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    served = RequestMiddleware(app, settings, keys, limits, metrics)
    if not settings.cors_origin:
        return served
    # Outermost: a preflight comes without a key, and pages read refusals too.
    return CORSMiddleware(
        served,
        allow_origins=settings.cors_origin,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=EXPOSED,
    )


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document without FastAPI's 422, which this server never answers."""
    document = app.openapi_schema
    if document is None:
        document = FastAPI.openapi(app)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
    return document
