"""The connection to Triton: one long-lived gRPC stream carries every request, told apart by id.

A stream is never cancelled and has no deadline: cancelling crashes this Triton. Who no longer wants
an answer stops waiting for it; the answer is dropped when it comes.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Arrays = dict[str, NDArray[Any]]


class TritonLost(Exception):
    """The server went away, or is not there yet; nothing is known about the request."""


class TritonError(Exception):
    """The model answered with an error."""


@dataclass(frozen=True)
class Reply:
    """What the model sent: (H, W, 3) pixels, unless only a report was asked for."""

    report: dict[str, Any]
    image: NDArray[np.uint8] | None


class TritonClient:
    """One server. Made and used inside one event loop."""

    def __init__(self, address: str) -> None:
        self._client = InferenceServerClient(address)
        self._requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._ids = itertools.count(1)
        self._reader: asyncio.Task[None] | None = None
        self._lost: str | None = None

    async def ready(self) -> bool:
        """Whether the server is up with all its models loaded."""
        try:
            return bool(await self._client.is_server_ready(client_timeout=2.0))
        except InferenceServerException:
            return False

    async def models(self) -> list[str]:
        """Names of the loaded models.

        Raises:
            TritonLost: the server does not answer.
        """
        try:
            index = await self._client.get_model_repository_index(client_timeout=5.0)
        except InferenceServerException as error:
            raise TritonLost(str(error)) from error
        return sorted(model.name for model in index.models if model.state == "READY")

    async def describe(self, model: str) -> dict[str, Any]:
        """The model's card, straight from its process: also the proof that it is alive."""
        return (await self._ask(model, {"command": _text("describe")})).report

    async def generate(
        self, model: str, prompt: str, seed: int, steps: int, width: int, height: int
    ) -> Reply:
        """One picture.

        Raises:
            TritonError: the model refused or failed.
            TritonLost: the server went away meanwhile.
        """
        return await self._ask(
            model,
            {
                "command": _text("generate"),
                "prompt": _text(prompt),
                "seed": np.array([seed], dtype=np.int64),
                "steps": np.array([steps], dtype=np.int32),
                "width": np.array([width], dtype=np.int32),
                "height": np.array([height], dtype=np.int32),
            },
        )

    def fail(self, reason: str) -> None:
        """Answer everything that waits, and whatever still comes, with TritonLost."""
        self._lost = reason
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(TritonLost(reason))

    async def close(self) -> None:
        """End the stream from this side; what is in flight is answered first."""
        if self._reader is not None:
            self._requests.put_nowait(None)
            await self._reader
        await self._client.close()

    async def _ask(self, model: str, arrays: Arrays) -> Reply:
        if self._lost is not None:
            raise TritonLost(self._lost)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        request_id = str(next(self._ids))
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        inputs = [_input(name, array) for name, array in arrays.items()]
        self._requests.put_nowait({"model_name": model, "inputs": inputs, "request_id": request_id})
        return await future

    async def _send(self) -> AsyncIterator[dict[str, Any]]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for result, error in self._client.stream_infer(self._send()):
                if error is not None:
                    # Triton's own errors carry no id, so whose it is cannot be known.
                    self._fail_waiting(str(error))
                    continue
                future = self._waiting.pop(result.get_response().id, None)
                if future is not None and not future.done():
                    _settle(future, result)
        except Exception as error:
            self.fail(f"the connection to Triton broke: {error}")
        else:
            self.fail("Triton closed the connection")

    def _fail_waiting(self, reason: str) -> None:
        self.fail(reason)
        self._lost = None


def _settle(future: asyncio.Future[Reply], result: Any) -> None:
    error = result.as_numpy("error").item().decode()
    if error:
        future.set_exception(TritonError(error))
    else:
        report = json.loads(result.as_numpy("report").item())
        future.set_result(Reply(report, result.as_numpy("image")))


def _text(value: str) -> NDArray[Any]:
    return np.array([value.encode()], dtype=np.object_)


def _input(name: str, array: NDArray[Any]) -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor
