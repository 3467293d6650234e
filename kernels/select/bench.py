# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, type-arg, misc"
"""Benchmark selection on a GPU, with a cold and a warm start, against torch.sort and torch.topk.

`slth.kernels.Selector`, which a wrapped model calls in every step, has separate rows: it also checks for NaN.

floor_s is the time of reading the scores once, 4 bytes each at 3.0 TB/s.
"""

import torch

from slth.weights import inits

from ..cut import Cut
from ..timing import Row, compare, interleave
from . import Selector, select_threshold

AREA, KERNELS = "selection", ("select_threshold",)  # timed if these are right

WHAT, WRAPPED = "selection on the device", "selection of a wrapped model"
SIZES = (7_077_888, 84_934_656)  # scores of a block of GPT-2 small, and of its twelve
BYTES_A_SECOND = 3.0e12


def rows(device: torch.device, rounds: int, seed: int, sizes: tuple[int, ...] = SIZES) -> list[Row]:
    """Return a row for each number of scores, of which half are kept, each start and each peer.

    Scores change by one training step between rounds; a warm start uses the threshold of the last round. Errors are the
    largest share of wrong mask entries over the rounds: a peer returns only a magnitude, so its mask keeps too many
    scores if there are ties.

    Raises RuntimeError if our threshold differs from the reference's, or the selector's mask from the threshold's.
    """
    return [row for scores in sizes for row in _rows(device, rounds, seed, scores)]


def _rows(device: torch.device, rounds: int, seed: int, count: int) -> list[Row]:
    start, noise = (
        inits.uniform((count,), 1.0, seed=seed, name=f"speed/{name}").to(device) for name in ("scores", "noise")
    )
    now, k = start.clone(), (count + 1) // 2
    last, selector = select_threshold(now, k, impl="triton"), Selector()

    def before(turn: int) -> None:
        nonlocal last
        moved(start, noise, turn - 1, seed, out=now)
        last = select_threshold(now, k, impl="triton")
        selector.cut([now], k)
        moved(start, noise, turn, seed, out=now)
        _wait(device)

    def timed(call):
        def run(_: int):
            found = call()
            _wait(device)
            return found

        return run

    calls = {
        "cold": timed(lambda: select_threshold(now, k, impl="triton")),
        "warm": timed(lambda: select_threshold(now, k, near=last, impl="triton")),
        "selector": timed(lambda: selector.cut([now], k)),
        "torch.sort": timed(lambda: now.abs().sort(descending=True).values[k - 1].clone()),
        "torch.topk": timed(lambda: now.abs().topk(k, sorted=False).values.amin()),
    }
    timings = interleave(calls, rounds, before=before)
    errors = dict.fromkeys(("torch.sort", "torch.topk"), 0.0)
    for turn in range(rounds):
        moved(start, noise, turn, seed, out=now)
        wanted = select_threshold(now, k, impl="reference")
        for ours in ("cold", "warm"):
            found = timings[ours].values[turn]
            if not (found.value.equal(wanted.value) and found.last_tie.equal(wanted.last_tie)):
                raise RuntimeError(f"our threshold of {count} scores ({ours}) is not the reference's")
        _refuse_wrong(timings["selector"].values[turn], now, wanted)
        for peer in errors:
            excess = int((now.abs() >= timings[peer].values[turn]).sum()) - k
            errors[peer] = max(errors[peer], abs(excess) / count)
    conditions = {"scores": count, "rounds": rounds, "floor_s": 4 * count / BYTES_A_SECOND}
    return [
        compare(what, f"n={count:,} {ours}", timings[ours], peer, timings[peer], 0.0, errors[peer]) | conditions
        for what, ours in ((WHAT, "cold"), (WHAT, "warm"), (WRAPPED, "selector"))
        for peer in errors
    ]


def moved(start: torch.Tensor, noise: torch.Tensor, turn: int, seed: int, out: torch.Tensor) -> None:
    """Write the scores of a round into out: those of start changed by up to 0.03 %, plus 0.1 % of the noise.

    In training, the cut of a layer was measured to change by 0.004 to 0.03 % per step (medians), with SGD and Adam.
    """
    growth = float(inits.uniform((1,), 3e-4, seed=seed, name=f"speed/growth {turn}"))
    torch.mul(start, 1.0 + growth, out=out).add_(noise.roll(4099 * turn), alpha=1e-3)


def _refuse_wrong(cut: Cut, scores: torch.Tensor, wanted: Cut) -> None:
    if not cut.mask(scores).equal(wanted.mask(scores)):
        raise RuntimeError(f"the selector's mask of {scores.numel()} scores is not the reference's")


def _wait(device: torch.device) -> None:
    """Wait until an asynchronous device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
