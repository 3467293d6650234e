"""Losses of n-gram models, as baselines that a language model should beat.

Both predict every token of a row except the first, as a language model does. Losses are in nats per token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from slth.numbers import as_int

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_PIECE = 1 << 22  # pairs counted at a time


def unigram_loss(train: torch.Tensor, valid: torch.Tensor, size: int) -> float:
    """Compute the cross entropy of valid (..., T) under the token frequencies of train (n,), in nats per token.

    p(w) = (c(w) + 1) / (n + size), with c(w) the count of w in train, so no token has probability 0 (Laplace
    smoothing). Tokens are integers in [0, size). Raises ValueError for other tokens, for an empty train, and if valid
    has no token to predict.
    """
    _check(train, valid, size)
    shares = _shares(train, size)
    return float(-np.log(shares[_numpy(valid[..., 1:])]).mean())


def bigram_loss(train: torch.Tensor, valid: torch.Tensor, size: int) -> float:
    """Compute the cross entropy of valid (..., T) under a bigram model of train (n,), in nats per token.

    p(w | v) = (c(v w) + t(v) p(w)) / (c(v) + t(v)), where c(v w) counts how often w follows v in train, c(v) is the sum
    of c(v w) over w, t(v) is the number of different tokens that follow v, and p(w) is that of :func:`unigram_loss`.
    This is the interpolation of Witten & Bell 1991. p(w | v) = p(w) if nothing follows v. Only pairs that occur are
    stored. Raises ValueError as :func:`unigram_loss` does.
    """
    _check(train, valid, size)
    before, after = _numpy(valid[..., :-1]), _numpy(valid[..., 1:])
    pairs, counts = _pairs(train, size)
    firsts = pairs // size
    followed = np.bincount(firsts, counts, minlength=size)[before]  # c(v)
    different = np.bincount(firsts, minlength=size)[before]  # t(v)
    together = _look_up(pairs, counts, before * size + after)  # c(v w)
    single = _shares(train, size)[after]  # p(w)
    total = followed + different
    p = np.where(total > 0, (together + different * single) / np.maximum(total, 1), single)
    return float(-np.log(p).mean())


def _shares(train: torch.Tensor, size: int) -> _Floats:
    counts = torch.bincount(train, minlength=size).numpy()
    shares: _Floats = (counts + 1.0) / (len(train) + size)
    return shares


def _pairs(tokens: torch.Tensor, size: int) -> tuple[_Ints, _Floats]:
    """Return the pairs v w in tokens (n,), as v * size + w in ascending order, and the count of each."""
    pairs: _Ints = np.empty(0, np.int64)
    counts: _Floats = np.empty(0)
    for start in range(0, len(tokens) - 1, _PIECE):
        piece = _numpy(tokens[start : start + _PIECE + 1])
        found, often = np.unique(piece[:-1] * size + piece[1:], return_counts=True)
        pairs, place = np.unique(np.concatenate((pairs, found)), return_inverse=True)
        sums = np.bincount(place, np.concatenate((counts, often)))
        counts = sums.astype(np.float64)  # exact, as whole numbers; only numpy's types say int
    return pairs, counts


def _look_up(keys: _Ints, values: _Floats, wanted: _Ints) -> _Floats:
    """Return the values at wanted keys, 0 for keys that are not in the ascending `keys`."""
    if len(keys) == 0:
        return np.zeros(len(wanted))
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)


def _numpy(tokens: torch.Tensor) -> _Ints:
    return tokens.flatten().long().numpy()


def _check(train: torch.Tensor, valid: torch.Tensor, size: int) -> None:
    as_int("size", size, 1, meaning="the tokens of the vocabulary")
    if train.dim() != 1 or len(train) == 0:
        raise ValueError(f"train of shape {tuple(train.shape)}: must be tokens (n,), at least one")
    if valid.dim() == 0 or valid[..., 1:].numel() == 0:
        raise ValueError(f"valid of shape {tuple(valid.shape)}: must be rows (..., T) of two tokens or more")
    for name, tokens in (("train", train), ("valid", valid)):
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= size:
            raise ValueError(f"{name} with tokens from {least} to {most}: must be in [0, {size})")
