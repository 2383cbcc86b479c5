"""torch's CPU normal generator, bit for bit, without torch.

A seed must give the picture that diffusers gives for ``torch.Generator("cpu").manual_seed(seed)``,
and numpy's own normal generator draws other values. Sources: ATen's ``DistributionTemplates.h``
(``normal_fill``: Box-Muller on blocks of 16) and ``avx_mathfun.h`` (Cephes logarithm and sine in
float32, with the compiler's fused multiply-adds).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

BLOCK = 16


def randn(seed: int, shape: tuple[int, ...]) -> Floats:
    """``torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`` as float32.

    Any integer is a seed; as in torch only its low 32 bits count.
    """
    count = math.prod(shape)
    words = np.random.RandomState(seed & 0xFFFFFFFF)
    if count < BLOCK:
        return _scalar_normals(words, count).reshape(shape)
    values = _box_muller(_uniforms(words, count // BLOCK * BLOCK))
    if count % BLOCK:
        # torch draws uniforms for the odd end too, then throws the last 16 away and redraws them.
        _uniforms(words, count % BLOCK)
        values = np.concatenate([values, np.empty(count % BLOCK, np.float32)])
        values[-BLOCK:] = _box_muller(_uniforms(words, BLOCK))
    return values.reshape(shape)


def randn_rows(seeds: Sequence[int], shape: tuple[int, ...]) -> Floats:
    """``randn`` of each seed, one a row: as a block, since for few values numpy's calls count."""
    count = math.prod(shape)
    if count % BLOCK:
        return np.stack([randn(seed, shape) for seed in seeds])
    words = np.random.RandomState(0)
    uniforms = np.empty((len(seeds), count), np.float32)
    for row, seed in zip(uniforms, seeds, strict=True):
        words.seed(seed & 0xFFFFFFFF)
        row[:] = _uniforms(words, count)
    return _box_muller(uniforms.reshape(-1)).reshape(len(seeds), *shape)


def _draw(words: np.random.RandomState, count: int) -> NDArray[np.uint32]:
    """The next ``count`` 32-bit words of the Mersenne Twister."""
    return np.frombuffer(words.bytes(4 * count), dtype="<u4")


def _uniforms(words: np.random.RandomState, count: int) -> Floats:
    uniforms: Floats = (_draw(words, count) & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)
    return uniforms


def _scalar_normals(words: np.random.RandomState, count: int) -> Floats:
    """Fewer than 16 values: pairs from float64 Box-Muller, as ``normal_distribution<double>``."""
    pairs = _draw(words, 4 * ((count + 1) // 2)).astype(np.uint64).reshape(-1, 2)
    bits = (pairs[:, 0] << np.uint64(32) | pairs[:, 1]) & np.uint64(2**53 - 1)
    normals: list[float] = []
    for angle, radius in (bits.astype(np.float64) * 2.0**-53).reshape(-1, 2):
        length = math.sqrt(-2.0 * math.log1p(-radius))
        turn = 2.0 * math.pi * angle
        normals += [length * math.cos(turn), length * math.sin(turn)]
    return np.array(normals[:count], dtype=np.float64).astype(np.float32)


def _box_muller(uniforms: Floats) -> Floats:
    halves = uniforms.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(np.float32(-2.0) * _log(np.float32(1.0) - halves[:, 0]))
    sine, cosine = _sine_cosine(np.float32(2.0 * math.pi) * halves[:, 1])
    normals: Floats = np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)
    return normals


def _fma(a: Floats, b: Floats | float, c: Floats | float) -> Floats:
    """``a * b + c`` in float32 with one rounding; the product is exact in float64."""
    wide: Doubles = a.astype(np.float64) * np.float32(b).astype(np.float64)
    return (wide + np.float32(c).astype(np.float64)).astype(np.float32)


LOG_POLYNOMIAL = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip


def _log(x: Floats) -> Floats:
    mantissa, exponent = np.frexp(x)
    e = exponent.astype(np.float32)
    small = mantissa < np.float32(0.707106781186547524)
    e = np.where(small, e - np.float32(1.0), e)
    x = np.where(small, mantissa + mantissa, mantissa) - np.float32(1.0)
    z = x * x
    y = np.full_like(x, LOG_POLYNOMIAL[0])
    for coefficient in LOG_POLYNOMIAL[1:]:
        y = _fma(y, x, coefficient)
    y = _fma(y * x, z, e * np.float32(-2.12194440e-4))
    y = _fma(z, -0.5, y)
    return _fma(e, 0.693359375, x + y)


COSINE_POLYNOMIAL = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SINE_POLYNOMIAL = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
MINUS_QUARTER_PI = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)


def _sine_cosine(x: Floats) -> tuple[Floats, Floats]:
    """Both for 0 <= x < 2 pi, by octants."""
    octant = (x * np.float32(1.27323954473516)).astype(np.int32)
    octant = (octant + 1) & ~1
    turns = octant.astype(np.float32)
    for part in MINUS_QUARTER_PI:
        x = _fma(turns, part, x)
    z = x * x
    even = np.full_like(x, COSINE_POLYNOMIAL[0])
    for coefficient in COSINE_POLYNOMIAL[1:]:
        even = _fma(even, z, coefficient)
    even = _fma(even * z, z, np.float32(-0.5) * z) + np.float32(1.0)
    odd = np.full_like(x, SINE_POLYNOMIAL[0])
    for coefficient in SINE_POLYNOMIAL[1:]:
        odd = _fma(odd, z, coefficient)
    odd = _fma(odd * z, x, x)
    swapped = (octant & 2) != 0
    sine = np.where(swapped, even, odd)
    cosine = np.where(swapped, odd, even)
    sine = np.where((octant & 4) != 0, -sine, sine)
    cosine = np.where(((octant - 2) & 4) == 0, -cosine, cosine)
    return sine, cosine
