"""Files and folders that appear whole or not at all, and pictures as a file."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import DistillError

# A full disk: OSError from Python, RuntimeError from torch's writer, and safetensors' own error.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what is written there replaces ``path`` at the end.

    Raises:
        DistillError: it cannot be written; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except _WRITE_ERRORS as error:
        raise DistillError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # where the parent is a file, say
            temporary.unlink(missing_ok=True)


def drop_unfinished(folder: Path, name: str = "") -> None:
    """Delete what a killed process was writing in ``folder``: everything, or one file or folder.

    Raises:
        DistillError: it cannot be deleted.
    """
    for temporary in folder.glob(f".{name}*.tmp"):
        try:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink()
        except OSError as error:
            raise DistillError(f"unfinished {temporary} cannot be deleted: {error}") from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path`` that takes its place at the end.

    Raises:
        DistillError: it cannot be written; ``path`` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(".tmp", f".{path.name}.", path.parent))
    except OSError as error:
        raise DistillError(f"{path} cannot be written: {error}") from error
    old = temporary.with_suffix(".old.tmp")
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's is private
        if path.exists():
            path.rename(old)  # a folder with something in it cannot be replaced in one step
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except _WRITE_ERRORS as error:
        raise DistillError(f"{path} cannot be written: {error}") from error
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def write_tensors(path: Path, tensors: dict[str, Tensor], made_of: str) -> None:
    """Keep tensors that ``read_tensors`` gives back as long as they are wanted of the same.

    Raises:
        DistillError: they cannot be written.
    """
    with whole_file(path) as temporary:
        save_file(tensors, temporary, {"made_of": made_of})


def read_tensors(path: Path, made_of: str) -> dict[str, Tensor] | None:
    """The tensors in a file, if it is whole and they were made of the same."""
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() == {"made_of": made_of}:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        pass
    return None


class StoredTensors(Mapping[str, Tensor]):
    """The tensors in safetensors files, each mapped anew when it is asked for.

    What was read goes from memory with the tensor; a file mapped as a whole would keep it.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[str, Path] = {}
        for path in paths:
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


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
