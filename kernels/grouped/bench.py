# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, type-arg, misc"
"""Benchmark all masked weights of GPT-2 small at once on a GPU, against one weight at a time and torch's operations.

Weights and scores are float32, masked weights and their gradients bfloat16; half of each group is kept. Ours is timed
as launched by Python and as a CUDA graph. The peer "each" launches `Selector`, `pruned_weight` and `score_gradient` for
one weight at a time; the peer "torch" is torch.topk, torch.where and torch products in a graph.

floor_s is the time of reading and writing all necessary bytes once at 3.0 TB/s.
"""

import itertools
from collections.abc import Callable

import torch

from slth.weights import inits

from ..cut import Cut
from ..finished import captured, waited
from ..masked_weight import pruned_weight, score_gradient
from ..select import Selector
from ..timing import Row, compare, interleave
from . import Table
from .cases import Weight, gpt2, segments_of
from .reference import offsets

AREA, KERNELS = "grouped", ("grouped",)  # timed if these are right
WHAT = "all masked weights"
SIZES = {"block of GPT-2 small": (1, 768, 0), "GPT-2 small": (12, 768, 50257)}  # blocks, width, vocabulary
BYTES_A_SECOND = 3.0e12
NEAR, FAR = 3e-4, 0.02  # relative growth of scores between cuts: as in training, and beyond the bracket


def rows(device: torch.device, rounds: int, seed: int, sizes: dict[str, tuple[int, int, int]] = SIZES) -> list[Row]:
    """Return rows for each model: a cut near the last one, as in training, a far one, masked weights and gradients.

    Errors are the shares of entries that differ from those of torch's operations.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    return [row for name, size in sizes.items() for row in _Model(size, device, dtype, seed).rows(name, rounds)]


class _Model:
    def __init__(self, size: tuple[int, int, int], device: torch.device, dtype: torch.dtype, seed: int) -> None:
        weights = [weight for weight in gpt2(*size) if weight.shape[0]]
        first = min(weight.groups[0] for weight in weights)
        weights = [weight._replace(groups=tuple(group - first for group in weight.groups)) for weight in weights]
        shapes = {weight.shape for weight in weights}
        drawn = {shape: inits.uniform(shape, 1.0, seed=seed, name="speed").to(device) for shape in shapes}
        self.start = [drawn[weight.shape].roll(i, 0) for i, weight in enumerate(weights)]
        self.scores = [start.clone() for start in self.start]
        pruned = [torch.empty_like(start, dtype=dtype) for start in self.start]
        whole = [start.flip(0) for start in self.start]
        self.segments = segments_of(weights, list(zip(whole, self.scores, pruned, [None] * len(weights), strict=True)))
        self.grads = _parts(weights, [start.roll(1, 0).to(dtype) for start in self.start])
        self.out = _parts(weights, [torch.empty_like(start) for start in self.start])
        self.groups = 1 + max(segment.group for segment in self.segments)
        self.table, self.device = Table(self.segments, self.groups), device
        self.members = [[s.scores for s in self.segments if s.group == group] for group in range(self.groups)]
        self.kept = torch.tensor([sum(s.numel() for s in of) // 2 for of in self.members], device=device)
        self.ks = self.kept.tolist()

    def rows(self, name: str, rounds: int) -> list[Row]:
        entries = sum(segment.scores.numel() for segment in self.segments)
        wide, narrow = 4, self.segments[0].pruned.element_size()
        found = self._cuts(f"{name}: cut", rounds, NEAR, 4 * entries)
        found += self._cuts(f"{name}: cut from afar", rounds, FAR, 5 * 4 * entries)
        found += self._writes(f"{name}: masked weights", rounds, (2 * wide + narrow) * entries)
        return found + self._slopes(f"{name}: gradients", rounds, (3 * wide + narrow) * entries)

    def _cuts(self, size: str, rounds: int, growth: float, moved: int) -> list[Row]:
        selectors = [Selector() for _ in self.members]

        def grown(turn: int) -> None:
            for scores, start in zip(self.scores, self.start, strict=True):
                torch.mul(start, 1.0 + growth * (turn % 2), out=scores)

        def each() -> torch.Tensor:
            pairs = zip(selectors, self.members, self.ks, strict=True)
            return torch.stack(
                [selector.cut(of, k, impl="triton").tensors(self.device)[0] for selector, of, k in pairs]
            )

        def by_torch() -> torch.Tensor:
            flat = (torch.cat([s.reshape(-1) for s in of]).abs() for of in self.members)
            return torch.stack(
                [scores.topk(k, sorted=False).values.amin() for scores, k in zip(flat, self.ks, strict=True)]
            )

        def before(turn: int) -> None:
            grown(turn - 1)
            self._cut()
            each()
            grown(turn)

        return self._compared(size, rounds, self._cut, each, by_torch, moved, before)

    def _cut(self) -> torch.Tensor:
        return self.table.cut(self.kept, impl="triton").value

    def _writes(self, size: str, rounds: int, moved: int) -> list[Row]:
        cuts = self.table.cut(self.kept, impl="triton")
        by_segment = [
            Cut(cuts.value[segment.group], cuts.last_tie[segment.group]).after(offset)
            for segment, offset in zip(self.segments, offsets(self.segments, self.groups), strict=True)
        ]

        def all_at_once() -> torch.Tensor:
            self.table.write(cuts, impl="triton")
            return self.segments[-1].pruned

        def each() -> torch.Tensor:
            pairs = zip(self.segments, by_segment, strict=True)
            return [pruned_weight(s.weight, (s.scores, cut), impl="triton").to(s.pruned.dtype) for s, cut in pairs][-1]

        def by_torch() -> torch.Tensor:
            pairs = zip(self.segments, by_segment, strict=True)
            return [torch.where(s.scores.abs() >= cut.value, s.weight, 0).to(s.pruned.dtype) for s, cut in pairs][-1]

        return self._compared(size, rounds, all_at_once, each, by_torch, moved)

    def _slopes(self, size: str, rounds: int, moved: int) -> list[Row]:
        def all_at_once() -> torch.Tensor:
            self.table.slope(self.grads, self.out, impl="triton")
            return self.out[-1]

        def each() -> torch.Tensor:
            return [
                score_gradient(g, s.weight, s.scores, impl="triton")
                for g, s in zip(self.grads, self.segments, strict=True)
            ][-1]

        def by_torch() -> torch.Tensor:
            pairs = zip(self.grads, self.segments, strict=True)
            return [g.float() * s.weight * torch.where(s.scores < 0, -1.0, 1.0) for g, s in pairs][-1]

        return self._compared(size, rounds, all_at_once, each, by_torch, moved)

    def _compared(
        self, size: str, rounds: int, ours: Callable, each: Callable, by_torch: Callable, moved: int, before=None
    ) -> list[Row]:
        calls = {
            "launched": waited(ours, self.device),
            "captured": captured(ours, self.device),
            "each": waited(each, self.device),
            "torch": captured(by_torch, self.device),
        }
        timings = interleave(calls, rounds, before=before)
        wanted = by_torch()
        wrong = {name: float((call(0) != wanted).double().mean()) for name, call in calls.items()}
        return [
            compare(WHAT, f"{size}, {name}", timings[name], peer, timings[peer], wrong[name], wrong[peer])
            | {"rounds": rounds, "floor_s": moved / BYTES_A_SECOND}
            for name, peer in itertools.product(("launched", "captured"), ("each", "torch"))
        ]


def _parts(weights: list[Weight], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Split one tensor per weight into the parts of its segments."""
    return [
        part for weight, t in zip(weights, tensors, strict=True) for part in t.chunk(len(weight.groups), weight.axis)
    ]
