"""Random weights, as pure functions of (seed, name, stream, element index).

All weights come from the counter-based generator Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3"), keyed by a hash of seed and name and indexed by element. So a weight does not depend on the device, the
number of threads, the length of the tensor or earlier draws, and a ticket can identify a network by its seed.

The conversion of words to numbers uses only exact or correctly rounded operations, so that it gives the same bits on
every machine:

====================  ==========================================================  ======================
distribution          value                                                       elements per block
====================  ==========================================================  ======================
:func:`uniform`       odd point of a 24-bit lattice on (-1, 1), times the scale    4 (one word each)
:func:`uniform16`     odd point of a 16-bit lattice on (-1, 1), times the scale    8 (low half first)
:func:`positive`      absolute value of :func:`uniform`                           4 (one word each)
:func:`sign`          +scale, or -scale where the bit is 1                         128 (lowest bit first)
:func:`normal`        inverse normal distribution at (word + 1/2) / 2^32           4 (one word each)
:func:`orthogonal`    rows of :func:`normal`, orthonormalised                     4 (one word each)
====================  ==========================================================  ======================

No value is ever 0, so that pruned weights can be distinguished from kept ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from slth.numbers import as_float, as_int, plain, put
from slth.threads import in_parallel
from slth.weights import gram_schmidt, philox
from slth.weights.distributions import NORMAL, SIGN, UNIFORM, UNIFORM16, Distribution

_CPU_WORDS = 1 << 14  # words that one thread draws at a time, so that they stay in its core's cache
_DEVICE_WORDS = 1 << 24

# ---------------------------------------------------------------- tensors

# scales for which every product with the lattice is a normal float32
_SMALLEST, _LARGEST = 2.0**-101, 2.0**120


def _draw(
    distribution: Distribution,
    shape: Sequence[int],
    scale: float,
    seed: int,
    name: str,
    stream: int,
    device: torch.device | str,
) -> torch.Tensor:
    scale, stream = as_float("scale", scale, "(0, inf)"), as_int("stream", stream, 0, philox.LOW)
    shape = [as_int("shape", size, 0) for size in shape]
    if not _SMALLEST <= scale <= _LARGEST:
        raise ValueError(
            f"scale={scale}: must be a finite number > 0, in [{_SMALLEST:.3g}, {_LARGEST:.3g}] for float32 to hold it"
        )
    device = torch.device(device)
    key = philox.stream_key(seed, name)
    out = torch.empty(math.prod(shape), dtype=torch.float32, device=device)
    (_fill_cpu if device.type == "cpu" else _fill_device)(out, distribution, scale, key, stream)
    return out.reshape(tuple(shape))


def _fill_cpu(out: torch.Tensor, distribution: Distribution, scale: float, key: tuple[int, int], stream: int) -> None:
    values, per = out.numpy(), _CPU_WORDS * distribution.per_word

    def fill(part: slice) -> None:
        for number in range(part.start, part.stop):
            piece = values[number * per : (number + 1) * per]
            words = np.empty(-(-piece.size // (4 * distribution.per_word)) * 4, np.uint32)
            philox.fill(words, number * _CPU_WORDS // 4, stream, *key)
            distribution.fill(words, scale, piece)

    in_parallel(fill, -(-values.size // per))


def _fill_device(
    out: torch.Tensor, distribution: Distribution, scale: float, key: tuple[int, int], stream: int
) -> None:
    per = _DEVICE_WORDS * distribution.per_word
    for number, piece in enumerate(out.split(per)):
        blocks = -(-piece.numel() // (4 * distribution.per_word))
        words = philox.words(key, stream, number * _DEVICE_WORDS // 4, blocks, out.device)
        piece.copy_(distribution.of(words, scale)[: piece.numel()])


def uniform(
    shape: Sequence[int], scale: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw uniformly on (-scale, scale), float32, never 0: `(2 * (word >> 8) + 1 - 2^24) * (scale * 2^-24)`.

    Only the product is rounded, in float32. `stream` in [0, 2^32) gives independent redraws under the same name.
    Raises ValueError for a scale outside [2^-101, 2^120].
    """
    return _draw(UNIFORM, shape, scale, seed, name, stream, device)


def uniform16(
    shape: Sequence[int], scale: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw like :func:`uniform`, from 16-bit half words: `(2 * half + 1 - 2^16) * (scale * 2^-16)`; faster to serve."""
    return _draw(UNIFORM16, shape, scale, seed, name, stream, device)


def positive(
    shape: Sequence[int], scale: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw uniformly on (0, scale), float32, never 0: the absolute value of :func:`uniform` with the same arguments.

    Raises ValueError as :func:`uniform` does.
    """
    return uniform(shape, scale, seed=seed, name=name, stream=stream, device=device).abs_()


def sign(
    shape: Sequence[int], scale: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw +scale or -scale (signed constant), float32, from one bit each: -scale if the bit is set."""
    return _draw(SIGN, shape, scale, seed, name, stream, device)


def normal(
    shape: Sequence[int], std: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw from a normal distribution with mean 0 and standard deviation std, float32, |value| <= 6.4 std.

    This is the quantile function at (word + 1/2) / 2^32, computed in float64 with basic operations only, times std,
    rounded once.
    """
    return _draw(NORMAL, shape, std, seed, name, stream, device)


def orthogonal(
    shape: Sequence[int], scale: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw rows (..., n, d) of length `scale`, float32, such that each group of d consecutive rows is orthogonal.

    Groups are counted from the last row; the first n mod d rows form a smaller group. The rows are those of
    :func:`normal` after Gram-Schmidt in float64, rounded once. A shape with one axis is one row. Raises ValueError as
    :func:`normal` does.
    """
    draws = normal(shape, 1.0, seed=seed, name=name, stream=stream, device=device)
    if not draws.numel():
        return draws
    scale = as_float("scale", scale, f"[{_SMALLEST}, {_LARGEST}]")
    rows = gram_schmidt.orthonormal(draws.reshape(-1, *(1, 1, *draws.shape)[-2:]))
    return torch.from_numpy(rows * scale).to(torch.float32).reshape(draws.shape).to(device)


# ---------------------------------------------------------------- initialisations


@dataclass(frozen=True)
class Fan:
    """The properties of a weight on which its initialisation may depend.

    Attributes:
        fan_in: number of inputs that one unit sums; the mean if units differ (transposed convolutions with a stride).
        fan_out: number of outputs that one input reaches.
        width: hidden dimension per head (the n of the theory init).
        role: "query", "key", "value" or "output" in an attention, else "".
        keep: share of weights that will be kept; the fan-scaled inits use the kept share of the fan (Ramanujan et al.
            2020).
    """

    fan_in: float
    fan_out: float
    width: int = 1
    role: str = ""
    keep: float = 1.0

    def __post_init__(self) -> None:
        put(self, **{name: plain(value) for name, value in vars(self).items()})


def theory_scale(fan: Fan) -> float:
    """Return the scale of the init "theory": width^(1/4) for query and key, else 1."""
    return float(fan.width) ** 0.25 if fan.role in ("query", "key") else 1.0


def _kaiming_std(fan: Fan) -> float:
    return math.sqrt(2.0 / (fan.fan_in * fan.keep))


#: init -> (distribution, scale or standard deviation). Sources: "theory" Otsuka et al. 2025 (arXiv 2511.04217, section
#: 4: query and key U[-n^(1/4), n^(1/4)], value and output U[-1, 1]); "xavier_uniform" Glorot & Bengio 2010;
#: "kaiming_*" He et al. 2015 (gain sqrt 2); "signed_constant" Ramanujan et al. 2020; "gpt2" Radford et al. 2019.
INITS: dict[str, tuple[Callable[..., torch.Tensor], Callable[[Fan], float]]] = {
    "theory": (uniform, theory_scale),
    "xavier_uniform": (uniform, lambda fan: math.sqrt(6.0 / (fan.fan_in + fan.fan_out))),
    "kaiming_uniform": (uniform, lambda fan: math.sqrt(3.0) * _kaiming_std(fan)),
    "kaiming_normal": (normal, _kaiming_std),
    "signed_constant": (sign, _kaiming_std),
    "gpt2": (normal, lambda fan: 0.02),
}


def weight(
    init: str,
    shape: Sequence[int],
    fan: Fan,
    *,
    seed: int,
    name: str,
    scale: float = 1.0,
    stream: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Draw a random float32 weight of this shape by the name of an initialisation, a key of :data:`INITS`.

    `scale` multiplies the init's own scale. Raises ValueError for an unknown init or a keep outside (0, 1].
    """
    distribution, own_scale = scaled(init, fan)
    return distribution(shape, scale * own_scale, seed=seed, name=name, stream=stream, device=device)


def scaled(init: str, fan: Fan) -> tuple[Callable[..., torch.Tensor], float]:
    """Return (distribution, its scale) of an initialisation for a fan. Raises ValueError as :func:`weight` does."""
    if init not in INITS:
        raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}")
    as_float("keep", fan.keep, "(0, 1]", "the share of weights kept")
    distribution, scale_of = INITS[init]
    return distribution, scale_of(fan)
