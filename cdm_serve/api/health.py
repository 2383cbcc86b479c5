"""``/healthz``: the gateway is up; ``/readyz``: pictures can be had right now."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from cdm_serve.api.errors import not_ready
from cdm_serve.backend import Backend


def health_router(backend: Backend) -> APIRouter:
    """The two probes."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Always 200: restart the gateway only when this does not answer."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        """503 while Triton starts, restarts or stops: send traffic elsewhere."""
        if not backend.ready:
            return not_ready("the models are being loaded")
        return JSONResponse({"status": "ready", "restarts": backend.restarts})

    return router
