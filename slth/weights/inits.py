"""The one place where random weights come from.

Every random number of the package is a pure function of (seed, name, stream, element index): the counter-based
generator Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by a hash of seed and
name and counted by element. So a weight does not depend on the device, the number of threads, the length of the tensor
or what was drawn before it, and a ticket can name a network by its seed alone.

Words become numbers by rules that use only exact or correctly rounded operations, hence give the same bits everywhere:

====================  ==========================================================  ======================
distribution          value                                                       elements per block
====================  ==========================================================  ======================
:func:`uniform`       odd point of a 24-bit lattice on (-1, 1), times the scale    4 (one word each)
:func:`uniform16`     odd point of a 16-bit lattice on (-1, 1), times the scale    8 (low half first)
:func:`positive`      absolute value of what :func:`uniform` gives                4 (one word each)
:func:`sign`          +scale, or -scale where the bit is 1                         128 (lowest bit first)
:func:`normal`        inverse normal distribution at (word + 1/2) / 2^32           4 (one word each)
====================  ==========================================================  ======================

No value is ever 0, so a pruned weight can be told from a kept one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, uint32, uint64

from slth.numbers import as_float, as_int, plain, put

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_CHUNK = 1 << 16  # words made at a time: the buffers stay in a core's cache

# ---------------------------------------------------------------- words


def stream_key(seed: int, name: str) -> tuple[int, int]:
    """The 64-bit Philox key of a named stream: the first 8 bytes of SHA-256("seed/name"), as two uint32, low first.

    Raises ValueError where seed is no integer.
    """
    digest = hashlib.sha256(f"{as_int('seed', seed)}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def philox4x32(counter: Sequence[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Philox4x32-10: four int64 tensors of counter words in [0, 2^32) -> four of random words, on their own device.

    Plain torch, any device; the reference for the faster forms.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, yet both halves of their 64 bits are right once masked
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW) ^ c1 ^ k0,
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return [c0, c1, c2, c3]


@njit(cache=True, nogil=True)
def _fill_words(out: np.ndarray, first_block: int, stream: int, key0: int, key1: int) -> None:  # pragma: no cover
    """Write the words of blocks first_block, first_block + 1, ... into out (int64, a multiple of 4 long)."""
    low = uint64(_LOW)
    for block in range(out.size // 4):
        index = uint64(first_block + block)
        c0, c1, c2, c3 = index & low, index >> uint64(32), uint64(stream), uint64(0)
        k0, k1 = uint32(key0), uint32(key1)
        for _ in range(_ROUNDS):
            p0, p1 = c0 * uint64(_MULTIPLIERS[0]), c2 * uint64(_MULTIPLIERS[1])
            c0, c1, c2, c3 = (
                (p1 >> uint64(32)) ^ c1 ^ uint64(k0),
                p1 & low,
                (p0 >> uint64(32)) ^ c3 ^ uint64(k1),
                p0 & low,
            )
            k0, k1 = uint32(k0 + uint32(_WEYL[0])), uint32(k1 + uint32(_WEYL[1]))
        out[4 * block], out[4 * block + 1], out[4 * block + 2], out[4 * block + 3] = c0, c1, c2, c3


def _words(key: tuple[int, int], stream: int, first_block: int, blocks: int, device: torch.device) -> torch.Tensor:
    """The 4 * blocks words from first_block on, as int64 in [0, 2^32), in counter order."""
    if device.type == "cpu":
        out = np.empty(4 * blocks, np.int64)
        _fill_words(out, first_block, stream, *key)
        return torch.from_numpy(out)
    index = torch.arange(first_block, first_block + blocks, device=device)
    zero = torch.zeros_like(index)
    return torch.stack(philox4x32([index & _LOW, index >> 32, zero + stream, zero], key), dim=1).flatten()


# ---------------------------------------------------------------- words to numbers


def _uniform_of(words: torch.Tensor, scale: float) -> torch.Tensor:
    odd = 2 * (words >> 8) + (1 - (1 << 24))  # odd, |odd| < 2^24: exact in float32
    return odd.to(torch.float32) * float(np.float32(scale) * np.float32(2.0**-24))


def _uniform16_of(words: torch.Tensor, scale: float) -> torch.Tensor:
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=1).flatten()
    return (2 * halves + (1 - (1 << 16))).to(torch.float32) * float(np.float32(scale) * np.float32(2.0**-16))


def _sign_of(words: torch.Tensor, scale: float) -> torch.Tensor:
    bits = (words[:, None] >> torch.arange(32, device=words.device)) & 1
    return (1 - 2 * bits.flatten()).to(torch.float32) * float(np.float32(scale))


def _normal_of(words: torch.Tensor, scale: float) -> torch.Tensor:
    return (_normal_quantile((words.to(torch.float64) + 0.5) * 2.0**-32) * scale).to(torch.float32)


# Coefficients of Wichura 1988, "Algorithm AS 241: The percentage points of the normal distribution" (PPND16),
# numerator and denominator, highest power first: the middle, the shoulders and the tails of the distribution.
_MIDDLE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457, 13731.693765509461125,
     1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867, 5394.1960214247511077,
     687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_SHOULDER = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def _normal_quantile(p: torch.Tensor) -> torch.Tensor:
    """Inverse of the normal distribution function on (0, 1), float64, from +, -, *, / and sqrt alone.

    Wichura's AS 241; those five operations are correctly rounded by IEEE 754, so every device gives the same bits,
    which no library's own logarithm or inverse error function promises.
    """
    q = p - 0.5
    tail_p = torch.minimum(p, 1.0 - p)
    r = torch.sqrt(-_log(tail_p))
    middle = q * _ratio(_MIDDLE, 0.180625 - q * q)
    outer = torch.where(r <= 5.0, _ratio(_SHOULDER, r - 1.6), _ratio(_TAIL, r - 5.0))
    return torch.where(q.abs() <= 0.425, middle, torch.where(q < 0, -outer, outer))


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: torch.Tensor) -> torch.Tensor:
    return _horner(coefficients[0], x) / _horner(coefficients[1], x)


def _horner(coefficients: Sequence[float], x: torch.Tensor) -> torch.Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x
        value = value + coefficient  # two statements, two roundings: never a fused multiply-add
    return value


_LN2 = math.log(2.0)
_ATANH_SERIES = tuple(2.0 / (2 * k + 1) for k in range(12, -1, -1))


def _log(x: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of positive float64, accurate to about 1e-15, from basic operations alone.

    x = m * 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh((m - 1) / (m + 1)).
    """
    mantissa, exponent = torch.frexp(x)  # mantissa in [1/2, 1)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, 2.0 * mantissa, mantissa)
    exponent = exponent.to(x.dtype) - small.to(x.dtype)
    s = (mantissa - 1.0) / (mantissa + 1.0)  # |s| <= 0.172
    series = s * _horner(_ATANH_SERIES, s * s)
    return exponent * _LN2 + series


# ---------------------------------------------------------------- tensors

# scales for which every product with the lattice is a normal float32
_SMALLEST, _LARGEST = 2.0**-101, 2.0**120

_Converter = Callable[[torch.Tensor, float], torch.Tensor]


def _draw(
    convert: _Converter,
    per_block: int,
    shape: Sequence[int],
    scale: float,
    seed: int,
    name: str,
    stream: int,
    device: torch.device | str,
) -> torch.Tensor:
    scale, stream = as_float("scale", scale, "(0, inf)"), as_int("stream", stream, 0, _LOW)
    shape = [as_int("shape", size, 0) for size in shape]
    if not _SMALLEST <= scale <= _LARGEST:
        raise ValueError(
            f"scale={scale}: must be a finite number > 0, in [{_SMALLEST:.3g}, {_LARGEST:.3g}] for float32 to hold it"
        )
    device = torch.device(device)
    key = stream_key(seed, name)
    out = torch.empty(math.prod(shape), dtype=torch.float32, device=device)
    step = _CHUNK // 4 if device.type == "cpu" else _CHUNK << 6  # blocks at a time
    for first in range(0, -(-out.numel() // per_block), step):
        piece = out[first * per_block : (first + step) * per_block]
        blocks = -(-piece.numel() // per_block)
        piece.copy_(convert(_words(key, stream, first, blocks, device), scale)[: piece.numel()])
    return out.reshape(tuple(shape))


def uniform(
    shape: Sequence[int], scale: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Uniform on (-scale, scale), float32, symmetric, never 0: `(2 * (word >> 8) + 1 - 2^24) * (scale * 2^-24)`.

    One rounding (the product, in float32). `stream` in [0, 2^32) gives independent re-draws under the same name.
    Raises ValueError for a scale outside [2^-101, 2^120].
    """
    return _draw(_uniform_of, 4, shape, scale, seed, name, stream, device)


def uniform16(
    shape: Sequence[int], scale: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Like :func:`uniform` from half a word, 16 bits: `(2 * half + 1 - 2^16) * (scale * 2^-16)`; cheaper to serve."""
    return _draw(_uniform16_of, 8, shape, scale, seed, name, stream, device)


def positive(
    shape: Sequence[int], scale: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Uniform on (0, scale), float32, never 0: the absolute value of what :func:`uniform` gives for the same arguments.

    Raises ValueError as it does.
    """
    return uniform(shape, scale, seed=seed, name=name, stream=stream, device=device).abs_()


def sign(
    shape: Sequence[int], scale: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Signed constant: +scale or -scale, one bit each, float32. A set bit is a minus sign."""
    return _draw(_sign_of, 128, shape, scale, seed, name, stream, device)


def normal(
    shape: Sequence[int], std: float, *, seed: int, name: str, stream: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Normal with mean 0 and the given standard deviation, float32, |value| <= 6.4 std.

    The quantile function at (word + 1/2) / 2^32 in float64 by basic operations alone, times std, rounded once.
    """
    return _draw(_normal_of, 4, shape, std, seed, name, stream, device)


# ---------------------------------------------------------------- initialisations


@dataclass(frozen=True)
class Fan:
    """What an initialisation may depend on.

    fan_in: inputs that one unit sums, their mean number where units differ (transposed convolutions with a stride);
    fan_out: outputs that one input reaches; width: hidden dimension per head (the n of the theory init);
    role: "query", "key", "value", "output" in an attention, else ""; keep: share of the weights that will be kept, for
    which the fan-scaled inits are made up (Ramanujan et al. 2020 scale by the kept share of the fan).
    """

    fan_in: float
    fan_out: float
    width: int = 1
    role: str = ""
    keep: float = 1.0

    def __post_init__(self) -> None:
        put(self, **{name: plain(value) for name, value in vars(self).items()})


def _theory_scale(fan: Fan) -> float:
    return float(fan.width) ** 0.25 if fan.role in ("query", "key") else 1.0


def _kaiming_std(fan: Fan) -> float:
    return math.sqrt(2.0 / (fan.fan_in * fan.keep))


#: init -> (distribution, scale or standard deviation). Sources: "theory" Otsuka et al. 2025 (arXiv 2511.04217, section
#: 4: query and key U[-n^(1/4), n^(1/4)], value and output U[-1, 1]); "xavier_uniform" Glorot & Bengio 2010;
#: "kaiming_*" He et al. 2015 (gain sqrt 2); "signed_constant" Ramanujan et al. 2020; "gpt2" Radford et al. 2019.
INITS: dict[str, tuple[Callable[..., torch.Tensor], Callable[[Fan], float]]] = {
    "theory": (uniform, _theory_scale),
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
    """A random float32 weight of the given shape by the initialisation's name (a key of :data:`INITS`).

    `scale` multiplies the init's own scale before anything is drawn. Raises ValueError for an unknown init
    or a keep outside (0, 1].
    """
    distribution, own_scale = scaled(init, fan)
    return distribution(shape, scale * own_scale, seed=seed, name=name, stream=stream, device=device)


def scaled(init: str, fan: Fan) -> tuple[Callable[..., torch.Tensor], float]:
    """(distribution, its scale) of an initialisation at a fan. Raises ValueError as :func:`weight` does."""
    if init not in INITS:
        raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}")
    as_float("keep", fan.keep, "(0, 1]", "the share of weights kept")
    distribution, scale_of = INITS[init]
    return distribution, scale_of(fan)
