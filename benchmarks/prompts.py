"""Requests by number: each has a prompt and a seed of its own, the same in every run."""

from __future__ import annotations

from dataclasses import dataclass

# So few that the server soon knows them all and encodes none.
PROMPTS = (
    "a fox in the snow",
    "an owl on the left on a purple background",
    "a large pizza on a teal background",
    "a cat left of a dog on a yellow background",
)

_SIZES = ("small", "big", "large")
_SUBJECTS = ("fox", "owl", "cat", "dog", "panda", "frog", "lion", "pig", "rabbit", "penguin")
_PLACES = ("left", "right", "top", "bottom")
_COLOURS = ("red", "green", "blue", "yellow", "purple", "teal", "orange")


@dataclass(frozen=True)
class Requests:
    """What all requests of a run have in common; None leaves it to the server."""

    model: str | None = None
    steps: int | None = None
    stream: bool = False

    def body(self, number: int) -> dict[str, object]:
        """Return the JSON of a request; its prompt comes again only after 840 others."""
        body: dict[str, object] = {"prompt": prompt(number), "seed": number}
        if self.model is not None:
            body["model"] = self.model
        if self.steps is not None:
            body["num_inference_steps"] = self.steps
        if self.stream:
            body |= {"stream": True, "partial_images": 1}
        return body


def prompt(number: int) -> str:
    """Return one of 840 captions; neighbours differ in every word that can."""
    size = _SIZES[number % 3]
    subject = _SUBJECTS[number % 10]
    place = _PLACES[number // 10 % 4]
    colour = _COLOURS[number % 7]
    return f"a {size} {subject} on the {place} on a {colour} background"
