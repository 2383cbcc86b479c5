"""What the API asks of whoever makes the pictures: a Triton's supervisor, or engines under Ray."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from cdm_serve.engine.card import ModelCard
from cdm_serve.engine.job import Job, Partial, Picture


class BackendError(Exception):
    """The model refused or failed; ``kind`` is that of ``EngineError``, or ``full``.

    ``full`` means that too many requests wait for an engine.
    """

    def __init__(self, message: str, kind: str = "failed") -> None:
        super().__init__(message)
        self.kind = kind


class BackendLost(Exception):
    """The engine went away, or is not there yet; nothing is known of the request: ask again."""


class Backend(Protocol):
    """``models`` are the cards of the served models by name, the default first.

    ``ready`` is whether pictures can be had right now.
    """

    @property
    def models(self) -> dict[str, ModelCard]: ...

    @property
    def ready(self) -> bool: ...

    @property
    def restarts(self) -> int: ...

    def stream(self, model: str, job: Job) -> AsyncGenerator[Partial | Picture, None]:
        """Partial images and then the picture; leaving early cancels what remains.

        So leave it by ``aclose`` (``contextlib.aclosing``), or by a cancellation within it.

        Raises:
            BackendError: the model refused or failed.
            BackendLost: whoever made it went away.
        """

    async def describe(self, model: str) -> dict[str, Any]:
        """What one engine of the model says of itself right now, see ``triton.protocol``.

        Raises:
            BackendError: the model failed.
            BackendLost: it is not there.
        """
