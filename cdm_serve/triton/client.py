"""The connection to Triton: one long-lived gRPC stream carries every request, told apart by id.

A stream is never cancelled and has no deadline: cancelling crashes this Triton. Who no longer wants
an answer says so by a message of its own (see ``protocol``).
"""

import asyncio
import itertools
import json
import secrets
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2 as wire
from tritonclient.grpc import service_pb2_grpc

from cdm_serve.engine.job import EngineError, Job, Partial, Picture, Pixels
from cdm_serve.triton.protocol import (
    Message,
    answer_of,
    cancel_message,
    encode,
    generate_message,
)

Answer = Partial | Picture | Message
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class TritonLost(Exception):
    """The server went away, or is not there yet; nothing is known about the request."""


class TritonError(Exception):
    """The model answered with an error; ``kind`` is that of ``EngineError``."""

    def __init__(self, message: str, kind: str = "failed") -> None:
        super().__init__(message)
        self.kind = kind


class TritonClient:
    """One server. Made and used inside one event loop."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=UNLIMITED)
        self._service = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._waiting: dict[str, asyncio.Queue[Answer | Exception]] = {}
        # No other client of this server may use the same ids.
        self._name = secrets.token_hex(8)
        self._ids = itertools.count(1)
        self._reader: asyncio.Task[None] | None = None
        self._lost: str | None = None

    async def ready(self) -> bool:
        """Whether the server is up with all its models loaded."""
        try:
            return bool(
                (await self._service.ServerReady(wire.ServerReadyRequest(), timeout=2)).ready
            )
        except grpc.RpcError:
            return False

    async def models(self) -> list[str]:
        """Names of the loaded models.

        Raises:
            TritonLost: the server does not answer.
        """
        try:
            index = await self._service.RepositoryIndex(wire.RepositoryIndexRequest(), timeout=5)
        except grpc.RpcError as error:
            raise TritonLost(_details(error)) from error
        return sorted(model.name for model in index.models if model.state == "READY")

    async def load(self, model: str) -> None:
        """Load a model, or load it again; the one before serves until the new one is ready.

        Raises:
            TritonError: it cannot be loaded; the one before stays.
        """
        request = wire.RepositoryModelLoadRequest(model_name=model)
        try:
            await self._service.RepositoryModelLoad(request)
        except grpc.RpcError as error:
            raise TritonError(_details(error)) from error

    async def unload(self, model: str) -> None:
        """Take no new requests for a model, finish those it has, and drop it.

        Raises:
            TritonError: there is no such model.
        """
        request = wire.RepositoryModelUnloadRequest(model_name=model)
        try:
            await self._service.RepositoryModelUnload(request)
        except grpc.RpcError as error:
            raise TritonError(_details(error)) from error

    async def describe(self, model: str) -> Message:
        """What the model's process says of itself: also the proof that it is alive.

        Raises:
            TritonError: the model failed.
            TritonLost: the server went away meanwhile.
        """
        key, answers = self._ask(model, {"command": "describe"})
        try:
            answer = await answers.get()
        finally:
            self._waiting.pop(key, None)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict)
        return answer

    async def stream(self, model: str, job: Job) -> AsyncGenerator[Partial | Picture, None]:
        """Partial images and then the picture; who leaves early cancels what remains.

        Raises:
            TritonError: the model refused or failed.
            TritonLost: the server went away meanwhile.
        """
        key, answers = self._ask(model, generate_message(job))
        try:
            while True:
                answer = await answers.get()
                if isinstance(answer, Exception):
                    raise answer
                assert isinstance(answer, Partial | Picture)
                yield answer
                if isinstance(answer, Picture):
                    return
        finally:
            if self._waiting.pop(key, None) is not None:
                self._post(model, f"{key}-cancel", cancel_message(key))

    def fail(self, reason: str) -> None:
        """Answer everything that waits, and whatever still comes, with TritonLost."""
        self._lost = reason
        self._fail_waiting(reason)

    async def close(self) -> None:
        """End the stream from this side; what is in flight is answered first."""
        if self._reader is not None:
            self._requests.put_nowait(None)
            await self._reader
        await self._channel.close()

    def _ask(self, model: str, message: Message) -> tuple[str, asyncio.Queue[Answer | Exception]]:
        if self._lost is not None:
            raise TritonLost(self._lost)
        key = f"{self._name}-{next(self._ids)}"
        answers = self._waiting[key] = asyncio.Queue()
        self._post(model, key, message)
        return key, answers

    def _post(self, model: str, key: str, message: Message) -> None:
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        self._requests.put_nowait(_request(model, key, message))

    async def _send(self) -> AsyncIterator[Any]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for response in self._service.ModelStreamInfer(self._send()):
                if response.error_message:
                    # Triton's own errors carry no id, so whose it is cannot be known.
                    self._fail_waiting(response.error_message)
                else:
                    self._deliver(response.infer_response)
        except grpc.RpcError as error:
            self.fail(f"the connection to Triton broke: {_details(error)}")
        except Exception as error:
            self.fail(f"the connection to Triton broke: {error}")
        else:
            self.fail("Triton closed the connection")

    def _deliver(self, response: Any) -> None:
        answers = self._waiting.get(response.id)
        if answers is None:
            return
        message, image = _contents(response)
        answer: Answer | EngineError
        answer = message if message["kind"] == "report" else answer_of(message, image)
        if not isinstance(answer, Partial):
            del self._waiting[response.id]
        if isinstance(answer, EngineError):
            answers.put_nowait(TritonError(str(answer), answer.kind))
        else:
            answers.put_nowait(answer)

    def _fail_waiting(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for answers in waiting.values():
            answers.put_nowait(TritonLost(reason))


def _details(error: grpc.RpcError) -> str:
    return str(error.details() if isinstance(error, grpc.Call) else error)


def _request(model: str, key: str, message: Message) -> wire.ModelInferRequest:
    text = encode(message)
    return wire.ModelInferRequest(
        model_name=model,
        id=key,
        inputs=[{"name": "message", "datatype": "BYTES", "shape": [1]}],
        # A string travels behind its length.
        raw_input_contents=[struct.pack("<I", len(text)) + text],
    )


def _contents(response: wire.ModelInferResponse) -> tuple[Message, Pixels | None]:
    message: Message = {}
    image: Pixels | None = None
    for output, contents in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "message":
            message = json.loads(contents[4:])
        else:
            image = np.frombuffer(contents, dtype=np.uint8).reshape(output.shape)
    return message, image
