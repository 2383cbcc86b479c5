"""What Ray is told of the application, without a cluster. Warnings are errors here."""

import warnings

import pytest

pytest.importorskip("ray", reason="pip install 'cdm-serve[ray]'")

with warnings.catch_warnings(action="ignore"):  # Ray's own, of pydantic
    from cdm_serve.api.auth import read_keys
    from cdm_serve.ray.application import build
    from cdm_serve.settings import Settings


def test_ray_accepts_it(repository) -> None:
    settings = Settings(model_repository=repository, engines=3, engines_least=2)
    gateway = build(settings, read_keys(settings))
    engines = gateway._bound_deployment.init_args[2]._bound_deployment
    scaling = engines._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 3)
    assert scaling.target_ongoing_requests == settings.engine_requests / 2
    assert engines.ray_actor_options["num_cpus"] == settings.engine_cpus
