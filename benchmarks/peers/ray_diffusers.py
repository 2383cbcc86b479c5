"""diffusers under Ray Serve, with ``@serve.batch``."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.student import draw, load, parser


@serve.deployment
class Student:
    """One replica; its batches are collected by ``@serve.batch``."""

    def __init__(self, student: str, bf16: bool, batch: int, wait: float) -> None:
        """Load the pipeline, in the replica."""
        self.pipeline, self.bf16 = load(student), bf16
        self.draw.set_max_batch_size(batch)
        self.draw.set_batch_wait_timeout_s(wait)

    @serve.batch  # type: ignore[untyped-decorator]
    async def draw(self, requests: list[tuple[str, int]]) -> list[str]:
        """Draw a batch."""
        prompts, seeds = zip(*requests, strict=True)
        return draw(self.pipeline, list(prompts), list(seeds), self.bf16)

    async def __call__(self, http: Request) -> dict[str, Any]:
        """Take OpenAI's request, answer in its form."""
        request = await http.json()
        picture = await self.draw((request["prompt"], request["seed"]))
        return {"data": [{"b64_json": picture}]}


def main() -> None:
    """Serve until stopped."""
    arguments = parser().parse_args()
    cores = len(os.sched_getaffinity(0))
    # A cluster of its own, whatever else runs or was left behind.
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    # Ray gives a replica as many threads as it has cores.
    deployment: Any = Student
    deployment = deployment.options(
        num_replicas=arguments.workers,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": max(1, cores // arguments.workers)},
    )
    app = deployment.bind(arguments.student, arguments.bf16, arguments.batch, arguments.wait)
    serve.run(app, route_prefix="/v1/images/generations", blocking=True)


if __name__ == "__main__":
    main()
