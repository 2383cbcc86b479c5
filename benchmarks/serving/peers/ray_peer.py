"""diffusers under Ray Serve, with ``@serve.batch``."""

import argparse
import os
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request as HttpRequest

from benchmarks.serving.peers.common import Contract, Request, answer, draw, load, parser


@serve.deployment
class Student:
    """One replica; its batches are collected by ``@serve.batch``."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Load the pipeline, in the replica."""
        self.pipeline, self.contract = load(arguments.student), Contract(arguments.student)
        self.bf16 = arguments.bf16
        self.draw.set_max_batch_size(arguments.batch)
        self.draw.set_batch_wait_timeout_s(arguments.wait)

    @serve.batch  # type: ignore[untyped-decorator]
    async def draw(self, requests: list[Request]) -> list[str]:
        """Draw a batch."""
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return draw(self.pipeline, self.contract, requests)

    async def __call__(self, http: HttpRequest) -> dict[str, Any]:
        """Take OpenAI's request, answer in its form."""
        return answer(await self.draw(Request(**await http.json())))


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
    serve.run(deployment.bind(arguments), route_prefix="/v1/images/generations", blocking=True)


if __name__ == "__main__":
    main()
