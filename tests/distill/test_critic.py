"""The fake teacher that is told the anchor: a teacher at first, then one for every anchor."""

import pytest
import torch
from pipelines import PROMPTS, tiny_longcat

from distill.adapters import Adapter, load_adapter
from distill.critic import ANCHOR, AnchorEmbedding, FakeTeacher, text, told
from distill.objective import fake_loss
from distill.rng import Level


@pytest.fixture(scope="module")
def longcat(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return load_adapter(str(tiny_longcat(tmp_path_factory.mktemp("critic") / "teacher")))


@pytest.fixture(params=["sd3", "longcat"])
def either(request: pytest.FixtureRequest, adapter: Adapter) -> Adapter:
    return adapter if request.param == "sd3" else request.getfixturevalue("longcat")


def fake_teacher(adapter: Adapter) -> FakeTeacher:
    tensors = adapter.encode([""]).tensors
    embedding = AnchorEmbedding(tensors[text(tensors)].shape[-1], seed=0)
    return FakeTeacher(adapter.transformer, adapter, embedding)


def points(adapter: Adapter, size: tuple[int, int] = (64, 64)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *adapter.latent_shape(*size), generator=generator)
    return x, torch.tensor([0.1, 0.5, 0.9])


@torch.no_grad()
def test_untrained_it_is_the_teacher_bit_for_bit(either: Adapter) -> None:
    x, sigma = points(either)
    condition = either.encode(PROMPTS[:3])
    fake = fake_teacher(either)
    expected = either.velocity(either.transformer, x, sigma, condition)
    for anchor in (torch.zeros(3), torch.tensor([1.0, 0.6, 0.02])):
        assert torch.equal(fake(x, sigma, told(condition, anchor)), expected)


def test_its_first_gradients_reach_the_embeddings_last_layer(either: Adapter) -> None:
    x, sigma = points(either)
    fake = fake_teacher(either)
    level = Level(sigma, torch.randn_like(x))
    known = told(either.encode(PROMPTS[:3]), torch.tensor([1.0, 0.6, 0.02]))
    fake_loss(fake, x, known, level).backward()
    assert fake.embedding is not None
    first, last = fake.embedding.layers[0], fake.embedding.layers[-1]
    assert last.weight.grad.abs().max() > 0 and first.weight.grad.abs().max() == 0


@torch.no_grad()
def test_trained_it_answers_each_anchor_for_itself(either: Adapter) -> None:
    """What is added to a sample's text depends on its own anchor and on no other's."""
    x, sigma = points(either)
    condition = either.encode(PROMPTS[:3])
    fake = fake_teacher(either)
    assert fake.embedding is not None
    torch.nn.init.normal_(fake.embedding.layers[-1].weight, generator=torch.Generator())
    one = fake(x, sigma, told(condition, torch.tensor([1.0, 0.6, 0.02])))
    two = fake(x, sigma, told(condition, torch.tensor([1.0, 0.6, 0.5])))
    torch.testing.assert_close(one[:2], two[:2], rtol=1e-4, atol=1e-5)
    assert (one[2] - two[2]).abs().max() > 1e-3
    tensors = condition.tensors
    name = text(tensors)
    added = fake.embedding(torch.tensor([1.0, 0.6, 0.02]))
    by_hand = tensors | {name: tensors[name] + added.view(3, *[1] * (tensors[name].ndim - 2), -1)}
    expected = either.velocity(either.transformer, x, sigma, type(condition)(by_hand))
    torch.testing.assert_close(one, expected)


def test_which_text_it_is_added_to() -> None:
    tokens, pooled = torch.zeros(2, 5, 8), torch.zeros(2, 6)
    mask = torch.ones(2, 5, dtype=torch.int64)
    assert text({"tokens": tokens, "pooled": pooled, "mask": mask}) == "pooled"
    assert text({"mask": mask, "tokens": tokens, ANCHOR: torch.zeros(2)}) == "tokens"


def test_every_process_begins_alike_and_no_draw_of_others_changes() -> None:
    torch.manual_seed(1)
    one = AnchorEmbedding(8, seed=3)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    other = AnchorEmbedding(8, seed=3)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    close, far = torch.tensor([0.5, 0.51]), torch.tensor([0.1, 0.9])
    hidden = one.layers[:2]
    one.layers = hidden
    near, apart = (one(pair).diff(dim=0).norm() for pair in (close, far))
    assert 0 < near < apart


def test_a_teacher_that_is_not_told(adapter: Adapter) -> None:
    x, sigma = points(adapter)
    condition = adapter.encode(PROMPTS[:3])
    fake = FakeTeacher(adapter.transformer, adapter, None)
    with torch.no_grad():
        expected = adapter.velocity(adapter.transformer, x, sigma, condition)
        assert torch.equal(fake(x, sigma, told(condition, torch.rand(3))), expected)
