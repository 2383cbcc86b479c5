"""diffusers in FastAPI: a ``def`` route, which FastAPI runs in its threads.

Each request has a pipeline and a scheduler of its own around the shared networks, and each thread
its own tokenizers, as in diffusers' "Create a server"; without that, requests at the same time
spoil each other's pictures or fail ("Already borrowed"). With ``--lock`` they take turns instead.
"""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext
from typing import Any

import uvicorn
from diffusers import StableDiffusion3Pipeline
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.student import draw, load, parser


class Request(BaseModel):
    """What is used of OpenAI's request."""

    prompt: str
    seed: int


def main() -> None:
    """Serve until stopped."""
    arguments = parser().parse_args()
    shared = load(arguments.student)
    turn: Any = threading.Lock() if arguments.lock else nullcontext()
    own = threading.local()
    app = FastAPI()

    def components() -> dict[str, Any]:
        if not hasattr(own, "tokenizers"):
            names = ("tokenizer", "tokenizer_2")
            own.tokenizers = {name: copy.deepcopy(shared.components[name]) for name in names}
        scheduler = type(shared.scheduler).from_config(shared.scheduler.config)
        return {**shared.components, **own.tokenizers, "scheduler": scheduler}

    @app.post("/v1/images/generations")
    def generate(request: Request) -> dict[str, Any]:
        pipeline = StableDiffusion3Pipeline(**components())
        pipeline.set_progress_bar_config(disable=True)
        with turn:
            (picture,) = draw(pipeline, [request.prompt], [request.seed], arguments.bf16)
        return {"data": [{"b64_json": picture}]}

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
