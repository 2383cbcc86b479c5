"""The distance against closed forms, and what it says of each way to go wrong."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from distill.frechet import Gaussian, frechet_distance, patch_distance, patch_gaussian


def latents(seed: int, channels: int = 4) -> Tensor:
    """Smooth fields with fine detail a tenth as strong, as latents are."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(8, channels, 24, 24, generator=generator)
    smooth = avg_pool2d(pad(rough, (3, 3, 3, 3), mode="circular"), 7, stride=1) * 7
    return smooth + 0.1 * torch.randn(smooth.shape, generator=generator)


def test_equal_sets_have_none() -> None:
    for channels in (4, 16):  # 16 and 64 dimensions
        assert patch_distance(latents(0, channels), latents(0, channels)) < 1e-10


def test_the_gaussian_is_that_of_the_patches() -> None:
    x = latents(0)[:2, :1, :4, :5]
    patches = [
        x[b, 0, i : i + 2, j : j + 2].flatten()
        for b in range(2)
        for i in range(3)
        for j in range(4)
    ]
    found, expected = patch_gaussian(x), torch.stack(patches).double()
    torch.testing.assert_close(found.mean, expected.mean(0))
    torch.testing.assert_close(found.covariance, expected.T.cov(correction=0))


def test_commuting_covariances_have_a_closed_form() -> None:
    """Between N(m, Q diag(a) Q') and N(0, Q diag(b) Q'): |m|^2 + sum (sqrt a - sqrt b)^2."""
    generator = torch.Generator().manual_seed(0)
    mean, a, b = torch.rand(3, 64, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0]
    a[:8] = 0  # flat directions too
    ours, theirs = Gaussian(mean, (q * a) @ q.T), Gaussian(0 * mean, (q * b) @ q.T)
    expected = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_distance(ours, theirs) == pytest.approx(expected.item(), rel=1e-7)
    assert frechet_distance(theirs, ours) == pytest.approx(expected.item(), rel=1e-7)


def test_general_covariances_against_the_definition() -> None:
    """tr (A B)^1/2 is the sum of the roots of A B's eigenvalues, which are real though AB is not
    symmetric."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    a, b = x @ x.T, y @ y.T
    zero = torch.zeros(6, dtype=torch.float64)
    cross = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    expected = (a.trace() + b.trace() - 2 * cross).item()
    assert frechet_distance(Gaussian(zero, a), Gaussian(zero, b)) == pytest.approx(expected)


def test_a_shifted_level_is_its_square_in_standard_deviations() -> None:
    reference = latents(0)
    gaussian = patch_gaussian(reference)
    for shift in (0.1, 0.5):
        one = torch.full_like(gaussian.mean, shift)
        expected = (one @ torch.linalg.solve(gaussian.covariance, one)).item() / len(one)
        assert patch_distance(reference + shift, reference) == pytest.approx(expected, rel=1e-6)


def test_a_scaled_spread_is_the_square_of_what_is_missing() -> None:
    reference = latents(0)
    level = reference.mean((0, 2, 3), keepdim=True)
    # The level of a patch's corners differs a little from that of the whole pictures.
    for scale in (0.8, 1.5):
        scaled = level + scale * (reference - level)
        expected = (1 - scale) ** 2
        assert patch_distance(scaled, reference) == pytest.approx(expected, rel=1e-3)


def test_flat_pictures_are_at_one() -> None:
    reference = latents(0)
    flat = reference.mean((0, 2, 3), keepdim=True).expand_as(reference)
    assert patch_distance(flat, reference) == pytest.approx(1, rel=1e-2)


def test_each_way_to_go_wrong_is_far_above_another_sample_of_the_same() -> None:
    reference = latents(0)
    same = patch_distance(latents(1), reference)
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(3))
    wrong = {
        "dark": reference - 0.5 * reference.std(),
        "saturated": 1.4 * reference,
        "blurred": avg_pool2d(pad(reference, (1, 1, 1, 1), mode="replicate"), 3, stride=1),
        "noisy": reference + 0.2 * noise,
        "one picture": reference[:1].expand_as(reference),
        "one colour": reference.mean(1, keepdim=True).expand_as(reference),
    }
    for name, changed in wrong.items():
        assert patch_distance(changed, reference) > 3 * same, name
    slightly = avg_pool2d(pad(reference, (0, 1, 0, 1), mode="replicate"), 2, stride=1)
    assert same < patch_distance(slightly, reference) < patch_distance(wrong["blurred"], reference)


def test_a_reference_without_variance_somewhere_stays_finite() -> None:
    reference = latents(0)
    reference[:, 0] = 0.3
    assert patch_distance(reference, reference) < 1e-10
    assert 0 < patch_distance(latents(1), reference) < float("inf")
