"""A few real steps of both trainings, and that a resumed run is the run itself."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from distill.emoji.__main__ import main
from distill.emoji.latents import build_pool
from distill.emoji.loop import Plan, train
from distill.emoji.teacher import sample, train_teacher
from distill.emoji.text import TEXT_LENGTH, new_tokenizer, token_ids
from distill.emoji.vae import new_vae, train_vae
from distill.errors import DistillError


def no_preview(averaged: nn.Module, path: Path) -> None:
    pass


def loss_of(module: nn.Linear, draw: int, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw)
    x = torch.randn(count, 3, generator=generator)
    return {"loss": (module(x) - x.flip(-1)).square().mean()}


def trained(run: Path, stops: list[int]) -> nn.Module:
    """Train 40 steps, in as many pieces as there are stops."""
    for stop in stops:
        torch.manual_seed(0)
        module = nn.Linear(3, 3)
        # The schedule is that of the whole run however often it is stopped.
        plan = Plan(40, 8, 0.05, warmup=5, save_every=stop)

        def loss_at(draw: int, count: int, module: nn.Linear = module, stop: int = stop):  # type: ignore[no-untyped-def]
            if draw == stop:
                raise KeyboardInterrupt
            return loss_of(module, draw, count)

        try:
            return train(plan, module, loss_at, run, no_preview)
        except KeyboardInterrupt:
            continue
    raise AssertionError("never finished")


def test_a_resumed_run_equals_a_straight_one(tmp_path: Path) -> None:
    straight = trained(tmp_path / "straight", [40])
    resumed = trained(tmp_path / "resumed", [15, 40])
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = [json.loads(line) for line in (tmp_path / "straight/log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 1.0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    module = nn.Linear(3, 3)

    def loss_at(draw: int, count: int) -> dict[str, Tensor]:
        return {"loss": loss_of(module, draw, count)["loss"] * float("nan")}

    with pytest.raises(DistillError, match="lower the learning rate"):
        train(Plan(30, 8, 0.05), module, loss_at, tmp_path, no_preview)


def test_the_tokenizer_knows_captions_and_takes_anything() -> None:
    tokenizer = new_tokenizer()
    assert tokenizer.tokenize("an owl on a purple background") == [
        "an</w>", "owl</w>", "on</w>", "a</w>", "purple</w>", "background</w>",
    ]  # fmt: skip
    ids = token_ids(tokenizer, ["", "Über-größe 🦊!", "word " * 100])
    assert ids.shape == (3, TEXT_LENGTH)
    assert int(ids.max()) < len(tokenizer)


def test_from_pictures_to_a_pipeline(tmp_path: Path) -> None:
    """One step of each training gives a pipeline that samples, saves and loads."""
    vae = train_vae(tmp_path / "vae", Plan(1, 2, 1e-3))
    assert vae.config.scaling_factor != new_vae().config.scaling_factor
    tokenizer = new_tokenizer()
    pool = build_pool(vae, tokenizer, 48, 6, 4, tmp_path / "pool.safetensors")
    assert pool.latents.shape == (10, 8, 16, 16)
    assert pool.latents.float().std().item() == pytest.approx(1, abs=0.25)
    fewer = build_pool(vae, tokenizer, 48, 3, 2, tmp_path / "pool.safetensors")
    assert (len(fewer.ids), fewer.singles) == (5, 3)  # another pool, not the cached one
    teacher = train_teacher(tmp_path / "teacher", Plan(1, 2, 1e-3), vae, pool, pairs=0.5)
    pipeline = teacher.pipeline(vae, tokenizer)
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "pipeline", text_encoder_3=None, tokenizer_3=None
    )
    loaded.set_progress_bar_config(disable=True)
    ours, theirs = (sample(p, ["a fox"], steps=2) for p in (pipeline, loaded))
    assert torch.equal(ours, theirs)


def test_memory_layout_does_not_change_the_training(tmp_path: Path) -> None:
    """Gradients share one buffer, and the fused optimizer walks it as the weights lie."""
    weights = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        module = nn.Conv2d(3, 4, 3).to(memory_format=layout)

        def loss_at(draw: int, count: int, module: nn.Conv2d = module) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(draw)
            x = torch.randn(count, 3, 8, 8, generator=generator)
            return {"loss": (module(x) - 1).square().mean()}

        run = tmp_path / str(layout)
        weights.append(train(Plan(10, 4, 0.01, warmup=1), module, loss_at, run, no_preview))
    for a, b in zip(*(module.parameters() for module in weights), strict=True):
        torch.testing.assert_close(a.contiguous(), b.contiguous(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("subjects", ["1", "65", "many"])
def test_refuses_a_vocabulary_that_does_not_exist(
    subjects: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["teacher", "--subjects", subjects])
    assert stopped.value.code == 2
    assert "expected a whole number from 2 to 64" in capsys.readouterr().err
