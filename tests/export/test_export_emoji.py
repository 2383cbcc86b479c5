"""The shipped student, whole: what a user of ``make serve`` gets."""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from students import plan_of

from cdm_serve.engine.job import Job
from cdm_serve.engine.manifest import COMPONENTS, Manifest, read_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import open_runtime
from cdm_serve.engine.scheduler import Scheduler
from cdm_serve.engine.tokenizers import PromptTokenizer
from cdm_serve.engine.warmup import measure
from distill.demo.emoji.compose import BACKGROUNDS
from distill.demo.emoji.judge import ARRANGEMENTS, load_judge
from distill.demo.emoji.score import look
from distill.demo.emoji.vocabulary import SUBJECTS
from export.cli import main
from export.reference import cases
from export.student import load_student
from export.verify import candidates

STUDENT = Path(__file__).parents[2] / "models" / "emoji-student"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emoji")
    command = [str(STUDENT), "--to", "onnx", "--out", str(out), "--sizes", "64x64,72x56"]
    assert main(command) == 0
    return out / STUDENT.name / "1"


@pytest.mark.slow
def test_a_fox_becomes_a_panda_and_half_of_it_stays(folder: Path) -> None:
    """Subject, scene and place of 200 edits; of an inpainted half the other one, to the bit."""
    pipeline = Pipeline(read_manifest(folder), open_runtime("openvino", "f32"))
    scheduler = Scheduler(pipeline, measure(pipeline, 16, 0.5)[0], cache_bytes=2**20)

    def drawn(jobs: list[Job]) -> list[Any]:
        futures: list[Future[Any]] = [Future() for _ in jobs]
        for number, (job, future) in enumerate(zip(jobs, futures, strict=True)):
            scheduler.submit(str(number), job, future.set_result)
        return [future.result(300).image for future in futures]

    judge = load_judge(STUDENT.parent / "emoji-judge")

    def pixels(pictures: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255

    def seen(pictures: list[Any]) -> list[Any]:
        background, arrangement, subject, *_ = look(judge, pixels(pictures))[1]
        named = [SUBJECTS[i][0] for i in subject.argmax(1)]
        scenes = [BACKGROUNDS[i] for i in background.argmax(1)]
        places = [ARRANGEMENTS[i] for i in arrangement.argmax(1)]
        return [*zip(named, scenes, (place[1] for place in places), strict=True)]

    numbers = range(200)
    foxes = drawn([Job("a fox in the snow", seed, 4, "64x64") for seed in numbers])
    edit = {"prompt": "a panda in the snow", "steps": 4, "size": "64x64"}
    pandas = drawn(
        [Job(seed=200 + k, start=1, tensors={"picture": foxes[k]}, **edit) for k in numbers]
    )
    placed = [("panda", "snow", place) for _, _, place in seen(foxes)]
    right = [a == b for a, b in zip(seen(pandas), placed, strict=True)]
    print(f"{sum(right)} of {len(right)} are right")
    assert sum(right) >= 180
    pair = drawn([Job("a fox left of a fox in the snow", 3, 4, "64x64")])[0]
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    prompt, tensors = "a panda left of a fox in the snow", {"picture": pair, "mask": mask}
    painted = drawn([Job(prompt, 5, 4, "64x64", tensors=tensors)])[0]
    scheduler.close()
    assert np.array_equal(painted[:, 32:], pair[:, 32:])
    *_, left, right_one = look(judge, pixels([painted]))[1]
    assert [SUBJECTS[int(each.argmax())][0] for each in (left, right_one)] == ["panda", "fox"]


@pytest.mark.slow
def test_pictures_are_diffusers_and_every_batch_gives_the_same_bits(folder: Path) -> None:
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
