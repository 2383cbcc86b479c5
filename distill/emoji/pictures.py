"""Pixels to tensors and back."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from distill.files import whole_file


def from_pixels(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Turn ``(B, H, W, 3)`` uint8 into ``(B, 3, H, W)`` float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pixels(images: Tensor) -> npt.NDArray[np.uint8]:
    """Turn ``(B, 3, H, W)`` in [-1, 1] into ``(B, H, W, 3)`` uint8."""
    scaled = images.float().div(2).add(0.5).clamp(0, 1).mul(255).round()
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def save_grid(images: Tensor, path: Path, columns: int, zoom: int = 2) -> None:
    """Write ``(B, 3, H, W)`` images in [-1, 1] as one PNG, row by row."""
    pixels = to_pixels(images)
    height, width = pixels.shape[1:3]
    rows = -(-len(pixels) // columns)
    grid = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pixels):
        top, left = index // columns * height, index % columns * width
        grid[top : top + height, left : left + width] = picture
    sheet = Image.fromarray(grid)
    sheet = sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)
    with whole_file(path) as temporary:
        sheet.save(temporary, format="png")
