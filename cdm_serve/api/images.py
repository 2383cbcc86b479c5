"""``POST /v1/images/generations``."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from cdm_serve.api.answer import ImageAnswer, image_answer
from cdm_serve.api.errors import documented
from cdm_serve.api.files import FileStore, file_url
from cdm_serve.api.limits import Limits
from cdm_serve.api.plan import make_plan
from cdm_serve.api.schema import ImageRequest
from cdm_serve.api.studio import Studio
from cdm_serve.settings import Settings
from cdm_serve.triton.client import TritonLost
from cdm_serve.triton.supervisor import Supervisor

PICTURE = {"schema": {"type": "string", "format": "binary"}}
ANSWERS = {
    200: {
        "model": ImageAnswer,
        "description": "The pictures; or the one picture itself, where Accept asks for an image",
        "content": {"image/png": PICTURE, "image/jpeg": PICTURE, "image/webp": PICTURE},
    },
    **documented(400, 401, 404, 413, 429, 500, 503),
}


def images_router(
    settings: Settings,
    supervisor: Supervisor,
    limits: Limits,
    studio: Studio,
    store: FileStore,
) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/images/generations", responses=ANSWERS, response_class=JSONResponse)
    async def generate(body: ImageRequest, request: Request) -> Response:
        """Make pictures of a prompt; OpenAI's request and answer, or the picture itself."""
        if not supervisor.ready:
            raise TritonLost("the model is being loaded")
        accept = request.headers.get("accept", "*/*")
        plan = make_plan(body, accept, supervisor.models, settings.prompt_limit)
        limits.spend(request.state.owner, len(plan.seeds))
        pictures = await studio.make(plan)
        if plan.raw:
            (made,) = pictures
            headers = {"x-receipt": json.dumps(made.receipt)}
            headers |= {f"x-{name}": str(made.receipt[name]) for name in ("seed", "steps")}
            return Response(made.file, media_type=f"image/{plan.output_format}", headers=headers)
        names = [store.put(made.file, plan.output_format) for made in pictures if plan.link]
        urls = [file_url(request, settings.public_url, name) for name in names]
        return JSONResponse(image_answer(plan, pictures, urls))

    return router
