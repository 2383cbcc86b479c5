"""The connection to a Triton, or to several that serve the same models.

To one's own Triton a single long-lived stream carries every request. To others each request has a
stream to itself, because gRPC, and every proxy that understands it, balances calls: so each request
goes to the next server that is there, its cancel to the same one, and where that one dies before it
has answered, gRPC asks another. A stream of one's own costs 0.4 ms of the gateway's processor.
"""

import asyncio
import contextlib
import itertools
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as wire
from tritonclient.grpc import service_pb2_grpc

from cdm_serve.backend import BackendError, BackendLost
from cdm_serve.engine.job import Job, Partial, Picture
from cdm_serve.triton.protocol import Message, generate_message
from cdm_serve.triton.stream import Answer, Answers, Stream, details

RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [{"name": [{}], "retryPolicy": RETRY}],
}
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # A server that was away is asked again soon.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # No Triton minds a ping in five minutes. What counts is the second: data that is not
    # acknowledged for so long means that the machine at the other end is gone.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


async def _within(seconds: float, call: Awaitable[Any]) -> None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        reason = f"it took longer than {seconds:g} seconds" if late else details(error)
        raise BackendError(reason) from error


def _named(model: str, variant: str | None) -> Message:
    return {} if variant in (None, model) else {"model": variant}


async def _next(answers: Answers) -> Answer:
    answer = await answers.get()
    if isinstance(answer, Exception):
        raise answer
    return answer


class TritonClient:
    """The servers at a gRPC target. Made and used inside one event loop."""

    def __init__(self, target: str, *, balanced: bool = False) -> None:
        """``balanced`` gives each request a stream, and so a server, to itself."""
        self.heard: dict[str, float] = {}  # when, by model; see ``Stream``
        self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self._service = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._balanced = balanced
        self._shared: Stream | None = None
        self._streams: set[Stream] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._lost: str | None = None
        # No other client of this server may use the same ids.
        self._name = secrets.token_hex(8)
        self._ids = itertools.count(1)

    async def ready(self) -> bool:
        """Whether a server is up with all its models loaded."""
        try:
            return bool(
                (await self._service.ServerReady(wire.ServerReadyRequest(), timeout=2)).ready
            )
        except grpc.RpcError:
            return False

    async def models(self) -> tuple[list[str], dict[str, str]]:
        """Names of the loaded models, and by name why others are not.

        Raises:
            BackendLost: no server answers.
        """
        try:
            index = await self._service.RepositoryIndex(wire.RepositoryIndexRequest(), timeout=5)
        except grpc.RpcError as error:
            raise BackendLost(details(error)) from error
        ready = sorted(model.name for model in index.models if model.state == "READY")
        # A python model's traceback follows in further lines.
        reasons = {each.name: each.reason.partition("\n")[0] for each in index.models}
        return ready, {name: why for name, why in reasons.items() if why and name not in ready}

    async def load(self, model: str, seconds: float) -> None:
        """Load a model, or load it again; the one before serves until the new one is ready.

        Raises:
            BackendError: it cannot be loaded, or not within ``seconds``; the one before stays.
        """
        request = wire.RepositoryModelLoadRequest(model_name=model)
        await _within(seconds, self._service.RepositoryModelLoad(request, timeout=seconds))

    async def unload(self, model: str, seconds: float) -> None:
        """Take no new requests for a model, finish those it has, and drop it.

        Raises:
            BackendError: there is no such model, or it does not end within ``seconds``.
        """
        request = wire.RepositoryModelUnloadRequest(model_name=model)
        await _within(seconds, self._service.RepositoryModelUnload(request, timeout=seconds))

    async def describe(self, model: str, variant: str | None = None) -> Message:
        """What a model's process says of it or of a variant: also the proof that it is alive.

        Raises:
            BackendError: the model failed.
            BackendLost: the server went away meanwhile.
        """
        with self._ask(model, {"command": "describe"} | _named(model, variant)) as answers:
            report = await _next(answers)
            assert isinstance(report, dict)
            return report

    async def stream(
        self, model: str, job: Job, variant: str | None = None
    ) -> AsyncGenerator[Partial | Picture, None]:
        """Partial images and then the picture; who leaves early cancels what remains.

        Raises:
            BackendError: the model refused or failed.
            BackendLost: the server went away meanwhile.
        """
        message, data = generate_message(job)
        with self._ask(model, message | _named(model, variant), data) as answers:
            while True:
                answer = await _next(answers)
                assert isinstance(answer, Partial | Picture)
                yield answer
                if isinstance(answer, Picture):
                    return

    def fail(self, reason: str) -> None:
        """Answer everything that waits, and whatever still comes, with BackendLost."""
        self._lost = reason
        for stream in self._streams:
            stream.fail(reason)

    async def close(self) -> None:
        """End all streams from this side; what is in flight is answered first."""
        for stream in list(self._streams):
            self._end(stream)
        while self._ending:
            await asyncio.wait(self._ending)
        await self._channel.close()

    @contextlib.contextmanager
    def _ask(self, model: str, message: Message, data: bytes = b"") -> Iterator[Answers]:
        """The answers to a request, of which what is left is stopped at the end."""
        if self._lost is not None:
            raise BackendLost(self._lost)
        key = f"{self._name}-{next(self._ids)}"
        with self._stream() as stream:
            answers = stream.ask(model, key, message, data)
            try:
                yield answers
            finally:
                stream.leave(model, key)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[Stream]:
        """The one for all, or one for this request."""
        if self._balanced:
            stream = Stream(self._service, self.heard)
            self._streams.add(stream)
            try:
                yield stream
            finally:
                self._end(stream)
            return
        if self._shared is None:
            self._shared = Stream(self._service, self.heard)
            self._streams.add(self._shared)
        yield self._shared

    def _end(self, stream: Stream) -> None:
        if stream not in self._streams:
            return
        self._streams.discard(stream)
        task = stream.end()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
