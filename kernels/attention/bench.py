# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, type-arg, misc"
"""Benchmark attention and merged attention on a GPU in bfloat16, forward and with backward, against peers.

Peers of merged attention (from qk and vo): scaled_dot_product_attention on the direct form (heads of width n) and on
the merged form (keys and values are the tokens), and FlexAttention on the merged form. Peer of attention:
scaled_dot_product_attention. floor_s is the larger of two times: that of moving all bytes once at 3.0 TB/s, and that of
the operations of the T x T part at 800 TFLOP/s (with backward: 3.5 times those of forward; causal: half).

All calls are captured in a CUDA graph, so times do not include Python's launch overhead.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from slth.weights import inits

from ..finished import captured, waited
from ..timing import Row, compare, interleave
from . import attention, merged_attention, reference

AREA, KERNELS = "attention", ("attention", "merged_attention", "masked_mha")  # timed if these are right
WHAT = "attention"
MERGED = ((64, 1024, 4096, 8), (64, 1024, 1024, 8), (32, 1024, 4096, 8), (128, 1024, 4096, 8))  # (d, n, T, heads)
PLAIN = (
    (64, 4096, 16, False),
    (64, 4096, 16, True),
    (128, 4096, 16, False),
    (128, 4096, 16, True),
)  # (d, T, heads, causal)
SIZES = (*MERGED, *PLAIN)
BYTES_A_SECOND, OPERATIONS_A_SECOND = 3.0e12, 8e14


def rows(device: torch.device, rounds: int, seed: int, sizes: tuple[tuple, ...] = SIZES) -> list[Row]:
    """Return rows for each peer and size, (d, n, T, heads) of merged attention or (d, T, heads, causal) of attention.

    Errors are the largest difference from the float32 reference relative to its largest entry, of the output or of the
    gradient to the first input. A peer that fails has no time.
    """
    return [
        row for size in sizes for row in (_plain if isinstance(size[3], bool) else _merged)(device, rounds, seed, *size)
    ]


def _drawn(device: torch.device, seed: int, name: str, *shape: int, scale: float) -> torch.Tensor:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return inits.uniform(shape, scale, seed=seed, name=f"speed/{name}").to(device, dtype).requires_grad_()


def _merged(device: torch.device, rounds: int, seed: int, d: int, n: int, length: int, heads: int) -> list[Row]:
    x = _drawn(device, seed, "x", 1, length, d, scale=1.0)
    wide = {name: _drawn(device, seed, name, heads, d, n, scale=d**-0.5) for name in ("query", "key", "value")}
    output = _drawn(device, seed, "output", heads, n, d, scale=n**-0.5)
    query, key, value = wide.values()
    with torch.no_grad():
        qk, vo = (query.float() @ key.float().mT * n**-0.5).to(x.dtype), (value.float() @ output.float()).to(x.dtype)
    qk, vo = qk.requires_grad_(), vo.requires_grad_()

    def by_tokens(attend):
        def call() -> torch.Tensor:
            tokens = x.unsqueeze(1)
            shared = tokens.expand(-1, heads, -1, -1)
            return (attend(tokens @ qk, shared) @ vo).sum(1)

        return call

    def direct() -> torch.Tensor:
        tokens = x.unsqueeze(1)
        return (sdpa(tokens @ query, tokens @ key, tokens @ value) @ output).sum(1)

    theirs = {
        "sdpa direct": (direct, (x, query, key, value, output)),
        "sdpa merged": (by_tokens(lambda q, k: sdpa(q, k, k, scale=1.0)), (x, qk, vo)),
        "flex merged": (by_tokens(_flex()), (x, qk, vo)),
    }
    calls = {"ours": (lambda: merged_attention(x, qk, vo, impl="triton"), (x, qk, vo))} | theirs
    exact = lambda x, qk, vo: reference.merged_attention(x, qk, vo, None, False)  # noqa: E731
    moved = x.element_size() * (2 * length * d + 2 * heads * d * d)
    operations = 4 * heads * length**2 * d + 4 * heads * length * d * d
    return _timed(f"merged d={d} n={n} T={length} H={heads}", calls, exact, moved, operations, rounds)


def _plain(device: torch.device, rounds: int, seed: int, d: int, length: int, heads: int, causal: bool) -> list[Row]:
    q, k, v = (_drawn(device, seed, name, 1, heads, length, d, scale=1.0) for name in ("q", "k", "v"))
    calls = {
        "ours": (lambda: attention(q, k, v, causal=causal, impl="triton"), (q, k, v)),
        "sdpa": (lambda: sdpa(q, k, v, is_causal=causal), (q, k, v)),
    }
    exact = lambda q, k, v: reference.attention(q, k, v, None, causal, d**-0.5)  # noqa: E731
    moved, operations = q.element_size() * 4 * heads * length * d, 4 * heads * length**2 * d / (2 if causal else 1)
    return _timed(f"{'causal ' * causal}d={d} T={length} H={heads}", calls, exact, moved, operations, rounds)


def _flex():
    """Return FlexAttention, compiled on its first call, for one size."""

    @functools.cache
    def compiled(on_gpu: bool) -> Callable[..., torch.Tensor]:
        from torch.nn.attention.flex_attention import flex_attention

        if not on_gpu:
            return flex_attention
        torch.compiler.reset()  # else earlier sizes count towards the limit of recompilations
        return torch.compile(flex_attention, dynamic=False)

    return lambda q, k: compiled(q.is_cuda)(q, k, k, scale=1.0)


def _timed(size: str, calls, exact, moved: float, operations: float, rounds: int) -> list[Row]:
    """Return rows of forward and of forward with backward; calls: name -> (call, inputs that need gradients)."""
    found = []
    for what in ("forward", "forward and backward"):
        runs, notes = {}, {}
        for name, (call, inputs) in calls.items():
            try:
                run = captured(_whole(call, inputs, what == "forward"), inputs[0].device)
                run(0)
            except Exception as error:  # a peer may fail in its compiler, in a launch or for lack of memory
                if name == "ours":
                    raise
                notes[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            else:
                runs[name], notes[name] = run, ""
        del notes["ours"]
        timings = interleave(runs, rounds)
        wide = [t.detach().float().requires_grad_() for t in calls["ours"][1]]
        truth = waited(_whole(lambda wide=wide: exact(*wide), wide, what == "forward"), wide[0].device)(0)
        errors = {name: _error(timing.values[-1], truth) for name, timing in timings.items()}
        factor = 1.0 if what == "forward" else 3.5
        floor = max(factor * moved / BYTES_A_SECOND, factor * operations / OPERATIONS_A_SECOND)
        rest = {"floor_s": floor, "rounds": rounds}
        for peer, note in notes.items():
            if note:
                row = compare(f"{WHAT}, {what}", size, timings["ours"], peer, timings["ours"], errors["ours"], math.nan)
                row |= dict.fromkeys(("peer_s", "ratio", "peer_s_low", "peer_s_high"), math.nan)
            else:
                both = timings["ours"], peer, timings[peer]
                row = compare(f"{WHAT}, {what}", size, *both, errors["ours"], errors[peer])
            found.append(row | rest | {"note": note})
    return found


def _whole(call, inputs, forward: bool):
    """Wrap a call to return its output (forward), or to run its backward and return the first input's gradient."""

    def run() -> torch.Tensor:
        if forward:
            with torch.no_grad():
                return call()
        out = call()
        return torch.autograd.grad(out, inputs, torch.ones_like(out))[0]

    return run


def _error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.float() - truth).abs().max() / truth.abs().max())
