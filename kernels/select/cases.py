"""Cases of selection: sizes, ties, and starting thresholds that are right, near, far or NaN."""

from collections.abc import Callable

import torch

from slth import kernels
from slth.weights import inits

from .. import offline
from ..cases import Case, Tensors, normal
from ..cut import Cut

MAKERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda s: s,
    "all equal": torch.ones_like,
    "all zero, both signs": lambda s: torch.where(s < 0, -0.0, 0.0),
    "few magnitudes": lambda s: s.mul(2).round(),
    "tiny and huge": lambda s: s * 10.0 ** (30 * s.roll(1)).clamp(-44, 37),
    "nearly equal": lambda s: 1 + s * 1e-6,
    "some infinite": lambda s: torch.where(s.abs() > 1, torch.inf * s, s),
}
#: Start of the search as a multiple of the true threshold; None: no start.
STARTS = (None, 1.0, 1.001, 0.999, 1.1, 0.0, float("inf"), float("nan"))
FEW_STARTS = (None, 1.0, 1.001)


def _select(k: int, starts: tuple[float | None, ...]) -> Callable[[Tensors, str], Tensors]:
    def call(t: Tensors, impl: str) -> Tensors:
        scores = t["scores"].float()
        found = {}
        for start in starts:
            near = None if start is None else Cut((t["value"] * start).float(), t["last_tie"])
            value, last_tie = kernels.select_threshold(scores, k, near=near, impl=impl).tensors(scores.device)
            found[f"value {start}"] = torch.where(value.isinf(), -1.0, value)  # infinities cannot be subtracted
            found[f"last_tie {start}"] = last_tie
        return found

    return call


def uniform(name: str, *shape: int, device: torch.device) -> torch.Tensor:
    """Draw uniform numbers in (-3, 3), which is faster than normal ones."""
    return inits.uniform(shape, 3.0, seed=0, name=f"cases/{name}").to(device)


def _case(
    kind: str, shape: tuple[int, ...], k: int, starts: tuple[float | None, ...] = STARTS, large: bool = False
) -> Case:
    name = f"{kind}, {k} of {'x'.join(map(str, shape))}"

    def inputs(device: torch.device) -> Tensors:
        drawn = uniform if large else normal
        scores = MAKERS[kind](drawn(f"selection {shape}", *shape, device=device))
        value, last_tie = kernels.select_threshold(scores, k, impl="reference").tensors(device)
        return {"scores": scores, "value": value, "last_tie": last_tie}

    return Case(name, "select_threshold", inputs, _select(k, starts), large, exact=True, dtypes=(torch.float32,))


def _transposed(name: str, rows: int, columns: int, k: int) -> Case:
    def inputs(device: torch.device) -> Tensors:
        return {"scores": normal(name, rows, columns, device=device).mul(3).round()}

    def call(t: Tensors, impl: str) -> Tensors:
        return kernels.select_threshold(t["scores"].float().mT, k, impl=impl)._asdict()

    return Case(name, "select_threshold", inputs, call, exact=True, dtypes=(torch.float32,))


CASES = [
    _case("plain", (1,), 1, FEW_STARTS),
    *(_case(kind, (3, 700), k, FEW_STARTS) for kind in MAKERS for k in (1, 1049, 2100)),
    _case("plain", (4500,), 2250),
    _case("few magnitudes", (4500,), 2250, FEW_STARTS),
    _transposed("transposed scores", 30, 40, 700),
    _case("plain", (7_077_888,), 3_538_944, FEW_STARTS, large=True),
    _case("nearly equal", (7_077_888,), 3_538_944, FEW_STARTS, large=True),
    _case("all equal", (12, 7_077_888), 42_000_001, (None, 1.0), large=True),
    _case("plain", (12, 7_077_888), 42_467_328, FEW_STARTS, large=True),
    _case("few magnitudes", (12, 7_077_887), 8_493_466, FEW_STARTS, large=True),
]

# ---------------------------------------------------------------- compiled without a GPU


def offline_cases() -> list[offline.Case]:
    """Return the kernels as they are launched for scores whose number is a multiple of 16."""
    from . import digits
    from . import triton as t

    types = {
        "bits_ptr": "*i32", "items_ptr": "*i32", "counts_ptr": "*i64", "near_ptr": "*fp32",
        "state_ptr": "*i64", "shares_ptr": "*i32", "value_ptr": "*fp32", "last_tie_ptr": "*i64",
        "total": "i32", "chunk": "i32", "room": "i32", "k": "i32", "programs": "i32",
    }  # fmt: skip
    last = digits.DIGITS.value - 1
    launches = [("pick_out", t._pick_out, {"BLOCK": t.BLOCK}, t.WARPS)]
    launches += [
        (f"count_digit {i}", t._count_digit, {"DIGIT": i, "LAST": last, "BLOCK": t.BLOCK}, t.WARPS)
        for i in (0, 1, last)
    ]
    launches += [("find", t._find, {"PROGRAMS": t.PROGRAMS, "BLOCK": t.FIND_BLOCK}, t.FIND_WARPS)]
    found = []
    for name, kernel, constants, warps in launches:
        own = {key: types[key] for key in kernel.arg_names if key in types}
        aligned = tuple(key for key in own if key not in ("k", "programs"))
        found.append(offline.Case(f"select {name}", kernel, own, constants, warps, 3, aligned=aligned))
    return found
