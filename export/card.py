"""``cdm.json``: how the distiller says its student is to be sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy

from export.errors import ExportError

CARD_FORMAT = 1


def read_card(folder: Path) -> dict[str, Any]:
    """The checked ``cdm.json`` of a student; empty where there is none.

    Raises:
        ExportError: it is not what this version of the distiller writes.
    """
    path = folder / "cdm.json"
    if not path.exists():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise ExportError(
            f"{path} is not of format {CARD_FORMAT}; distil again with this version of cdm-distill"
        )
    for field in ("name", "architecture"):
        if not isinstance(card.get(field), str) or not card[field]:
            raise ExportError(f"{path}: {field} must be a non-empty string")
    for field, least in (("steps", 1), ("max_sequence_length", 0), ("height", 1), ("width", 1)):
        value = card.get(field)
        if type(value) is not int or value < least:
            raise ExportError(f"{path}: {field} must be an integer of at least {least}")
    _check_sampling(card, path)
    return card


def _check_sampling(card: dict[str, Any], path: Path) -> None:
    """Serving samples without guidance on even steps, so that is all a student may ask for."""
    if card.get("guidance_scale") != 1.0:
        raise ExportError(f"{path}: guidance_scale must be 1.0, a student is served without it")
    even = [1.0 - i / card["steps"] for i in range(card["steps"])]
    sigmas = card.get("sigmas")
    if (
        not isinstance(sigmas, list)
        or not all(type(sigma) in (int, float) for sigma in sigmas)
        or not numpy.array_equal(numpy.round(sigmas, 6), numpy.round(even, 6))
    ):
        raise ExportError(
            f"{path}: sigmas must be the {card['steps']} even ones {numpy.round(even, 4).tolist()};"
            " other grids are not served"
        )
