"""What a served model says of itself; one object from the engine to the API."""

import re
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class ModelCard:
    """``id`` is the name that it is served under; sizes are ``WIDTHxHEIGHT``.

    ``host`` is the Triton model that serves it, which has another name where this is a variant.
    Sides that ``multiple`` divides can be made too, up to ``longest_side``, unless it is 0.
    ``downscale`` is pixels a latent position, along a side; ``edits`` whether it takes pictures,
    and ``needs_picture`` whether it makes none without; ``decoders`` what can make its pixels:
    ``full`` and perhaps ``tiny``; ``verified`` how far the export was compared with torch:
    ``full``, ``quick`` or ``none``; ``pid`` the engine's process; ``costs`` are as
    ``cdm_serve.triton.protocol`` has them, ``batches`` as ``cdm_serve.engine.warmup``.
    """

    id: str
    architecture: str
    fingerprint: str
    sizes: tuple[str, ...]
    default_size: str
    default_steps: int
    max_steps: int
    downscale: int
    edits: bool = False
    needs_picture: bool = False
    decoders: tuple[str, ...] = ("full",)
    verified: str = "full"
    multiple: int = 0
    longest_side: int | None = None
    host: str = ""
    pid: int = 0
    costs: dict[str, Any] = field(default_factory=dict)
    batches: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelCard":
        """The other way round from ``dataclasses.asdict``.

        Raises:
            KeyError: a field is missing. What is there beside them is passed over.
        """
        values = {each.name: data[each.name] for each in fields(cls)}
        return cls(**values | {name: tuple(values[name]) for name in ("sizes", "decoders")})


def divides(multiple: int, longest: int | None, size: str) -> bool:
    """Whether ``multiple`` divides both sides of a size, which are at most ``longest``."""
    if not multiple or not re.fullmatch("[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", size):
        return False
    sides = [int(side) for side in size.split("x")]
    return all(side % multiple == 0 and side <= (longest or side) for side in sides)
