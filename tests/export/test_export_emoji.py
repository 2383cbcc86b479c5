"""The shipped student, whole: what a user of ``make serve`` gets."""

import json
from pathlib import Path

import numpy as np
import pytest

from export.cases import Cases
from export.cli import main
from export.runtimes import runtimes
from export.sizes import Size
from export.student import load_student
from export.tokenizers import read_tokenizers

STUDENT = Path(__file__).parents[2] / "models" / "emoji-student"
SIZES = (Size(64, 64), Size(72, 56))


@pytest.mark.slow
def test_pictures_are_diffusers_and_every_batch_gives_the_same_bits(tmp_path: Path) -> None:
    command = [str(STUDENT), "--to", "onnx", "--out", str(tmp_path), "--sizes", "64x64,72x56"]
    assert main(command) == 0
    folder = tmp_path / STUDENT.name / "1"
    contents = json.loads((folder / "export.json").read_text())
    assert contents["max_batch"] == 16
    assert contents["verification"]["picture"]["psnr_db"] >= 60
    served = [r for r in runtimes("fp32") if r.name in contents["runtimes"]]
    assert served[0].name == "openvino-f32"
    student = load_student(STUDENT)
    tokenizers = read_tokenizers(student.architecture.tokenizers(), folder)
    cases = Cases(student, tokenizers, SIZES, max_batch=16)
    for component in ("text_encoder", "transformer", "vae_decoder"):
        full = [case for case in cases.of(component) if case.batch == 16]
        for runtime in served:
            session = runtime.open(folder / f"{component}.onnx")
            for case in full:
                together = session.run(case.inputs)
                for batch in range(1, 16):
                    part = session.run({name: x[:batch] for name, x in case.inputs.items()})
                    for name, rows in part.items():
                        assert np.array_equal(rows, together[name][:batch]), (runtime.name, batch)
