"""One picture that shows what the models draw: teacher and student, the same captions and seeds."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distill.files import whole_file

_ZOOM = 2
_LABEL_WIDTH = 150
_CAPTION_HEIGHT = 44
_GAP = 8
_INK = (40, 40, 48)


def save_gallery(rows: Sequence[tuple[str, Tensor]], captions: Sequence[str], path: Path) -> None:
    """Write labelled rows of pictures ``(B, 3, H, W)`` in [0, 1] above their B captions.

    Raises:
        DistillError: the file cannot be written.
    """
    height, width = (_ZOOM * side for side in rows[0][1].shape[-2:])
    sheet = Image.new(
        "RGB",
        (
            _LABEL_WIDTH + len(captions) * (width + _GAP),
            len(rows) * (height + _GAP) + _CAPTION_HEIGHT,
        ),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for row, (label, pictures) in enumerate(rows):
        top = row * (height + _GAP)
        draw.multiline_text((8, top + height // 2 - 16), label, fill=_INK, font=font)
        levels = pictures.float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
        for column, pixels in enumerate(np.asarray(levels.cpu())):
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (_LABEL_WIDTH + column * (width + _GAP), top))
    for column, caption in enumerate(captions):
        lines = "\n".join(textwrap.wrap(caption, 21))
        place = (_LABEL_WIDTH + column * (width + _GAP), len(rows) * (height + _GAP))
        draw.multiline_text(place, lines, fill=_INK, font=font, spacing=1)
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
