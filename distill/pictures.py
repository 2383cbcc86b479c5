"""Pictures in a grid, as a file."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image
from torch import Tensor

from distill.files import whole_file


def save_grid(pictures: Tensor, path: Path, columns: int | None = None) -> None:
    """Write pictures (B, 3, H, W) in [0, 1] as one PNG, row by row.

    Args:
        pictures: values outside [0, 1] are cut off.
        path: where to.
        columns: pictures in a row; without it the grid is nearly square.

    Raises:
        DistillError: it cannot be written.
    """
    count, _, height, width = pictures.shape
    columns = columns or math.ceil(math.sqrt(count))
    grid = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), "white")
    levels = pictures.float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu()
    for i, pixels in enumerate(levels.numpy()):
        grid.paste(Image.fromarray(pixels), (i % columns * width, i // columns * height))
    with whole_file(path) as temporary:
        grid.save(temporary, format="PNG")
