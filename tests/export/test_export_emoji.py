"""The shipped student, whole: what a user of ``make serve`` gets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from students import plan_of

from cdm_serve.engine.manifest import COMPONENTS, Manifest, read_manifest
from cdm_serve.engine.tokenizers import PromptTokenizer
from export.cli import main
from export.student import load_student
from export.verify import candidates, cases

STUDENT = Path(__file__).parents[2] / "models" / "emoji-student"


@pytest.mark.slow
def test_pictures_are_diffusers_and_every_batch_gives_the_same_bits(tmp_path: Path) -> None:
    command = [str(STUDENT), "--to", "onnx", "--out", str(tmp_path), "--sizes", "64x64,72x56"]
    assert main(command) == 0
    folder = tmp_path / STUDENT.name / "1"
    contents = json.loads((folder / "export.json").read_text())
    assert contents["max_batch"] == 16
    assert contents["verification"]["picture"]["psnr_db"] >= 60
    served = [each for each in candidates("fp32") if each.name in contents["runtimes"]]
    assert served[0].name == "openvino-f32"
    student, plan = load_student(STUDENT), plan_of(max_batch=16)
    for component in COMPONENTS:
        full = [case for case in cases(student, plan, component) if case.batch == 16]
        for candidate in served:
            graph = candidate.runtime.load(folder / f"{component}.onnx")
            for case in full:
                inputs = graph_inputs(read_manifest(folder), case.rows)
                together = graph.run(inputs)
                for batch in range(1, 16):
                    part = graph.run({name: x[:batch] for name, x in inputs.items()})
                    for name, rows in part.items():
                        assert np.array_equal(rows, together[name][:batch]), (candidate.name, batch)


def graph_inputs(manifest: Manifest, rows: dict[str, Any]) -> dict[str, Any]:
    if "prompts" not in rows:
        return rows
    tokens = PromptTokenizer(manifest.tokenizers)(rows["prompts"])
    return {f"input_ids_{k}": ids for k, ids in enumerate(tokens.ids)}
