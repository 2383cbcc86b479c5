"""Gateway and engines as an application of Ray Serve.

``cdm-serve --ray`` deploys it; so does ``serve run cdm_serve.ray.application:application`` and a
RayService of KubeRay, with the settings as arguments.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from cdm_serve.api.app import create_app
from cdm_serve.api.auth import Keys, read_keys
from cdm_serve.configuration import load_settings
from cdm_serve.log import configure_logging
from cdm_serve.ray.backend import RayBackend
from cdm_serve.ray.engine import Engine
from cdm_serve.repository import check_repository
from cdm_serve.settings import Settings

ENCODERS = 2
HEAD = {"node:__internal_head__": 0.001}


@serve.ingress()
class Gateway:
    """The application of ``cdm-serve`` on Ray's own HTTP server."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, settings: Settings, keys: Keys, engines: DeploymentHandle[Any]
    ) -> None:
        configure_logging(settings.log)
        self._settings = settings
        self._keys = keys
        self._backend = RayBackend(settings, engines)
        self._watcher = asyncio.create_task(self._backend.watch())
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray asks for it when the above is done."""
        return create_app(self._settings, self._keys, self._backend, self._encoders)


def application(arguments: dict[str, Any]) -> Application:
    """The settings come from the environment, and before that from ``arguments``.

    Raises:
        StartError: a setting is wrong, or there is no model.
    """
    settings = load_settings([], **arguments)
    return build(settings, read_keys(settings))


def build(settings: Settings, keys: Keys) -> Application:
    """One gateway, on the head of the cluster, and engines wherever there is room.

    Raises:
        StartError: there is no model.
    """
    check_repository(settings.model_repository)
    repository = settings.model_repository.resolve()
    settings = settings.model_copy(update={"model_repository": repository})
    engines = serve.deployment(
        Engine,
        name="engine",
        ray_actor_options={"num_cpus": settings.engine_cpus, "num_gpus": settings.engine_gpus},
        max_ongoing_requests=settings.engine_requests,
        max_queued_requests=settings.engines * settings.engine_requests,
        autoscaling_config={
            "min_replicas": settings.engines_least,
            "max_replicas": max(settings.engines, settings.engines_least),
            # Half full: the rest is room for what comes while another engine starts.
            "target_ongoing_requests": settings.engine_requests / 2,
            # More than the ten seconds between two reports of an engine.
            "look_back_period_s": 15,
            "upscale_delay_s": 3,
            "downscale_delay_s": 120,
        },
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    # It only waits and encodes. On the head, because that is where the clients' connections end:
    # any other machine may go without one of them noticing.
    gateway = serve.deployment(
        Gateway,
        name="gateway",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "resources": HEAD},
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    return gateway.bind(settings, keys, engines.bind(settings))
