"""Where to cut scores so that a share of them is kept: `slth.kernels.Selector` against sorting and its
relatives.
"""

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
SETTLED = 8  # cuts that our selector makes before the first that counts


def rows(scores: int, *, rounds: int, seed: int) -> list[Row]:
    """One row for each peer, at one number of scores, of which half are kept; threads are torch's.

    Everyone is asked for where to cut: the least magnitude that is kept. Before every call the scores are written anew,
    untimed, a step of training further in every round (see `moved`). READ is the sum of the scores: it finds nothing,
    and is what reading them costs.

    Errors are shares of the scores: how many a mask made from the answer keeps wrongly or leaves out, at most over the
    rounds. A peer's mask is all that is not smaller than its answer, which keeps more than it should where scores are
    equal.

    Raises RuntimeError where our mask is not, score by score, that of the sort.
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
    """As hidden-networks does (Ramanujan et al. 2020)."""
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
