"""One tiny student, exported once in this process and once, at the same time, in another."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipelines import tiny_sd3

from distill.adapters import Sd3Adapter
from export.cli import main
from export.student import Student, load_student

CARD: dict[str, Any] = {
    "format": 1,
    "name": "tiny",
    "architecture": "sd3",
    "steps": 4,
    "sigmas": [1.0, 0.75, 0.5, 0.25],
    "guidance_scale": 1.0,
    "max_sequence_length": 0,
    "height": 64,
    "width": 64,
}
# 72x56 has 9 x 7 patches, where the position embeddings' crop is easily one row off.
SIZES = "64x64,72x56"


def write_card(folder: Path, **changes: Any) -> Path:
    (folder / "cdm.json").write_text(json.dumps(CARD | changes), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tiny_sd3(tmp_path_factory.mktemp("students") / "folder"))


@pytest.fixture(scope="session")
def student(student_folder: Path) -> Student:
    return load_student(student_folder)


@pytest.fixture(scope="session")
def adapter(student: Student) -> Sd3Adapter:
    return student.adapter


@pytest.fixture
def student_copy(student_folder: Path, tmp_path: Path) -> Path:
    """The student, to be damaged."""
    return Path(shutil.copytree(student_folder, tmp_path / "student"))


@pytest.fixture(scope="session")
def run_export() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``cdm-export`` in a process of its own."""
    started = []

    def start(student: Path, repository: Path, **environment: str) -> subprocess.Popen[str]:
        options = ["--to", "onnx", "--out", str(repository), "--sizes", SIZES]
        process = subprocess.Popen(
            [sys.executable, "-m", "export.cli", str(student), *options],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:  # nobody waited for it
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def second_export(
    student_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    run_export: Callable[..., subprocess.Popen[str]],
) -> Callable[[], Path]:
    """The same export from another process with another hash seed; waits for it when called."""
    repository = tmp_path_factory.mktemp("second")
    process = run_export(student_folder, repository, PYTHONHASHSEED="12345")

    def wait() -> Path:
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return repository / "tiny"

    return wait


@pytest.fixture(scope="session")
def exported(
    student_folder: Path, tmp_path_factory: pytest.TempPathFactory, second_export: object
) -> Path:
    """The model folder that ``cdm-export`` wrote for the tiny student."""
    repository = tmp_path_factory.mktemp("model_repository")
    arguments = [str(student_folder), "--to", "onnx", "--out", str(repository), "--sizes", SIZES]
    assert main(arguments) == 0
    return repository / "tiny"


@pytest.fixture(scope="session")
def manifest(exported: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((exported / "1" / "export.json").read_text())
    return contents
