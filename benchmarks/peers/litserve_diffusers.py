"""diffusers under LitServe, which collects requests into batches."""

from typing import Any

import litserve
import torch
from pydantic import BaseModel

from benchmarks.peers.student import draw, load, parser


class Request(BaseModel):
    """What is used of OpenAI's request."""

    prompt: str
    seed: int


class Student(litserve.LitAPI):  # type: ignore[misc]  # LitServe has no types
    """Decode, predict a batch, encode, as LitServe asks for it."""

    def __init__(self, student: str, bf16: bool, threads: int, **settings: Any) -> None:
        """Remember what ``setup`` needs in the worker's process."""
        super().__init__(api_path="/v1/images/generations", **settings)
        self.student, self.bf16, self.threads = student, bf16, threads

    def setup(self, device: str) -> None:
        """Load the pipeline, in the worker."""
        torch.set_num_threads(self.threads)
        self.pipeline = load(self.student)

    def decode_request(self, request: Request) -> tuple[str, int]:
        """Take the prompt and the seed."""
        return request.prompt, request.seed

    def predict(self, inputs: Any) -> Any:
        """Draw a list of requests, or one where there is no batching."""
        if isinstance(inputs, tuple):
            return draw(self.pipeline, [inputs[0]], [inputs[1]], self.bf16)[0]
        prompts, seeds = zip(*inputs, strict=True)
        return draw(self.pipeline, list(prompts), list(seeds), self.bf16)

    def encode_response(self, output: str) -> dict[str, Any]:
        """Answer in OpenAI's form."""
        return {"data": [{"b64_json": output}]}


def main() -> None:
    """Serve until stopped."""
    arguments = parser().parse_args()
    api = Student(
        arguments.student,
        arguments.bf16,
        max(1, torch.get_num_threads() // arguments.workers),
        max_batch_size=arguments.batch,
        batch_timeout=arguments.wait,
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=arguments.workers, timeout=60
    )
    server.run(
        host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    main()
