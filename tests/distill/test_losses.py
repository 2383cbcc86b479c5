"""The losses against float64 numpy, closed forms and finite differences."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from distill.flow import predicted_x0
from distill.losses import ca_loss, dm_loss, flow_matching_loss

SHAPE = (3, 2, 4, 5)


def draws(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("v_student", "v_cond", "v_other", "x_student", "x_teacher")
    tensors = {name: torch.randn(SHAPE, generator=generator) for name in names}
    tensors["sigma_student"] = torch.rand(3, generator=generator)
    tensors["sigma_teacher"] = torch.rand(3, generator=generator)
    return tensors


def reference(
    tensors: dict[str, torch.Tensor], alpha: float, floor: float
) -> tuple[float, np.ndarray]:
    """Loss and its gradient with respect to v_student, sample by sample in float64."""
    t = {name: value.detach().double().numpy() for name, value in tensors.items()}
    total, gradient = 0.0, np.zeros(SHAPE)
    for b in range(SHAPE[0]):
        sigma, level = t["sigma_student"][b], t["sigma_teacher"][b]
        x0 = t["x_student"][b] - sigma * t["v_student"][b]
        cond = t["x_teacher"][b] - level * t["v_cond"][b]
        other = t["x_teacher"][b] - level * t["v_other"][b]
        step = alpha * (cond - other) / max(floor, np.mean(np.abs(cond - x0)))
        total += np.sum(step**2)
        # d/dx0 (x0 - target)^2 = -2 step, and dx0/dv = -sigma.
        gradient[b] = 2 * step * sigma
    size = np.prod(SHAPE)
    return total / size, gradient / size


def evaluate(loss: str, t: dict[str, torch.Tensor], **options: float) -> torch.Tensor:
    function = {"ca": ca_loss, "dm": dm_loss}[loss]
    x0 = predicted_x0(t["x_student"], t["sigma_student"], t["v_student"])
    cond, other = (
        predicted_x0(t["x_teacher"], t["sigma_teacher"], t[name]) for name in ("v_cond", "v_other")
    )
    return function(x0, cond, other, **options)


@pytest.mark.parametrize(("loss", "alpha"), [("ca", 7.0), ("dm", 1.0)])
@pytest.mark.parametrize("floor", [0.1, 50.0], ids=["normalised", "floored"])
def test_value_and_gradient_match_numpy(loss: str, alpha: float, floor: float) -> None:
    tensors = draws()
    tensors["v_student"].requires_grad_()
    value = evaluate(loss, tensors, floor=floor)
    value.backward()
    expected, gradient = reference(tensors, alpha, floor)
    assert value.dtype == torch.float32 and value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(tensors["v_student"].grad.numpy(), gradient, rtol=2e-5, atol=1e-9)


def test_alpha_and_defaults() -> None:
    tensors = draws(1)
    assert evaluate("ca", tensors).item() == pytest.approx(reference(tensors, 7.0, 0.1)[0])
    assert evaluate("ca", tensors, alpha=3.0).item() == pytest.approx(
        reference(tensors, 3.0, 0.1)[0]
    )
    assert evaluate("dm", tensors).item() == pytest.approx(reference(tensors, 1.0, 0.1)[0])


@pytest.mark.parametrize("loss", ["ca", "dm"])
def test_the_gradient_is_that_of_a_regression_onto_a_frozen_target(loss: str) -> None:
    """Finite differences of mean((x0(v) - target)^2) with the target held at the first v."""
    tensors = draws(2)
    tensors["v_student"].requires_grad_()
    evaluate(loss, tensors).backward()
    t = {name: value.detach().double() for name, value in tensors.items()}
    sigma, level = t["sigma_student"].view(-1, 1, 1, 1), t["sigma_teacher"].view(-1, 1, 1, 1)
    x0 = t["x_student"] - sigma * t["v_student"]
    cond, other = (t["x_teacher"] - level * t[name] for name in ("v_cond", "v_other"))
    distance = (cond - x0).abs().mean((1, 2, 3), keepdim=True).clamp(min=0.1)
    target = x0 + (7.0 if loss == "ca" else 1.0) * (cond - other) / distance

    def frozen(v: torch.Tensor) -> float:
        return ((t["x_student"] - sigma * v - target) ** 2).mean().item()

    for position in [(0, 0, 0, 0), (1, 1, 2, 3), (2, 0, 3, 4)]:
        nudge = torch.zeros(SHAPE, dtype=torch.float64)
        nudge[position] = 1e-4
        slope = (frozen(t["v_student"] + nudge) - frozen(t["v_student"] - nudge)) / 2e-4
        assert tensors["v_student"].grad[position].item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("loss", [ca_loss, dm_loss])
def test_only_the_student_receives_a_gradient(loss: Callable[..., torch.Tensor]) -> None:
    x0, cond, other = torch.randn(3, *SHAPE).requires_grad_().unbind()
    pictures = [picture.detach().requires_grad_() for picture in (x0, cond, other)]
    loss(*pictures).backward()
    assert [picture.grad is not None for picture in pictures] == [True, False, False]


def test_a_small_step_survives_float32() -> None:
    """x0 near 1000 and a step near 1e-3: subtracting the target would lose most of it."""
    tensors = draws(3)
    tensors["x_student"] += 1000.0
    tensors["x_teacher"] += 1000.0
    tensors["v_other"] = tensors["v_cond"] + 1e-2 * tensors["v_other"]
    tensors["v_student"].requires_grad_()
    evaluate("dm", tensors, floor=10.0).backward()
    level = tensors["sigma_teacher"].view(-1, 1, 1, 1)
    sigma = tensors["sigma_student"].view(-1, 1, 1, 1)
    # Straight from the definition, with the 1000s cancelled by hand.
    step = level * (tensors["v_other"] - tensors["v_cond"]) / 10.0
    expected = 2 * step * sigma / step.numel()
    error = (tensors["v_student"].grad - expected).norm() / expected.norm()
    assert error < 0.02


def test_half_precision_inputs_are_computed_in_float32() -> None:
    tensors = draws(4)
    halved = {name: value.bfloat16() for name, value in tensors.items()}
    widened = {name: value.float() for name, value in halved.items()}
    assert evaluate("ca", halved).dtype == torch.float32
    assert torch.equal(evaluate("ca", halved), evaluate("ca", widened))


def test_other_shapes() -> None:
    """Packed latents (B, tokens, channels) and a 2-D toy's points (B, 2)."""
    for shape in [(4, 6, 8), (4, 2)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        value = dm_loss(x, 0.5 * x, 0 * x, floor=100.0)
        # cond - fake = 0.5 x; the floor is the normaliser.
        assert value.item() == pytest.approx((0.005 * x).square().mean().item(), rel=1e-5)


def test_flow_matching_is_zero_at_the_target_and_has_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(SHAPE, generator=generator).requires_grad_() for _ in range(2))
    assert flow_matching_loss(noise - x0, x0, noise).item() == 0.0
    velocity = torch.zeros(SHAPE, requires_grad=True)
    loss = flow_matching_loss(velocity, x0, noise)
    loss.backward()
    target = (noise - x0).detach()
    assert loss.item() == pytest.approx(np.mean(target.double().numpy() ** 2), rel=1e-6)
    torch.testing.assert_close(velocity.grad, -2 * target / target.numel())
    assert x0.grad is None and noise.grad is None
