"""Plain colours and six drawn scenes, as float pictures in [0, 1]."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from distill.demo.emoji.vocabulary import COLORS

Pixels = npt.NDArray[np.float32]
# Scenes are drawn larger and reduced, which smooths their edges.
OVERSAMPLING = 4


def _gradient(size: int, top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    ramp = np.linspace(0, 1, size)[:, None, None]
    column = ((1 - ramp) * np.array(top) + ramp * np.array(bottom)).astype(np.uint8)
    return Image.fromarray(np.repeat(column, size, axis=1))


def _ground(
    picture: Image.Image, rng: np.random.Generator, color: tuple[int, int, int], height: float
) -> None:
    """Fill the lower part with a gently waving ground; ``height`` is where it begins (0 to 1)."""
    size = picture.width
    phase = rng.uniform(0, 2 * np.pi)
    xs = np.arange(size + 1)
    ys = size * (height + 0.03 * np.sin(2 * np.pi * xs / size + phase))
    points = [*zip(xs.tolist(), ys.tolist(), strict=True), (size, size), (0, size)]
    ImageDraw.Draw(picture).polygon(points, fill=color)


def _dots(
    picture: Image.Image, rng: np.random.Generator, count: int, radius: float, bottom: float
) -> None:
    draw, size = ImageDraw.Draw(picture), picture.width
    for x, y in rng.uniform((0, 0), (size, bottom * size), (count, 2)):
        reach = radius * size
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(255, 255, 255))


def _disc(picture: Image.Image, x: float, y: float, radius: float, color: str) -> None:
    size = picture.width
    box = tuple(size * value for value in (x - radius, y - radius, x + radius, y + radius))
    ImageDraw.Draw(picture).ellipse(box, fill=color)


def _grass(size: int, rng: np.random.Generator) -> Image.Image:
    picture = _gradient(size, (120, 190, 250), (200, 230, 255))
    _ground(picture, rng, (96, 172, 70), 0.55)
    return picture


def _night(size: int, rng: np.random.Generator) -> Image.Image:
    picture = _gradient(size, (8, 12, 48), (40, 44, 100))
    _dots(picture, rng, 14, 0.009, 1.0)
    _disc(picture, 0.86, 0.14, 0.08, "#fff3c4")
    return picture


def _snow(size: int, rng: np.random.Generator) -> Image.Image:
    picture = _gradient(size, (150, 180, 210), (205, 220, 235))
    _ground(picture, rng, (245, 249, 255), 0.6)
    _dots(picture, rng, 18, 0.012, 0.6)
    return picture


def _desert(size: int, rng: np.random.Generator) -> Image.Image:
    picture = _gradient(size, (110, 185, 235), (250, 230, 190))
    _disc(picture, 0.14, 0.14, 0.08, "#ffd84d")
    _ground(picture, rng, (226, 178, 108), 0.58)
    return picture


def _sea(size: int, rng: np.random.Generator) -> Image.Image:
    picture = _gradient(size, (175, 220, 250), (215, 240, 255))
    _ground(picture, rng, (30, 110, 180), 0.5)
    _ground(picture, rng, (20, 85, 150), 0.75)
    return picture


def _sunset(size: int, rng: np.random.Generator) -> Image.Image:
    picture = _gradient(size, (90, 50, 120), (255, 150, 70))
    _disc(picture, 0.5, 0.7, 0.14, "#ffe08a")
    _ground(picture, rng, (70, 40, 60), 0.72)
    return picture


_SCENES: dict[str, Callable[[int, np.random.Generator], Image.Image]] = {
    "grass": _grass,
    "night": _night,
    "snow": _snow,
    "desert": _desert,
    "sea": _sea,
    "sunset": _sunset,
}


def background(name: str, size: int, rng: np.random.Generator) -> Pixels:
    """Draw a colour or scene of the vocabulary, ``(size, size, 3)`` float32 in [0, 1]."""
    if name in COLORS:
        color = np.array(COLORS[name], dtype=np.float32) / 255
        return np.broadcast_to(color, (size, size, 3)).copy()
    drawn = _SCENES[name](size * OVERSAMPLING, rng).reduce(OVERSAMPLING)
    return np.asarray(drawn, dtype=np.float32) / 255
