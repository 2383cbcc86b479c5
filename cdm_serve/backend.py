"""What the API asks of whoever makes the pictures: a Triton's supervisor, or engines under Ray."""

from collections.abc import AsyncGenerator
from typing import Protocol

from cdm_serve.engine.job import Job, Partial, Picture
from cdm_serve.triton.models import ModelCard
from cdm_serve.triton.protocol import Message


class Backend(Protocol):
    """``models`` are the cards of the served models by name, the default first."""

    models: dict[str, ModelCard]
    restarts: int

    @property
    def ready(self) -> bool:
        """Whether pictures can be had right now."""

    def stream(self, model: str, job: Job) -> AsyncGenerator[Partial | Picture, None]:
        """Partial images and then the picture; leaving early cancels what remains.

        Raises:
            TritonError: the model refused or failed; ``full`` is its kind when too much waits.
            TritonLost: whoever made it went away; to be asked again.
        """

    async def describe(self, model: str) -> Message:
        """What one engine of the model says of itself right now, see ``protocol``.

        Raises:
            TritonError: the model failed.
            TritonLost: it is not there.
        """
