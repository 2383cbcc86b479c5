"""Build a model folder beside its place and rename it there: there is always a whole one."""

from __future__ import annotations

import ctypes
import fcntl
import filecmp
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from export.errors import ExportError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LARGE = (".onnx", ".data", ".plan")


# How staged() names its folders; a user's own hidden folders do not look like it.
_STAGED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>export|old)")


@contextmanager
def staged(repository: Path, name: str, whole: bool = True) -> Iterator[Path]:
    """Yield an empty folder that becomes ``repository/name`` if the block ends well.

    What is not a ``whole`` model never takes the place of one. If the block raises, or the process
    dies, what was there before stays as it is. Folders of dead exports are removed at the start of
    the next one.

    Raises:
        ExportError: the repository cannot be written, or something else lies at that place.
    """
    target = repository / name
    _check_target(target, whole)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _lock(repository, wait=True):  # nobody sees our folder before it is locked
            _remove_dead(repository)
            folder = repository / f".{name}.{secrets.token_hex(4)}.export"
            folder.mkdir()
            alive = ExitStack()
            alive.enter_context(_lock(folder))
    except OSError as error:
        raise ExportError(f"cannot write to {repository}: {error.strerror}") from error
    with alive:
        try:
            yield folder
            with _lock(repository, wait=True):
                if (target / "variants").is_dir():  # they stay where they are served
                    shutil.copytree(target / "variants", folder / "variants", copy_function=_link)
                _replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def share_files(folder: Path, repository: Path) -> list[str]:
    """Make a graph or weights that another model of the ``repository`` has too one file with them.

    By hard links, so that each model can still be moved or removed. Returns the names.
    """
    exports = [
        *repository.glob("[!.]*/1/export.json"),
        *repository.glob("[!.]*/variants/[!.]*/1/export.json"),
    ]
    shared = []
    for name in sorted(path.name for path in folder.iterdir() if path.suffix in _LARGE):
        for other in (export.with_name(name) for export in exports):
            linked = folder / f"{name}.linked"
            try:
                if not filecmp.cmp(folder / name, other, shallow=False):
                    continue
                os.link(other, linked)
            except OSError:  # none there, or no longer; or no hard links, or too many of them
                continue
            linked.replace(folder / name)
            shared.append(name)
            break
    return shared


def check_name(repository: Path, name: str, variant_of: str | None) -> None:
    """A server has one name for each model and variant.

    Raises:
        ExportError: another has this name.
    """
    variants = repository.glob(f"[!.]*/variants/{glob.escape(name)}/config.pbtxt")
    if any(path.parents[2].name != variant_of for path in variants):
        raise ExportError(f"{repository} has a variant {name} already; choose another --name")
    if variant_of is not None and (repository / name / "config.pbtxt").is_file():
        raise ExportError(f"{repository} has a model {name} already; choose another --name")


def _link(source: str, target: str) -> None:
    """One file with two names, or a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _check_target(target: Path, whole: bool) -> None:
    if target.is_symlink():
        raise ExportError(f"{target} is a link; give the repository it points into as --out")
    if (target / "config.pbtxt").is_file():
        if whole:
            return
        raise ExportError(
            f"{target} is a whole model, which --components does not replace by a part; "
            "choose another --name or --out"
        )
    if (target / "1" / "export.json").is_file() or not target.exists():  # a part, or nothing
        return
    if not target.is_dir() or any(target.iterdir()):
        raise ExportError(
            f"{target} exists and is no model folder (it has no config.pbtxt); "
            "choose another --name or --out"
        )


def _replace(folder: Path, target: Path) -> None:
    """Put the new folder in the target's place; the old one ends up at ``folder``, if any."""
    if not target.exists():
        folder.rename(target)
        return
    libc = ctypes.CDLL(None)
    here, there = os.fsencode(folder), os.fsencode(target)
    if libc.renameat2(_AT_FDCWD, here, _AT_FDCWD, there, _RENAME_EXCHANGE) == 0:
        return
    # A file system that cannot exchange two folders, such as NFS. Between the two renames the
    # place is empty; if we die there, the next start finds the old folder by its name.
    old = folder.with_suffix(".old")
    target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _remove_dead(repository: Path) -> None:
    """Remove what killed exports left, and put back an old folder that one had moved aside."""
    for folder in list(repository.iterdir()):
        match = _STAGED.fullmatch(folder.name)
        if match is None:
            continue
        target = repository / match["name"]
        if match["kind"] == "old" and not target.exists():
            folder.rename(target)
            continue
        with _lock(folder) as locked:
            if locked:
                shutil.rmtree(folder)


@contextmanager
def _lock(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a folder's lock, which the system drops when the process dies.

    Yields whether it is held: not if another process has it, or if the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        os.close(descriptor)
