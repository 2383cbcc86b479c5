"""Forwards, bytes and hours against closed forms, on a slice of SD3-Medium's layers."""

from dataclasses import replace

import pytest

from benchmarks.distill_cost import GPUS, SHARE, Gpu, Layout, fit, forward_flops, skeleton
from benchmarks.export_full_size import CONFIGURATIONS
from distill.memory import footprint
from distill.recipe import LoraRecipe, Recipe, RuntimeRecipe

LAYERS = 2
WIDTH, IMAGE, TEXT = 1536, 64 * 64, 77 + 256
PLENTY = Gpu("large", 1e15, 1e12)
RECIPE = Recipe(
    teacher="",
    output="",
    prompts="",
    height=1024,
    width=1024,
    max_sequence_length=256,
    batch=16,
    updates=10,
    runtime=RuntimeRecipe(gradient_checkpointing=True),
)


@pytest.fixture(scope="module")
def adapter():
    return skeleton("sd3", CONFIGURATIONS["sd3"] | {"num_layers": LAYERS})


@pytest.fixture(scope="module")
def network(adapter):
    return footprint(adapter, RECIPE)


def test_a_forward_is_its_products(adapter) -> None:
    """Twelve squares of the width a token and block, and two products of all pairs of tokens.

    The last block leaves out the text's projection and feed-forward.
    """
    tokens = IMAGE + TEXT
    blocks = 2 * 12 * WIDTH**2 * tokens * LAYERS - 2 * 9 * WIDTH**2 * TEXT
    pairs = 4 * tokens**2 * WIDTH * LAYERS
    text = 2 * 4096 * WIDTH * TEXT
    assert forward_flops(adapter, RECIPE) == pytest.approx(blocks + pairs + text, rel=0.01)


def test_all_networks_on_every_gpu_or_in_slices(network) -> None:
    """Teacher and two trained networks, an average, two moments each and a gradient: in float32.

    Besides its weights a network has its table of positions.
    """
    whole = fit(network, RECIPE, 1, Layout("", 4, False), PLENTY)["bytes_by_use"]
    slices = fit(network, RECIPE, 1, Layout("", 4, True), PLENTY)["bytes_by_use"]
    kept = whole.keys() - {"activations"}
    table = 192**2 * WIDTH
    assert sum(whole[use] for use in kept) == 4 * (9 * network.trained + 3 * table)
    assert all(slices[use] == whole[use] // 4 for use in kept)
    assert slices["activations"] == whole["activations"]


def test_hours_are_forwards_by_the_assumed_rate(network) -> None:
    """36.5 units for each of 160 samples, at a share of 1e12 a second."""
    flops = 10**12
    one = fit(network, RECIPE, flops, Layout("", 1, False), PLENTY)
    assert one["samples_at_once"] == 16
    assert one["hours"] == round(36.5 * 160 / SHARE / 3600, 1)
    two = fit(network, RECIPE, flops, Layout("", 2, False), PLENTY)
    assert two["hours"] == pytest.approx(one["hours"] / 2, abs=0.06)


def test_what_does_not_fit_at_once_is_taken_in_parts(network) -> None:
    at_once = fit(network, RECIPE, 1, Layout("", 1, False), PLENTY)
    less = Gpu("", 0.9 * at_once["bytes"], 1e12)
    parts = fit(network, RECIPE, 1, Layout("", 1, False), less)
    assert 0 < parts["samples_at_once"] < 16
    assert parts["bytes"] <= 0.9 * less.bytes
    nothing = fit(network, RECIPE, 1, Layout("", 1, False), Gpu("", 1e6, 1e12))
    assert (nothing["samples_at_once"], nothing["hours"]) == (1, None)


def test_lora_needs_less(adapter, network) -> None:
    low = footprint(adapter, replace(RECIPE, lora=LoraRecipe(rank=64)))
    layout = Layout("", 1, False, lora=True)
    small = fit(low, RECIPE, 1, layout, PLENTY)["bytes"]
    assert small < fit(network, RECIPE, 1, layout, PLENTY)["bytes"]


@pytest.mark.parametrize(("name", "weights"), [("sd3", 2.03e9), ("longcat", 6.27e9)])
def test_the_networks_are_as_large_as_the_published_ones(name: str, weights: float) -> None:
    network = skeleton(name, CONFIGURATIONS[name]).transformer
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(weights, rel=0.005)
    assert all(gpu.peak > 1e14 for gpu in GPUS)
