"""The judge: a small classifier that says what a picture shows, trained only on drawn pictures.

It shares nothing with the generator, so its verdict on generated pictures is not the generator's
own. Two subjects are named as they stand, the left or upper one first: "a fox left of an owl" and
"an owl right of a fox" are one picture.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from distill.demo.emoji.compose import BACKGROUNDS, Composition, draw_composition
from distill.demo.emoji.composer import PicturePool
from distill.demo.emoji.softening import soften
from distill.demo.emoji.training import Losses, Plan, train
from distill.demo.emoji.vocabulary import POSITIONS, SIZES, SUBJECTS
from distill.errors import DistillError
from distill.files import whole_folder
from distill.parallel import Processes

JUDGE = Path("models/emoji-judge")
# Size and position of one subject, or the axis along which two stand.
ARRANGEMENTS = (*product(SIZES, POSITIONS), "horizontal", "vertical")
# Background, arrangement, the one subject, the first of two, the second of two.
CLASSES = (len(BACKGROUNDS), len(ARRANGEMENTS), *(len(SUBJECTS),) * 3)
_FEATURES = 192
NOT_ASKED = -100
_POOL = 60_000
PAIRS = 0.6


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class JudgeNetwork(nn.Module):
    """A convolutional network whose five heads share 192 features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            _Residual(48),
            nn.Conv2d(48, 96, 3, stride=2, padding=1),
            nn.ReLU(),
            _Residual(96),
            nn.Conv2d(96, 48, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48 * 8 * 8, _FEATURES),
            nn.ReLU(),
        )
        self.heads = nn.Linear(_FEATURES, sum(CLASSES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From ``(B, 3, 64, 64)`` in [0, 1] to features and the logits of each question."""
        features = self.body((2 * pictures - 1).contiguous(memory_format=torch.channels_last))
        return features, list(self.heads(features).split(CLASSES, dim=1))


def _answers(composition: Composition) -> tuple[int, int, int, int, int]:
    """Return the right class of each question; what the picture does not raise is -100."""
    scenery = BACKGROUNDS.index(composition.background)
    if len(composition.placed) == 1:
        (placed,) = composition.placed
        size = {pixels: word for word, pixels in SIZES.items()}[placed.size]
        position = {place: words for words, place in POSITIONS.items()}[placed.direction]
        arrangement = ARRANGEMENTS.index((size, position))
        return scenery, arrangement, placed.subject, NOT_ASKED, NOT_ASKED
    first, second = sorted(composition.placed, key=lambda placed: placed.direction)
    axis = ARRANGEMENTS.index("horizontal" if first.direction[0] else "vertical")
    return scenery, axis, NOT_ASKED, first.subject, second.subject


def answers(compositions: Sequence[Composition]) -> Tensor:
    """Return the right class of each question, ``(B, 5)``."""
    return torch.tensor([_answers(composition) for composition in compositions])


def _loss(logits: list[Tensor], right: Tensor) -> Tensor:
    each = [
        functional.cross_entropy(guess.float(), answer, ignore_index=NOT_ASKED, reduction="sum")
        for guess, answer in zip(logits, right.unbind(1), strict=True)
    ]
    return torch.stack(each).sum() / len(right)


def train_judge(run: Path, plan: Plan) -> JudgeNetwork:
    """Train on drawn pictures of the whole vocabulary, softened; return the averaged network."""
    torch.manual_seed(0)
    device = Processes().device
    network = JudgeNetwork().to(device)
    rng = np.random.default_rng(0)
    compositions = [draw_composition(rng, len(SUBJECTS), PAIRS) for _ in range(_POOL)]
    pool, right = PicturePool(compositions, device), answers(compositions).to(device)

    def loss_at(draw: int, count: int) -> Losses:
        generator = torch.Generator(device).manual_seed(draw)
        rows = torch.randint(len(pool), (count,), generator=generator, device=device)
        pictures = soften(pool.at(rows, generator), generator)
        with torch.autocast(device.type, torch.bfloat16):
            _, logits = network(pictures)
        return {"loss": _loss(logits, right[rows])}

    def preview() -> Tensor:
        generator = torch.Generator(device).manual_seed(0)
        return soften(pool.at(torch.arange(64, device=device), generator), generator)

    train(plan, network, loss_at, run, preview)
    return network


def save_judge(judge: JudgeNetwork, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write float16 weights and ``judge.json``: the classes of each question, and ``facts``."""
    classes = {
        "background": BACKGROUNDS,
        "arrangement": [" ".join(a).strip() if isinstance(a, tuple) else a for a in ARRANGEMENTS],
        "subject": [name for name, _ in SUBJECTS],
    }
    weights = {name: w.half().contiguous() for name, w in judge.state_dict().items()}
    with whole_folder(folder) as temporary:
        save_file(weights, temporary / "model.safetensors")
        text = json.dumps({**facts, "classes": classes}, indent=2)
        (temporary / "judge.json").write_text(f"{text}\n")


def load_judge(folder: Path = JUDGE) -> JudgeNetwork:
    """Load a judge for use in float32.

    Raises:
        DistillError: there is none, or it is of another vocabulary.
    """
    weights, judge = folder / "model.safetensors", JudgeNetwork()
    if not weights.exists():
        raise DistillError(
            f"{folder} holds no judge; train one: python -m distill.demo.emoji judge"
        )
    try:
        judge.load_state_dict(load_file(weights))
    except RuntimeError:
        raise DistillError(
            f"{folder} is a judge of another vocabulary; "
            "train one: python -m distill.demo.emoji judge"
        ) from None
    return judge.requires_grad_(False).eval()
