"""A few real steps of both trainings, and that a resumed run is the run itself."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusion3Pipeline
from pipelines import tiny_sd3
from torch import Tensor, nn
from transformers import CLIPTokenizer

from distill.demo.emoji.cli import main
from distill.demo.emoji.composer import drawn
from distill.demo.emoji.pool import draw_pool, latent_pool
from distill.demo.emoji.teacher import Teacher, sample_pictures, train_teacher, warm_start
from distill.demo.emoji.text import TEXT_LENGTH, new_tokenizer, token_ids
from distill.demo.emoji.training import Plan, train
from distill.demo.emoji.vae import new_vae, train_vae
from distill.errors import DistillError
from distill.recipe import OptimiserRecipe

MODELS = Path(__file__).parents[4] / "models"


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing tens of thousands takes seconds, and so does restoring hundreds."""
    monkeypatch.setattr("distill.demo.emoji.vae._POOL", 200)
    monkeypatch.setattr("distill.demo.emoji.tiny._POOL", 64)
    monkeypatch.setattr("distill.demo.emoji.vae._HELD_OUT", 32)


def no_preview() -> Tensor:
    return torch.zeros(1, 3, 8, 8)


def loss_of(module: nn.Linear, draw: int, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw)
    x = torch.randn(count, 3, generator=generator)
    return {"loss": (module(x) - x.flip(-1)).square().mean()}


def trained(run: Path, limits: list[float]) -> nn.Module:
    """Train 40 steps, in as many calls as there are limits in minutes."""
    for minutes in limits:
        torch.manual_seed(0)
        module = nn.Linear(3, 3)
        plan = Plan(40, 8, 0.05, OptimiserRecipe(warmup=5), minutes=minutes)

        def loss_at(draw: int, count: int, module: nn.Linear = module) -> dict[str, Tensor]:
            return loss_of(module, draw, count)

        train(plan, module, loss_at, run, no_preview)
    return module


def test_a_run_in_pieces_equals_a_straight_one(tmp_path: Path) -> None:
    straight = trained(tmp_path / "straight", [math.inf])
    short = trained(tmp_path / "pieces", [1e-9])
    pieces = trained(tmp_path / "pieces", [math.inf])
    for a, b, c in zip(*(m.parameters() for m in (straight, pieces, short)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    rows = [json.loads(line) for line in (tmp_path / "straight/log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 1.0


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, [math.inf])
    with pytest.raises(DistillError, match=r"parameters was 12 in .* and is now 20"):
        train(Plan(40, 8, 0.05), nn.Linear(4, 4), lambda draw, count: {}, tmp_path, no_preview)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    module = nn.Linear(3, 3)

    def loss_at(draw: int, count: int) -> dict[str, Tensor]:
        return {"loss": loss_of(module, draw, count)["loss"] * float("nan")}

    with pytest.raises(DistillError, match="lower the learning rate"):
        train(Plan(30, 8, 0.05), module, loss_at, tmp_path, no_preview)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return new_tokenizer()


def test_the_tokenizer_knows_captions_and_takes_anything(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.tokenize("an owl on a purple background") == [
        "an</w>", "owl</w>", "on</w>", "a</w>", "purple</w>", "background</w>",
    ]  # fmt: skip
    ids = token_ids(tokenizer, ["", "Über-größe 🦊!", "word " * 100])
    assert ids.shape == (3, TEXT_LENGTH)
    assert int(ids.max()) < len(tokenizer)


def test_the_shipped_models_read_with_this_tokenizer(tokenizer: CLIPTokenizer) -> None:
    shipped = CLIPTokenizer.from_pretrained(MODELS / "emoji-teacher" / "tokenizer")
    assert shipped.get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_from_pictures_to_a_pipeline(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    """One step of each training gives a pipeline that samples, saves and loads."""
    vae = train_vae(tmp_path / "vae", Plan(1, 2, 1e-3))
    assert vae.config.scaling_factor != new_vae().config.scaling_factor
    pool = latent_pool(vae, tokenizer, 48, 6, 4, tmp_path / "pool.safetensors")
    assert pool.latents.shape == (10, 8, 16, 16)
    assert pool.latents.float().std().item() == pytest.approx(1, abs=0.25)
    fewer = latent_pool(vae, tokenizer, 48, 3, 2, tmp_path / "pool.safetensors")
    assert (len(fewer.ids), fewer.singles) == (5, 3)  # another pool, not the cached one
    plan = Plan(1, 2, 1e-3)
    teacher = train_teacher(tmp_path / "teacher", plan, vae, tokenizer, pool, pairs=0.5)
    pipeline = teacher.pipeline(vae, tokenizer)
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "pipeline", text_encoder_3=None, tokenizer_3=None
    )
    loaded.set_progress_bar_config(disable=True)
    ours, theirs = (sample_pictures(p, ["a fox"], steps=2) for p in (pipeline, loaded))
    assert torch.equal(ours, theirs)

    newer = Teacher(tokenizer)
    warm_start(newer, tokenizer, tmp_path / "pipeline")
    for a, b in zip(newer.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_tiny_decoder_comes_near_the_full_one(tmp_path: Path, capsys) -> None:
    """And a resumed training goes on with the same pictures."""
    ask = ["tiny", str(MODELS / "emoji-teacher"), "--batch", "4", "--folder", str(tmp_path / "run")]
    found = []
    for steps in ("1", "40"):
        assert main([*ask, "--steps", steps, "--out", str(tmp_path / "tiny")]) == 0
        found.append(float(capsys.readouterr().out.split(" dB from the full")[0].split()[-1]))
    assert found[0] + 1 < found[1] < 30
    tiny = AutoencoderTiny.from_pretrained(tmp_path / "tiny")
    assert not any(weight.any() for weight in tiny.encoder.parameters())


@pytest.mark.slow
def test_a_decoder_is_trained_on_alone(tmp_path: Path, capsys) -> None:
    """The encoder stays bit for bit; a decoder that became worse is not taken."""
    torch.manual_seed(0)
    folder = tmp_path / "pipeline/vae"
    new_vae().to(torch.float16).save_pretrained(folder)
    before = AutoencoderKL.from_pretrained(folder).state_dict()
    ask = ["decoder", str(tmp_path / "pipeline"), "--steps", "3", "--batch", "2"]
    assert main([*ask, "--folder", str(tmp_path / "run"), "--rate", "0.02"]) == 0
    after = AutoencoderKL.from_pretrained(folder).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    capsys.readouterr()

    assert main([*ask, "--folder", str(tmp_path / "wild"), "--rate", "1e4"]) == 2
    assert f"{folder} is better and stays" in capsys.readouterr().err
    kept = AutoencoderKL.from_pretrained(folder).state_dict()
    assert all(torch.equal(kept[name], after[name]) for name in after)


def test_a_pools_latents_are_its_captions_pictures(
    tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    """Decoded again by the shipped autoencoder, a picture is the drawn one."""
    vae = AutoencoderKL.from_pretrained(MODELS / "emoji-teacher" / "vae", dtype=torch.float32)
    pool = latent_pool(vae, tokenizer, 48, 12, 4, tmp_path / "pool.safetensors")
    latents = pool.latents.float()
    with torch.no_grad():
        restored = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    error = (restored / 2 + 0.5 - drawn(draw_pool(48, 12, 4), 0)).square().mean().item()
    assert -10 * math.log10(error) > 22  # dB; the pictures of two rows are some 8 dB apart


def test_a_teacher_of_another_vocabulary_is_no_start(
    tmp_path: Path, tokenizer: CLIPTokenizer
) -> None:
    tiny_sd3(tmp_path)
    with pytest.raises(DistillError, match="another vocabulary"):
        warm_start(Teacher(tokenizer), tokenizer, tmp_path)


@pytest.mark.parametrize("subjects", ["1", "65", "many"])
def test_refuses_a_vocabulary_that_does_not_exist(
    subjects: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["teacher", "--subjects", subjects])
    assert stopped.value.code == 2
    assert "expected a whole number from 2 to 64" in capsys.readouterr().err
