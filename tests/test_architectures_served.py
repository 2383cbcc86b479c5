"""Every architecture from a student to pictures: export, one Triton for all, OpenAI's client."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server, Start
from openai import OpenAI
from PIL import Image
from students import FAMILIES, family

from export.cli import main
from export.student import load_student

pytestmark = pytest.mark.slow

PROMPT = "a fox says 'open', 狐 🦊 \u201cq\u201d"
OPTIONS = ["--to", "onnx", "--sizes", "72x56,64x64", "--max-batch", "4"]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    for name in FAMILIES:
        family(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def exports(students: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for name in FAMILIES:
        assert main([str(students / name), *OPTIONS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def served(exports: Path, start: Start) -> Server:
    server = start("--model-repository", str(exports))
    server.wait_ready()
    return server


def generate(server: Server, name: str, n: int = 1, **more: Any) -> list[bytes]:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.images.generate(
        model=name, prompt=PROMPT, n=n, size="72x56", extra_body={"seed": 7} | more
    )
    assert answer.data and len(answer.data) == n
    return [base64.b64decode(each.b64_json or "") for each in answer.data]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_picture_is_diffusers_own(students: Path, served: Server, name: str) -> None:
    adapter = load_student(students / name).adapter
    reference = adapter.picture(PROMPT, 4, 56, 72, torch.Generator().manual_seed(7))
    first, *others = generate(served, name, n=4)
    found = np.asarray(Image.open(io.BytesIO(first)))
    assert found.shape == (56, 72, 3) and len({first, *others}) == 4
    error = np.square(found.astype(float) - np.asarray(reference, float)).mean()
    # bfloat16 arithmetic, where the CPU has it, costs a few levels; another picture, 10 dB.
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 35


@pytest.mark.parametrize("name", FAMILIES)
def test_company_changes_no_byte(served: Server, name: str) -> None:
    """Sixteen at once with different numbers of steps, against each alone."""
    steps = [2, 4, 3, 1] * 4
    alone = {count: generate(served, name, steps=count) for count in set(steps)}
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda count: generate(served, name, steps=count), steps))
    assert together == [alone[count] for count in steps]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_second_export_has_the_same_bytes(
    students: Path, exports: Path, tmp_path: Path, name: str
) -> None:
    again = [*OPTIONS, "--verify", "none", "--out", str(tmp_path)]
    assert main([str(students / name), *again]) == 0
    first, second = (
        json.loads((folder / name / "1" / "export.json").read_text())
        for folder in (exports, tmp_path)
    )
    assert first["fingerprint"] == second["fingerprint"]
