"""One gRPC stream of requests to a Triton, and of their answers, told apart by id.

A stream is never cancelled and has no deadline: cancelling crashes the bundled Triton. Who no
longer wants an answer says so by a message of its own (see ``protocol``), on the same stream, so
that it comes to the server that has the request.
"""

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2 as wire

from cdm_serve.backend import BackendError, BackendLost
from cdm_serve.engine.job import EngineError, Partial, Picture, Pixels
from cdm_serve.triton.protocol import Message, answer_of, cancel_message, encode

Answer = Partial | Picture | Message
Answers = asyncio.Queue[Answer | Exception]


class Stream:
    """One call of ``ModelStreamInfer``, which is to one server however many there are."""

    def __init__(self, service: Any, heard: dict[str, float]) -> None:
        """``heard`` is told when each model last answered anything, on the monotonic clock."""
        self._service = service
        self._heard = heard
        self._requests: asyncio.Queue[wire.ModelInferRequest | None] = asyncio.Queue()
        self._waiting: dict[str, Answers] = {}
        self._lost: str | None = None
        # A task of its own, which nobody cancels.
        self._reader = asyncio.create_task(self._read())

    def ask(self, model: str, key: str, message: Message, data: bytes) -> Answers:
        """Send a request; its answers, or what went wrong, come into the queue.

        Raises:
            BackendLost: the stream is broken.
        """
        if self._lost is not None:
            raise BackendLost(self._lost)
        answers: Answers = asyncio.Queue()
        self._waiting[key] = answers
        self._requests.put_nowait(_request(model, key, message, data))
        return answers

    def leave(self, model: str, key: str) -> None:
        """Listen no longer to a request, and stop what remains of it."""
        if self._waiting.pop(key, None) is not None:
            self._requests.put_nowait(_request(model, f"{key}-cancel", cancel_message(key)))

    def fail(self, reason: str) -> None:
        """Answer everything that waits, and whatever still comes, with BackendLost."""
        self._lost = reason
        self._fail_waiting(reason)

    def end(self) -> asyncio.Task[None]:
        """Ask nothing more; the task ends when what was asked is answered."""
        self._requests.put_nowait(None)
        return self._reader

    async def _send(self) -> AsyncIterator[wire.ModelInferRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for response in self._service.ModelStreamInfer(self._send()):
                if response.error_message:
                    self._fail(response.infer_response.id, response.error_message)
                else:
                    self._deliver(response.infer_response)
        except grpc.RpcError as error:
            self.fail(f"the connection to Triton broke: {details(error)}")
        except Exception as error:
            self.fail(f"the connection to Triton broke: {error}")
        else:
            self.fail("Triton closed the connection")

    def _deliver(self, response: wire.ModelInferResponse) -> None:
        self._heard[response.model_name] = time.monotonic()
        answers = self._waiting.get(response.id)
        if answers is None:
            return
        message, image = _contents(response)
        answer: Answer | EngineError
        answer = message if message["kind"] == "report" else answer_of(message, image)
        if not isinstance(answer, Partial):
            del self._waiting[response.id]
        if isinstance(answer, EngineError):
            answers.put_nowait(BackendError(str(answer), answer.kind))
        else:
            answers.put_nowait(answer)

    def _fail(self, key: str, reason: str) -> None:
        """Triton's own error: of one request or, where it names none, perhaps of any."""
        if not key:
            self._fail_waiting(reason)
        elif (answers := self._waiting.pop(key, None)) is not None:
            answers.put_nowait(BackendLost(reason))

    def _fail_waiting(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for answers in waiting.values():
            answers.put_nowait(BackendLost(reason))


def details(error: grpc.RpcError) -> str:
    """What gRPC says went wrong."""
    return str(error.details() if isinstance(error, grpc.Call) else error)


def _request(model: str, key: str, message: Message, data: bytes = b"") -> wire.ModelInferRequest:
    text = encode(message)
    request = wire.ModelInferRequest(
        model_name=model,
        id=key,
        inputs=[{"name": "message", "datatype": "BYTES", "shape": [1]}],
        # A string travels behind its length.
        raw_input_contents=[struct.pack("<I", len(text)) + text],
    )
    if data:
        request.inputs.add(name="data", datatype="UINT8", shape=[len(data)])
        request.raw_input_contents.append(data)
    return request


def _contents(response: wire.ModelInferResponse) -> tuple[Message, Pixels | None]:
    message: Message = {}
    image: Pixels | None = None
    for output, contents in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "message":
            message = json.loads(contents[4:])
        else:
            image = np.frombuffer(contents, dtype=np.uint8).reshape(output.shape)
    return message, image
