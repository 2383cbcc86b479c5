"""The sheet of subjects: rendered once from the emoji font, shipped as one PNG.

With the sheet in the package, composing pictures needs neither the font nor its renderer.
"""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from distill.demo.emoji.vocabulary import SUBJECTS
from distill.errors import DistillError
from distill.files import whole_file

SHEET = Path(__file__).with_name("sprites.png")
CELL = 64
COLUMNS = 8
# The one size at which Noto Color Emoji holds its bitmaps.
FONT_SIZE = 109


def render_sheet(font_path: Path, sheet: Path = SHEET) -> None:
    """Render every subject of the vocabulary from an emoji font into ``sheet``.

    Raises:
        DistillError: the font cannot be read.
    """
    try:
        font = ImageFont.truetype(str(font_path), FONT_SIZE)
    except OSError as error:
        raise DistillError(
            f"cannot read the font {font_path} ({error}); "
            "install Debian's fonts-noto-color-emoji or pass --font"
        ) from None
    rows = -(-len(SUBJECTS) // COLUMNS)
    picture = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, (_, code_point) in enumerate(SUBJECTS):
        glyph = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
        ImageDraw.Draw(glyph).text((10, 10), chr(code_point), font=font, embedded_color=True)
        glyph = glyph.crop(glyph.getbbox())
        glyph.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        left = index % COLUMNS * CELL + (CELL - glyph.width) // 2
        top = index // COLUMNS * CELL + (CELL - glyph.height) // 2
        picture.paste(glyph, (left, top))
    with whole_file(sheet) as temporary:
        picture.save(temporary, format="png", optimize=True)


@cache
def sprite(index: int, size: int) -> npt.NDArray[np.float32]:
    """Return subject ``index`` as ``(size, size, 4)`` in [0, 1], colours multiplied by alpha."""
    left, top = index % COLUMNS * CELL, index // COLUMNS * CELL
    with Image.open(SHEET) as sheet:
        cell = sheet.crop((left, top, left + CELL, top + CELL))
    pixels = np.asarray(cell, dtype=np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    # Resized with its colours multiplied by alpha, so that no dark fringe appears.
    resized = np.empty((size, size, 4), dtype=np.float32)
    for channel in range(4):
        plane = Image.fromarray(pixels[..., channel])
        resized[..., channel] = plane.resize((size, size), Image.Resampling.LANCZOS)
    return resized.clip(0, 1)
