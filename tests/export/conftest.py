"""Tiny students, and one of them exported once for all."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Once
from pipelines import tiny_longcat, tiny_sd3
from students import SIZES, write_card

from distill.adapters.sd3 import Sd3Adapter
from export.cli import main
from export.graphs import graph, write_onnx
from export.precision import PRECISIONS
from export.student import Student, load_student

OPTIONS = ["--to", "onnx", "--sizes", ",".join(map(str, SIZES)), "--max-batch", "4"]


@pytest.fixture(scope="session")
def student_folder(once: Once) -> Path:
    return once("student", lambda folder: write_card(tiny_sd3(folder, t5=True)))


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
def exported(student_folder: Path, once: Once) -> Path:
    """The model folder that ``cdm-export`` wrote for the tiny student."""

    def export(repository: Path) -> None:
        assert main([str(student_folder), *OPTIONS, "--out", str(repository)]) == 0

    return once("exported", export) / "tiny"


@pytest.fixture(scope="session")
def manifest(exported: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((exported / "1" / "export.json").read_text())
    return contents


@pytest.fixture(scope="session")
def longcat(once: Once) -> Student:
    def make(folder: Path) -> None:
        write_card(
            tiny_longcat(folder),
            name="tiny-longcat",
            architecture="longcat",
            max_sequence_length=512,
        )

    return load_student(once("longcat", make))


@pytest.fixture(scope="session")
def write_graph(once: Once) -> Callable[[Student, str, str], Path]:
    """Export one component of a student in a precision, once."""

    def write(student: Student, component: str, precision: str) -> Path:
        def make(folder: Path) -> None:
            folder.mkdir()
            made = graph(component, student.architecture, PRECISIONS[precision])
            write_onnx(made, folder / f"{component}.onnx")

        folder = once(f"graph-{student.name}-{precision}-{component}", make)
        return folder / f"{component}.onnx"

    return write
