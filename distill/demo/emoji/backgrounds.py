"""Plain colours and six drawn scenes, as float pictures in [0, 1]."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from distill.demo.emoji.vocabulary import COLORS

Pixels = npt.NDArray[np.float32]
Color = tuple[int, int, int]
Shape = Callable[[ImageDraw.ImageDraw, int, np.random.Generator], None]
# Scenes are drawn larger and reduced, which smooths their edges.
OVERSAMPLING = 4


def _ground(color: Color, height: float) -> Shape:
    """Fill the lower part with a gently waving ground that begins at ``height`` (0 to 1)."""

    def shape(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
        phase = rng.uniform(0, 2 * np.pi)
        xs = np.arange(size + 1)
        ys = size * (height + 0.03 * np.sin(2 * np.pi * xs / size + phase))
        points = [*zip(xs.tolist(), ys.tolist(), strict=True), (size, size), (0, size)]
        draw.polygon(points, fill=color)

    return shape


def _dots(count: int, radius: float, bottom: float) -> Shape:
    """White ones above ``bottom``: stars, snow."""

    def shape(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
        for x, y in rng.uniform((0, 0), (size, bottom * size), (count, 2)):
            reach = radius * size
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(255, 255, 255))

    return shape


def _disc(x: float, y: float, radius: float, color: str) -> Shape:
    def shape(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
        box = tuple(size * value for value in (x - radius, y - radius, x + radius, y + radius))
        draw.ellipse(box, fill=color)

    return shape


# The sky's upper and lower colour, and what is drawn on it.
_SCENES: dict[str, tuple[Color, Color, list[Shape]]] = {
    "grass": ((120, 190, 250), (200, 230, 255), [_ground((96, 172, 70), 0.55)]),
    "night": (
        *((8, 12, 48), (40, 44, 100)),
        [_dots(14, 0.009, 1.0), _disc(0.86, 0.14, 0.08, "#fff3c4")],
    ),
    "snow": (
        *((150, 180, 210), (205, 220, 235)),
        [_ground((245, 249, 255), 0.6), _dots(18, 0.012, 0.6)],
    ),
    "desert": (
        *((110, 185, 235), (250, 230, 190)),
        [_disc(0.14, 0.14, 0.08, "#ffd84d"), _ground((226, 178, 108), 0.58)],
    ),
    "sea": (
        *((175, 220, 250), (215, 240, 255)),
        [_ground((30, 110, 180), 0.5), _ground((20, 85, 150), 0.75)],
    ),
    "sunset": (
        *((90, 50, 120), (255, 150, 70)),
        [_disc(0.5, 0.7, 0.14, "#ffe08a"), _ground((70, 40, 60), 0.72)],
    ),
}


def background(name: str, size: int, rng: np.random.Generator) -> Pixels:
    """Draw a colour or scene of the vocabulary, ``(size, size, 3)`` float32 in [0, 1]."""
    if name in COLORS:
        color = np.array(COLORS[name], dtype=np.float32) / 255
        return np.broadcast_to(color, (size, size, 3)).copy()
    top, bottom, shapes = _SCENES[name]
    large = size * OVERSAMPLING
    ramp = np.linspace(0, 1, large)[:, None, None]
    sky = ((1 - ramp) * np.array(top) + ramp * np.array(bottom)).astype(np.uint8)
    picture = Image.fromarray(np.repeat(sky, large, axis=1))
    for shape in shapes:
        shape(ImageDraw.Draw(picture), large, rng)
    return np.asarray(picture.reduce(OVERSAMPLING), dtype=np.float32) / 255
