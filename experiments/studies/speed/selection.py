"""Time the selection of the kept scores by `slth.kernels.Selector` against sorting and similar operations."""

from collections.abc import Callable

import numpy as np
import torch

from slth.kernels import Cut, Selector
from slth.kernels.select.bench import moved
from slth.kernels.timing import Row, compare, interleave
from slth.masking.masks import count_kept
from slth.weights import inits

WHAT = "selection"
READ = "one read"
KEEP = 0.5
SETTLED = 8  # warm-up cuts of our selector


def rows(scores: int, *, rounds: int, seed: int) -> list[Row]:
    """Return one row per peer, at one number of scores, of which half are kept; the number of threads is torch's.

    All find the least kept magnitude. Before every call, untimed, the scores are changed as by one training step per
    round (see `moved`). READ is the sum of the scores, which is the cost of reading them.

    Errors are the largest share over the rounds of scores that the resulting mask wrongly keeps or prunes. A peer's
    mask keeps all scores >= its answer, which is too many if there are ties.

    Raises RuntimeError if our mask differs from that of the sort.
    """
    start, noise = (inits.uniform((scores,), 1.0, seed=seed, name=f"speed/{name}") for name in ("scores", "noise"))
    now, selector, kept = start.clone(), Selector(), count_kept(scores, KEEP)

    def move(turn: int) -> None:
        moved(start, noise, turn, seed, out=now)

    for turn in range(-SETTLED - 1, -1):
        move(turn)
        selector.cut([now], kept)
    finders = {name: lambda _, find=find: find(now) for name, find in PEERS.items()}
    timed = interleave({"ours": lambda _: selector.cut([now], kept), **finders}, rounds, before=move)
    found = timed.pop("ours")
    wrong = dict.fromkeys(timed, 0.0)
    for turn, cut in enumerate(found.values):
        move(turn)
        _refuse_wrong(cut, now, timed["torch.sort"].values[turn])
        for peer in wrong:
            excess = int((now.abs() >= timed[peer].values[turn]).sum()) - count_kept(scores, KEEP)
            wrong[peer] = max(wrong[peer], abs(excess) / scores) if peer != READ else float("nan")
    conditions = {"scores": scores, "rounds": rounds, "threads": torch.get_num_threads()}
    return [
        compare(WHAT, f"n={scores:,}", found, peer, theirs, 0.0, wrong[peer]) | conditions
        for peer, theirs in timed.items()
    ]


def _refuse_wrong(cut: Cut, scores: torch.Tensor, least: float) -> None:
    magnitudes = scores.abs()
    wanted = magnitudes > least
    equal = (magnitudes == least).nonzero().flatten()
    wanted[equal[: count_kept(scores.numel(), KEEP) - int(wanted.sum())]] = True  # the first of them
    if not cut.mask(scores).equal(wanted):
        raise RuntimeError(f"our mask of {scores.numel()} scores is not that of a sort: its speed is not worth telling")


# ---------------------------------------------------------------- peers


def full_sort(scores: torch.Tensor) -> float:
    """Sort all scores, as hidden-networks does (Ramanujan et al. 2020)."""
    ascending, _ = scores.abs().flatten().sort()
    return float(ascending[scores.numel() - count_kept(scores.numel(), KEEP)])


def kthvalue(scores: torch.Tensor) -> float:
    n = scores.numel()
    return float(scores.abs().flatten().kthvalue(n - count_kept(n, KEEP) + 1).values)


def topk(scores: torch.Tensor) -> float:
    return float(scores.abs().flatten().topk(count_kept(scores.numel(), KEEP), sorted=False).values.min())


def partition(scores: torch.Tensor) -> float:
    place = scores.numel() - count_kept(scores.numel(), KEEP)
    return float(np.partition(np.abs(scores.numpy().ravel()), place)[place])


def read(scores: torch.Tensor) -> float:
    return float(scores.sum())


PEERS: dict[str, Callable[[torch.Tensor], float]] = {
    "torch.sort": full_sort,
    "torch.kthvalue": kthvalue,
    "torch.topk": topk,
    "np.partition": partition,
    READ: read,
}
