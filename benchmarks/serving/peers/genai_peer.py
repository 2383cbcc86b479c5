"""OpenVINO GenAI's Text2ImagePipeline in FastAPI, as OpenVINO Model Server runs it.

It batches nothing across requests, and one pipeline makes one picture at a time. It takes no
sigmas, and its own grid of N + 1 steps has those of the student's N and one close to 0 after them:
so each picture costs it one step more.
"""

from threading import Lock
from typing import Any

import openvino_genai
import uvicorn
from fastapi import FastAPI
from PIL import Image

from benchmarks.serving.peers.common import Contract, Request, answer, parser, png


def main() -> None:
    """Serve until stopped."""
    arguments = parser().parse_args()
    contract = Contract(arguments.student)
    pipeline = openvino_genai.Text2ImagePipeline(str(arguments.openvino), "CPU")
    one_at_a_time = Lock()
    app = FastAPI()

    @app.post("/v1/images/generations")
    def generate(request: Request) -> dict[str, Any]:
        with one_at_a_time:
            pictures = pipeline.generate(
                request.prompt,
                num_inference_steps=(request.num_inference_steps or contract.steps) + 1,
                generator=openvino_genai.TorchGenerator(request.seed),
                **contract.arguments,
            )
        return answer(png(Image.fromarray(pictures.data[0])))

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
