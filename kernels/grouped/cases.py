"""Cases of models with several weights: parts by rows and columns, groups over several weights, ties, mixed dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .. import offline
from ..cases import Case, Tensors, normal
from . import Segment, Table


class Weight(NamedTuple):
    """A masked weight: its shape, the group of each of its equal parts, and the axis that they split."""

    shape: tuple[int, ...]
    groups: tuple[int, ...]
    axis: int = 0


def _inputs(weights: list[Weight], levels: float) -> Callable[[torch.device], Tensors]:
    """Make weights, gradients and scores; scores are integers, which no dtype rounds, with `levels` per unit."""

    def inputs(device: torch.device) -> Tensors:
        found: Tensors = {}
        for i, weight in enumerate(weights):
            drawn = {name: normal(f"grouped {name} {i}", *weight.shape, device=device) for name in ("w", "g", "s")}
            found |= {f"weight {i}": drawn["w"], f"grad {i}": drawn["g"], f"scores {i}": (drawn["s"] * levels).int()}
        return found

    return inputs


def segments_of(weights: list[Weight], tensors: Sequence[tuple[torch.Tensor | None, ...]]) -> list[Segment]:
    """Make the segments of all weights from (weight, scores, pruned, free) of each."""
    found = []
    for weight, whole in zip(weights, tensors, strict=True):
        count = len(weight.groups)
        parts = zip(*([None] * count if t is None else t.chunk(count, weight.axis) for t in whole), strict=True)
        found += [
            Segment(w, s, pruned, group, free) for (w, s, pruned, free), group in zip(parts, weight.groups, strict=True)
        ]
    return found


def _call(
    weights: list[Weight], keep: float, free: bool, pruned: torch.dtype | None
) -> Callable[[Tensors, str], Tensors]:
    def call(t: Tensors, impl: str) -> Tensors:
        tensors, grads, slopes = [], [], []
        for i in range(len(weights)):
            weight, scores = t[f"weight {i}"], t[f"scores {i}"].float()
            made = torch.empty_like(weight, dtype=pruned)
            grads.append(t[f"grad {i}"].to(made.dtype))
            slopes.append(torch.empty_like(scores))
            tensors.append((weight, scores, made, weight > 0 if free else None))
        segments = segments_of(weights, tensors)
        groups = 1 + max(s.group for s in segments)
        sizes = [sum(s.scores.numel() for s in segments if s.group == group) for group in range(groups)]
        kept = torch.tensor([max(1, int(size * keep)) for size in sizes], device=segments[0].scores.device)
        table = Table(segments, groups)
        found: Tensors = {}
        for turn in ("cold", "warm"):
            value, last_tie, nan = table.cut(kept, impl=impl)
            found |= {f"value {turn}": value.clone(), f"last_tie {turn}": last_tie.clone(), f"nan {turn}": nan.clone()}
        table.write(table.cut(kept, impl=impl), impl=impl)
        found |= {f"pruned {i}": made for i, (_, _, made, _) in enumerate(tensors)}
        parts = [segments_of(weights, [(each,) * 3 + (None,) for each in of]) for of in (grads, slopes)]
        squares = table.slope(*([s.pruned for s in of] for of in parts), impl=impl)
        wanted = sum(slope.square().sum() for slope in slopes)
        found |= {f"slope {i}": slope for i, slope in enumerate(slopes)}
        return found | {"squares": ((squares / wanted - 1).abs() > 1e-4)}

    return call


def _case(
    name: str,
    weights: list[Weight],
    keep: float = 0.5,
    levels: float = 1e6,
    *,
    free: bool = False,
    pruned: torch.dtype | None = None,
    **more: Any,
) -> Case:
    call = _call(weights, keep, free, pruned)
    return Case(f"grouped: {name}", "grouped", _inputs(weights, levels), call, exact=True, **more)


def gpt2(blocks: int, width: int, vocabulary: int, *, layers: bool = True) -> list[Weight]:
    """Return GPT-2's weights with one group each, and one for each of query, key and value; or all in one group."""
    shapes = [((vocabulary, width), 1, 0)]
    for _ in range(blocks):
        shapes += [
            ((width, 3 * width), 3, 1),
            ((width, width), 1, 0),
            ((width, 4 * width), 1, 0),
            ((4 * width, width), 1, 0),
        ]
    weights, group = [], 0
    for shape, parts, axis in shapes:
        weights.append(Weight(shape, tuple(range(group, group + parts)) if layers else (0,) * parts, axis))
        group += parts
    return weights


CASES = [
    _case("one number", [Weight((1, 1), (0,))], 1.0),
    _case("a small GPT-2", gpt2(1, 24, 50)),
    _case("a small GPT-2 in one group, of ties", gpt2(1, 16, 50, layers=False), 0.3, 2.0),
    _case("odd shapes", [Weight((3, 21), (0, 1, 0), 1), Weight((5, 7), (1,)), Weight((9, 3, 3), (0, 2, 2))], 0.7),
    _case("nearly all of a weight of ties", [Weight((40, 80), (0,))], 0.95, 1.0),
    _case("what is not free", [Weight((6, 24), (0, 1, 2), 1), Weight((8, 8), (2,))], free=True),
    _case("float16 of float32", [Weight((16, 24), (0, 1, 2), 1)], pruned=torch.float16, dtypes=(torch.float32,)),
    _case("two blocks of GPT-2 small", gpt2(2, 768, 8192), large=True),
    _case("two blocks of GPT-2 small in one group, of ties", gpt2(2, 768, 8192, layers=False), 0.3, 2.0, large=True),
]  # fmt: skip

# ---------------------------------------------------------------- compiled without a GPU


def offline_cases() -> list[offline.Case]:
    """Return the kernels as they are launched, for weights that are read in granules and for others."""
    from triton.language import bfloat16, float32

    from ..select.digits import DIGITS
    from . import cutting, tables, triton

    types = {
        "table_ptr": "*i64", "stretches_ptr": "*i32", "pieces_ptr": "*i32", "kept_ptr": "*i64", "ends_ptr": "*i64",
        "value_ptr": "*fp32", "last_tie_ptr": "*i64", "items_ptr": "*i32", "counts_ptr": "*i64", "state_ptr": "*i64",
        "nan_ptr": "*i64", "shares_ptr": "*i32", "gradients_ptr": "*i64", "squares_ptr": "*fp32",
        "chunk": "i32", "room": "i32",
    }  # fmt: skip
    counting = {"BLOCK": cutting.BLOCK}
    last = DIGITS.value - 1
    launches: list[tuple[str, Any, dict[str, Any], int]] = [
        ("pick_out", cutting._pick_out, counting, cutting.PICK_WARPS)
    ]
    launches += [
        (f"count_digit {digit}", cutting._count_digit, counting | {"DIGIT": digit, "LAST": last}, 4)
        for digit in (0, 1, last)
    ]
    finding = {"STRETCHES": cutting.STRETCHES, "BLOCK": cutting.FIND_BLOCK}
    launches += [("find", cutting._find, finding, cutting.FIND_WARPS)]
    for name, dtypes in {
        "fp32": (float32, float32),
        "fp32 to bf16": (float32, bfloat16),
        "bf16": (bfloat16, bfloat16),
    }.items():
        writing = dict(zip(("WEIGHT", "PRUNED"), dtypes, strict=True)) | {"PIECE": triton.PIECE, "BLOCK": triton.BLOCK}
        launches += [(f"write {name}", triton._write, writing, 4)]
        launches += [(f"slope {name}", triton._slope, writing | {"FREE": False}, 4)]
    found = []
    for name, kernel, constants, warps in launches:
        own = {key: types[key] for key in kernel.arg_names if key in types}
        aligned = tuple(key for key in own if key not in ("nan_ptr", "counts_ptr"))
        for reading, of in {"": (tables.GRANULE, False), " odd": (1, False), " wide": (tables.GRANULE, True)}.items():
            read = dict(zip(("GRANULE", "WIDE"), of, strict=True))
            found.append(
                offline.Case(f"grouped {name}{reading}", kernel, own, constants | read, warps, 3, aligned=aligned)
            )
    return found
