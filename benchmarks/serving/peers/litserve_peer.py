"""diffusers, or with ``--openvino`` optimum-intel, under LitServe: requests become batches.

LitServe reads the type of a request from ``decode_request``, so annotations are no strings here.
"""

import argparse
import os
from typing import Any

import litserve
import torch

from benchmarks.serving.peers.common import Contract, Request, answer, draw, load, parser


class Student(litserve.LitAPI):  # type: ignore[misc]  # LitServe has no types
    """Decode, predict a batch, encode, as LitServe asks for it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Remember what ``setup`` needs in the worker's process."""
        super().__init__(
            api_path="/v1/images/generations",
            max_batch_size=arguments.batch,
            batch_timeout=arguments.wait,
        )
        self.arguments = arguments

    def setup(self, device: str) -> None:
        """Load the pipeline, in the worker."""
        arguments = self.arguments
        threads = max(1, len(os.sched_getaffinity(0)) // arguments.workers)
        torch.set_num_threads(threads)
        self.contract = Contract(arguments.student)
        if arguments.openvino is None:
            self.pipeline = load(arguments.student)
            return
        from optimum.intel import OVPipelineForText2Image

        self.pipeline = OVPipelineForText2Image.from_pretrained(
            arguments.openvino,
            ov_config={"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads)},
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def decode_request(self, request: Request) -> Request:
        return request

    def predict(self, inputs: Any) -> Any:
        """Draw a list of requests, or one where there is no batching."""
        requests = inputs if isinstance(inputs, list) else [inputs]
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=self.arguments.bf16),
        ):
            drawn = draw(self.pipeline, self.contract, requests)
        return drawn if isinstance(inputs, list) else drawn[0]

    def encode_response(self, output: str) -> dict[str, Any]:
        return answer(output)


def main() -> None:
    """Serve until stopped."""
    arguments = parser().parse_args()
    server = litserve.LitServer(
        Student(arguments), accelerator="cpu", workers_per_device=arguments.workers, timeout=60
    )
    server.run(
        host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    main()
