"""What the gateway knows of a served model, as the model itself tells it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelCard:
    """The answer to ``describe``; ``pid`` is the model's process, ``size`` is ``WIDTHxHEIGHT``.

    ``costs`` are as ``protocol`` has them.
    """

    id: str
    architecture: str
    fingerprint: str
    sizes: tuple[str, ...]
    default_size: str
    default_steps: int
    max_steps: int
    downscale: int
    pid: int
    costs: dict[str, Any]

    @classmethod
    def from_report(cls, model: str, report: dict[str, Any]) -> "ModelCard":
        """``model`` is the name Triton serves it under."""
        return cls(
            id=model,
            architecture=report["architecture"],
            fingerprint=report["fingerprint"],
            sizes=tuple(report["sizes"]),
            default_size=report["default_size"],
            default_steps=report["default_steps"],
            max_steps=report["max_steps"],
            downscale=report["downscale"],
            pid=report["pid"],
            costs=report["costs"],
        )
