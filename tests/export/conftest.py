"""Tiny students: one exported in this process and, at the same time, in another."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipelines import tiny_longcat, tiny_sd3
from students import SIZES, write_card

from distill.adapters.sd3 import Sd3Adapter
from export.cli import main
from export.graphs import graph, write_onnx
from export.precision import PRECISIONS
from export.student import Student, load_student

OPTIONS = ["--to", "onnx", "--sizes", ",".join(map(str, SIZES)), "--max-batch", "4"]


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tiny_sd3(tmp_path_factory.mktemp("students") / "folder", t5=True))


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
        command = [sys.executable, "-m", "export.cli", str(student), *OPTIONS]
        process = subprocess.Popen(
            [*command, "--out", str(repository)],
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
    assert main([str(student_folder), *OPTIONS, "--out", str(repository)]) == 0
    return repository / "tiny"


@pytest.fixture(scope="session")
def manifest(exported: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((exported / "1" / "export.json").read_text())
    return contents


@pytest.fixture(scope="session")
def longcat(tmp_path_factory: pytest.TempPathFactory) -> Student:
    folder = tiny_longcat(tmp_path_factory.mktemp("longcat") / "folder")
    write_card(folder, name="tiny-longcat", architecture="longcat", max_sequence_length=512)
    return load_student(folder)


@pytest.fixture(scope="session")
def write_graph(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Student, str, str], Path]:
    """Export one component of a student in a precision, once."""
    folder = tmp_path_factory.mktemp("graphs")

    def write(student: Student, component: str, precision: str) -> Path:
        path = folder / f"{student.name}-{precision}" / f"{component}.onnx"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_onnx(graph(component, student.architecture, PRECISIONS[precision]), path)
        return path

    return write
