"""The judge knows drawn pictures, is not led by captions, and its numbers are right."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.demo.emoji.compose import Composition, pair, single
from distill.demo.emoji.composer import drawn
from distill.demo.emoji.judge import JudgeNetwork, answers, load_judge, save_judge, train_judge
from distill.demo.emoji.score import (
    QUESTIONS,
    feature_gaussian,
    held_out,
    look,
    rate,
    right,
    score_pictures,
)
from distill.demo.emoji.softening import soften
from distill.demo.emoji.training import Plan
from distill.demo.emoji.vocabulary import SUBJECTS
from distill.errors import DistillError
from distill.frechet import frechet_distance

SHIPPED = Path(__file__).parents[4] / "models" / "emoji-judge"
WORDS = {name: index for index, (name, _) in enumerate(SUBJECTS)}


@pytest.fixture(scope="module")
def judge() -> JudgeNetwork:
    return load_judge(SHIPPED)


def verdict(
    judge: JudgeNetwork, shown: list[Composition], asked: list[Composition]
) -> dict[str, list[int]]:
    """What the judge says of pictures of ``shown`` where ``asked`` were wanted."""
    _, found = look(judge, drawn(shown, 0))
    return {name: value.tolist() for name, value in right(found, asked).items()}


def test_the_shipped_judge_is_as_good_as_it_says(judge: JudgeNetwork) -> None:
    stated = json.loads((SHIPPED / "judge.json").read_text())["held_out_accuracy"]["drawn"]
    assert min(stated.values()) >= 0.98
    compositions = held_out(300, len(SUBJECTS), seed=20_000)
    scores = score_pictures(drawn(compositions, 20_000), compositions, judge)
    for question in QUESTIONS:
        assert scores["accuracy"][question]["rate"] > stated[question] - 0.02, question


def test_soft_pictures_count(judge: JudgeNetwork) -> None:
    compositions = held_out(200, len(SUBJECTS), seed=30_000)
    pictures = soften(drawn(compositions, 0), torch.Generator().manual_seed(0))
    scores = score_pictures(pictures, compositions, judge)
    assert min(found["rate"] for found in scores["accuracy"].values()) > 0.95


def test_a_wrong_single_is_wrong_in_what_is_wrong(judge: JudgeNetwork) -> None:
    asked = single(WORDS["fox"], "small", "on the left", "purple")
    shown = [
        asked,
        single(WORDS["owl"], "small", "on the left", "purple"),
        single(WORDS["fox"], "large", "on the left", "purple"),
        single(WORDS["fox"], "small", "at the top", "purple"),
        single(WORDS["fox"], "small", "on the left", "snow"),
        pair(WORDS["fox"], "left of", WORDS["owl"], "purple"),
    ]
    found = verdict(judge, shown, [asked] * len(shown))
    assert found["subject"] == [1, 0, 1, 1, 1, 0]
    assert found["size"] == [1, 1, 0, 1, 1, 0]
    assert found["position"] == [1, 1, 1, 0, 1, 0]
    assert found["background"] == [1, 1, 1, 1, 0, 1]
    assert found["pair"] == found["relation"] == [-1] * 6


def test_a_wrong_pair_is_wrong_in_what_is_wrong(judge: JudgeNetwork) -> None:
    fox, owl, car = WORDS["fox"], WORDS["owl"], WORDS["car"]
    asked = pair(fox, "left of", owl, "white")
    shown = [
        asked,
        pair(owl, "right of", fox, "white"),  # the same picture in other words
        pair(owl, "left of", fox, "white"),
        pair(fox, "above", owl, "white"),
        pair(fox, "left of", car, "white"),
        single(fox, "large", "", "white"),
    ]
    found = verdict(judge, shown, [asked] * len(shown))
    assert found["pair"] == [1, 1, 1, 1, 0, 0]
    assert found["relation"] == [1, 1, 0, 0, 1, 0]
    assert found["subject"] == [-1] * 6


def test_two_captions_of_one_picture_have_one_answer() -> None:
    fox, owl = WORDS["fox"], WORDS["owl"]
    for relation, opposite in [("left of", "right of"), ("above", "below")]:
        both = [pair(fox, relation, owl, "sea"), pair(owl, opposite, fox, "sea")]
        assert torch.equal(*answers(both))


def test_shares_have_wilsons_interval() -> None:
    """Brown, Cai and DasGupta (2001): 95 % of 9 in 10."""
    found = rate(torch.tensor([1] * 9 + [0] + [-1] * 5))
    assert (found["right"], found["of"], found["rate"]) == (9, 10, 0.9)
    assert (found["low"], found["high"]) == pytest.approx((0.5958, 0.9821), abs=1e-3)
    assert rate(torch.full((3,), -1))["rate"] is None


def test_frechet_distance_of_known_gaussians() -> None:
    """Independent coordinates: the sum of squared differences of means and deviations."""

    def sample(mean: list[float], deviation: list[float]) -> Tensor:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((4000, 3))
        x = (x - x.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
        return torch.from_numpy(x * deviation + mean)

    a = feature_gaussian(sample([0, 0, 0], [1, 1, 2]))
    b = feature_gaussian(sample([1, 0, -2], [1, 3, 1]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 4 + 1, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_grows_with_the_damage(judge: JudgeNetwork) -> None:
    compositions = held_out(250, len(SUBJECTS), seed=40_000)
    pictures = drawn(compositions, 7)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    damaged = [(pictures + strength * noise).clamp(0, 1) for strength in (0.0, 0.1, 0.4)]
    found = [score_pictures(each, compositions, judge)["frechet"] for each in damaged]
    assert found[0] < found[1] < found[2]


def test_one_step_of_training_gives_a_judge_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.demo.emoji.judge._POOL", 200)
    trained = train_judge(tmp_path / "run", Plan(1, 4, 1e-3))
    save_judge(trained, tmp_path / "judge", {"pictures": 4})
    loaded = load_judge(tmp_path / "judge")
    for a, b in zip(loaded.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    card = json.loads((tmp_path / "judge" / "judge.json").read_text())
    assert card["pictures"] == 4
    assert len(card["classes"]["subject"]) == 64


def test_a_missing_or_foreign_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="holds no judge"):
        load_judge(tmp_path)
    shutil.copytree(SHIPPED.parent / "emoji-student" / "vae", tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "vae" / "model.safetensors"
    )
    with pytest.raises(DistillError, match="another vocabulary"):
        load_judge(tmp_path / "vae")
