"""Oracles in plain numpy and torch, and cases that several tests share."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from slth.attention import MultiHeadAttention

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"


def call_in_a_process(file, function, *arguments):
    """Call a function of a test's file in a new process. Returns what it printed."""
    code = f"import {Path(file).stem} as tests; tests.{function}{arguments!r}"
    path = os.pathsep.join([str(Path(file).parent), str(Path(__file__).parent)])
    process = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def compiles(test):
    """The compiler meets parts of torch that warn."""
    for message in (
        "`torch.jit.script_method` is deprecated",
        ".*autograd.function.Function.* should not be instantiated",
        "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    ):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


def thinned(cases, step):
    """Cases for parametrize: every step-th, and the others with -m slow."""
    return [
        case if i % step == 0 else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]


def by_dtype(cases):
    """(case, dtype) for parametrize: each case in float32, but every third, where it has that, in float16.

    All are in both with -m slow.
    """
    return [
        pytest.param(case, dtype, id=f"{case.name}-{str(dtype)[6:]}", marks=() if dtype is usual else pytest.mark.slow)
        for i, case in enumerate(cases)
        for usual in (torch.float16 if i % 3 == 2 and torch.float16 in case.dtypes else torch.float32,)
        for dtype in (torch.float32, torch.float16)
        if dtype in case.dtypes
    ]


def cats(lines):
    """A text that a small language model can learn something from."""
    return "".join(f"the cat number {i} sat on the mat and {i * i % 97} dogs ran away\n" for i in range(lines))


def subset_sums(candidates):
    """All 2^n sums of candidates (..., n), each added in index order, at the index that is the mask -> (..., 2^n)."""
    sums = np.zeros((*candidates.shape[:-1], 1))
    for i in range(candidates.shape[-1]):
        sums = np.concatenate([sums, sums + candidates[..., i, None]], axis=-1)
    return sums


def largest_error(construction, name):
    """The largest absolute entry of the errors of each matrix of that name."""
    return construction.errors[name].abs().amax((-2, -1))


def brute_force(candidates, targets):
    """Masks (P, n), sums and errors (P,) of the best subsets, the smallest mask among equals."""
    sums = subset_sums(candidates)
    errors = np.abs(sums - targets[:, None])
    best = errors.argmin(axis=1)  # argmin takes the first
    rows = np.arange(len(targets))
    masks = (best[:, None] >> np.arange(candidates.shape[1])) & 1 == 1
    return masks, sums[rows, best], errors[rows, best]


def direct_attention(module, x, mask=None):
    """The module's function head by head, from its four factors as they are (never merged), in x's dtype."""
    names = ("query", "key", "value", "output", "scale_qk", "scale_vo")
    weights = [getattr(module, name).detach().to(x.dtype) for name in names]
    return sum(direct_head(x, *head, mask) for head in zip(*weights, strict=True))


def direct_head(x, query, key, value, output, scale_qk, scale_vo, mask):
    scale = float(scale_qk) / math.sqrt(query.shape[-1])
    head = scaled_dot_product_attention(x @ query, x @ key, x @ value, attn_mask=mask, scale=scale)
    return head @ output * scale_vo


def random_target(d_in, d_out, heads, *, hidden=8, seed=100):
    """A float64 target whose four factors of every head have spectral norm 1, as Theorem 9 assumes."""
    target = MultiHeadAttention(d_in, d_out, heads, hidden, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        for weight in target.parameters():
            weight /= torch.linalg.matrix_norm(weight, ord=2, keepdim=True)
    return target


def random_inputs(seed, *shape, norm=1.0, inside=False):
    """Float64 tokens (..., d_in) of the given norm, or, where inside, of random norms up to it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    x *= norm / np.linalg.norm(x, axis=-1, keepdims=True)
    if inside:
        x *= rng.uniform(0, 1, size=(*shape[:-1], 1))
    return torch.from_numpy(x)


def random_mask(seed, *shape):
    """A bool mask (..., T, T), about half True, with a True in each row."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, size=shape).astype(bool)
    at = rng.integers(0, shape[-1], size=(*shape[:-1], 1))
    np.put_along_axis(mask, at, True, axis=-1)
    return torch.from_numpy(mask)


def causal_mask(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


def together(work, count=2):
    """What work(i) gives for i < count, each in a thread of its own at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))
