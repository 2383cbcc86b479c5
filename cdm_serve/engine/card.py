"""What a served model says of itself; one object from the engine to the API."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class ModelCard:
    """``id`` is the name that it is served under; sizes are ``WIDTHxHEIGHT``.

    ``downscale`` is pixels a latent position, along a side; ``edits`` whether it takes pictures;
    ``verified`` how far the export was compared with torch: ``full``, ``quick`` or ``none``;
    ``pid`` the engine's process; ``costs`` are as ``cdm_serve.triton.protocol`` has them,
    ``batches`` as ``cdm_serve.engine.warmup``.
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
    verified: str = "full"
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
        return cls(**values | {"sizes": tuple(values["sizes"])})
