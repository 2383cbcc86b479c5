"""A function of the operator's that sees every picture first: to check it, or to mark it."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdm_serve.api.errors import ApiError
from cdm_serve.engine.job import Pixels
from cdm_serve.errors import StartError

# A picture and its ``prompt``, ``model``, ``seed``, ``steps`` and whether it is a ``preview``: the
# same or another picture of its size; None where the client must not have it. In several threads.
Hook = Callable[[Image.Image, Mapping[str, Any]], Image.Image | None]


def load_hook(name: str) -> Hook:
    """The function called ``module:function``, of a module here or an installed one.

    Raises:
        StartError: there is no such function.
    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        hook: Hook = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise StartError(
            f"--on-picture must be MODULE:FUNCTION, {name!r} is none: {error}"
        ) from error
    return hook


def seen(hook: Hook, pixels: Pixels, facts: Mapping[str, Any]) -> Pixels:
    """What the client may have of a picture.

    Raises:
        ApiError: nothing.
        ValueError: the hook gave a picture of another size.
    """
    image = Image.fromarray(pixels)
    found = hook(image, facts)
    if found is None:
        raise ApiError(
            "the picture was rejected by the checks of this server", code="moderation_blocked"
        )
    if found.size != image.size:
        raise ValueError(f"on_picture made {found.size} of a picture of {image.size}")
    return np.asarray(found.convert("RGB"))
