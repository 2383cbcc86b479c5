"""Requests by number: each has a prompt and a seed of its own, the same in every run."""

import base64
import io
import json
from dataclasses import dataclass

from PIL import Image

_SIZES = ("small", "big", "large")
_SUBJECTS = ("fox", "owl", "cat", "dog", "panda", "frog", "lion", "pig", "rabbit", "penguin")
_PLACES = ("left", "right", "top", "bottom")
_COLOURS = ("red", "green", "blue", "yellow", "purple", "teal", "orange")


@dataclass(frozen=True)
class Requests:
    """What the requests of a run have in common; None leaves it to the server.

    ``steps`` are asked for in turn. With ``known`` prompts, the requests come round again after so
    many; without, no prompt is ever asked twice. With ``edits`` every second one brings a picture.
    """

    model: str | None = None
    steps: tuple[int, ...] = ()
    stream: bool = False
    known: int | None = None
    edits: bool = False

    def fields(self, number: int) -> dict[str, object]:
        """Return what the JSON of a request holds."""
        if self.known is not None:
            number %= self.known
        body: dict[str, object] = {"prompt": prompt(number), "seed": number}
        if self.known is None:
            body["prompt"] = f"{prompt(number)} {number}"
        if self.model is not None:
            body["model"] = self.model
        if self.steps:
            body["num_inference_steps"] = self.steps_of(number)
        if self.stream:
            body |= {"stream": True, "partial_images": 1}
        if self.is_edit(number):
            body |= {"image": picture(number), "strength": 0.75}
        return body

    def body(self, number: int) -> bytes:
        """Return the JSON of a request."""
        return json.dumps(self.fields(number)).encode()

    def route(self, number: int) -> str:
        """Return where it is sent."""
        return f"/v1/images/{'edits' if self.is_edit(number) else 'generations'}"

    def is_edit(self, number: int) -> bool:
        """Whether it brings a picture."""
        return self.edits and number % 2 == 1

    def steps_of(self, number: int) -> int:
        """Return how many steps it asks for, where it does."""
        return self.steps[number % len(self.steps)]


def picture(number: int) -> str:
    """Return a PNG of 64 pixels as a data URL, rings of one of 256 widths."""
    rings = Image.radial_gradient("L").resize((64, 64)).point(lambda value: value * number % 256)
    file = io.BytesIO()
    rings.convert("RGB").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def prompt(number: int) -> str:
    """Return one of 840 captions; neighbours differ in every word that can."""
    size = _SIZES[number % 3]
    subject = _SUBJECTS[number % 10]
    place = _PLACES[number // 10 % 4]
    colour = _COLOURS[number % 7]
    return f"a {size} {subject} on the {place} on a {colour} background"
