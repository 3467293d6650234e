"""Where to cut scores so that a share of them is kept: `slth.masking.masks.Selector` against sorting and its
relatives.
"""

from collections.abc import Callable

import numpy as np
import torch

from slth.experiments.studies.speed.timing import Row, compare, interleave
from slth.masking.masks import Cut, Selector, count_kept
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
    now, selector = start.clone(), Selector()

    def move(turn: int) -> None:
        moved(start, noise, turn, seed, out=now)

    for turn in range(-SETTLED - 1, -1):
        move(turn)
        selector.cut([now], KEEP)
    finders = {name: lambda _, find=find: find(now) for name, find in PEERS.items()}
    timed = interleave({"ours": lambda _: selector.cut([now], KEEP), **finders}, rounds, before=move)
    ours = timed.pop("ours")
    wrong = dict.fromkeys(timed, 0.0)
    for turn, cut in enumerate(ours.values):
        move(turn)
        _refuse_wrong(cut, now, timed["torch.sort"].values[turn])
        for peer in wrong:
            excess = int((now.abs() >= timed[peer].values[turn]).sum()) - count_kept(scores, KEEP)
            wrong[peer] = max(wrong[peer], abs(excess) / scores) if peer != READ else float("nan")
    conditions = {"scores": scores, "rounds": rounds, "threads": torch.get_num_threads()}
    return [
        compare(WHAT, f"n={scores:,}", ours, peer, theirs, 0.0, wrong[peer]) | conditions
        for peer, theirs in timed.items()
    ]


def moved(start: torch.Tensor, noise: torch.Tensor, turn: int, seed: int, out: torch.Tensor) -> None:
    """The scores of a round, into out: all of start up to 0.03 % larger or smaller, and 0.1 % of the noise.

    Layers in training were seen to move their cut by 0.004 to 0.03 % a step (medians), with SGD and with Adam.
    """
    growth = float(inits.uniform((1,), 3e-4, seed=seed, name=f"speed/growth {turn}"))
    torch.mul(start, 1.0 + growth, out=out).add_(noise.roll(4099 * turn), alpha=1e-3)


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
