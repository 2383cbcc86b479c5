"""``POST /v1/images/generations``."""

import asyncio
import base64
import time
from concurrent.futures import Executor
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from cdm_serve.api.encode import encode_image
from cdm_serve.api.plan import Plan, make_plan
from cdm_serve.api.schema import ImageRequest
from cdm_serve.settings import Settings
from cdm_serve.triton.client import Reply, TritonLost
from cdm_serve.triton.supervisor import Supervisor


def images_router(settings: Settings, supervisor: Supervisor, executor: Executor) -> APIRouter:
    """The route; pictures are encoded in ``executor``, off the event loop."""
    router = APIRouter()

    @router.post("/v1/images/generations")
    async def generate(body: ImageRequest, request: Request) -> Response:
        """Make pictures of a prompt; OpenAI's request and answer, or the picture itself."""
        if not supervisor.ready:
            raise TritonLost("the model is being loaded")
        accept = request.headers.get("accept", "*/*")
        plan = make_plan(body, accept, supervisor.models, settings.prompt_limit)
        pictures = await asyncio.gather(*(picture(plan, seed) for seed in plan.seeds))
        if plan.raw:
            _, file = pictures[0]
            headers = {"x-seed": str(plan.seeds[0]), "x-steps": str(plan.steps)}
            return Response(file, media_type=f"image/{plan.output_format}", headers=headers)
        return JSONResponse(_answer(plan, pictures))

    async def picture(plan: Plan, seed: int) -> tuple[Reply, bytes]:
        reply = await supervisor.generate(
            plan.model.id, plan.prompt, seed, plan.steps, plan.width, plan.height
        )
        assert reply.image is not None
        facts = {"seed": str(seed), "steps": str(plan.steps), "model": plan.model.fingerprint}
        file = await asyncio.get_running_loop().run_in_executor(
            executor, encode_image, reply.image, plan.output_format, plan.compression, facts
        )
        return reply, file

    return router


def _answer(plan: Plan, pictures: list[tuple[Reply, bytes]]) -> dict[str, Any]:
    return {
        "created": int(time.time()),
        "data": [
            {"b64_json": base64.b64encode(file).decode(), "seed": seed}
            for seed, (_, file) in zip(plan.seeds, pictures, strict=True)
        ],
        "background": "opaque",
        "output_format": plan.output_format,
        "quality": plan.quality,
        "size": plan.size,
        "usage": _usage(plan, [reply for reply, _ in pictures]),
    }


def _usage(plan: Plan, replies: list[Reply]) -> dict[str, Any]:
    """Tokens read by the text encoder; latent positions written by the transformer."""
    text_tokens = sum(reply.report["tokens"] for reply in replies)
    positions = (plan.width // plan.model.downscale) * (plan.height // plan.model.downscale)
    output_tokens = positions * len(replies)
    return {
        "input_tokens": text_tokens,
        "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": 0},
        "output_tokens": output_tokens,
        "total_tokens": text_tokens + output_tokens,
    }
