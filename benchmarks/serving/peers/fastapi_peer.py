"""diffusers in FastAPI: a ``def`` route, which FastAPI runs in its threads.

Each request has a pipeline and a scheduler of its own around the shared networks, and each thread
its own tokenizers, as in diffusers' "Create a server"; without that, requests at the same time
spoil each other's pictures or fail ("Already borrowed"). With ``--lock`` they take turns instead.
"""

import copy
import threading
from contextlib import nullcontext
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from benchmarks.serving.peers.common import Contract, Request, answer, draw, load, parser


def main() -> None:
    """Serve until stopped."""
    arguments = parser().parse_args()
    shared, contract = load(arguments.student), Contract(arguments.student)
    turn: Any = threading.Lock() if arguments.lock else nullcontext()
    own = threading.local()
    app = FastAPI()

    def components() -> dict[str, Any]:
        if not hasattr(own, "tokenizers"):
            names = [name for name in shared.components if name.startswith("tokenizer")]
            own.tokenizers = {name: copy.deepcopy(shared.components[name]) for name in names}
        scheduler = type(shared.scheduler).from_config(shared.scheduler.config)
        return {**shared.components, **own.tokenizers, "scheduler": scheduler}

    @app.post("/v1/images/generations")
    def generate(request: Request) -> dict[str, Any]:
        pipeline = type(shared)(**components())
        pipeline.set_progress_bar_config(disable=True)
        with turn, torch.inference_mode():
            return answer(draw(pipeline, contract, [request])[0])

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
