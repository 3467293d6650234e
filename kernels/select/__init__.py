"""Where to cut scores for exactly k of them to be kept: those of largest magnitude, ties going to the lowest index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..arguments import check_device
from ..cut import Cut
from ..dispatch import Kernel
from . import reference

_MOST = 2**32  # scores of a group

_SELECT = Kernel(reference.select_threshold)
_SELECTION = Kernel(reference.Selection, "select_threshold")


def select_threshold(scores: torch.Tensor, k: int, *, near: Cut | None = None, impl: str = "auto") -> Cut:
    """Where to cut for exactly k scores to be kept: those of largest magnitude, ties going to the lowest index.

    On a GPU nothing is copied to the host, whose work goes on meanwhile.

    Args:
        scores: float32, any shape, not NaN (which is not looked for).
        k: how many are kept, from 1 to their number.
        near: the last step's cut, from where Triton's search starts; never changes what is kept.
        impl: "auto", "reference", "cpu" or "triton".

    Returns a :class:`Cut` of tensors, whose last_tie counts row by row. Raises ValueError for another dtype or k.
    """
    _check([scores], k)
    if near is not None and isinstance(near.value, torch.Tensor):
        check_device(scores=scores, near=near.value)
    return _SELECT.choose(impl, scores)(scores, k, near)


class Selector:
    """Finds the cut of one group of scores, step after step, and remembers where it was."""

    def __init__(self) -> None:
        self._selections: dict[Callable[[], reference.Selection], reference.Selection] = {}  # by implementation

    def cut(self, scores: Sequence[torch.Tensor], k: int, *, impl: str = "auto") -> Cut:
        """The cut that keeps exactly k of the group's scores, float32 of any shape and device.

        Where it takes Triton nothing comes back to the host: the cut is of tensors, and NaN is noticed a call or more
        later, or by :meth:`settle`.

        Raises ValueError where there are no scores or over 2^32, another k than from 1 to their number, and where
        they are not float32 or hold NaN.
        """
        _check(scores, k)
        kind = _SELECTION.choose(impl, scores[0])
        selection = self._selections.get(kind)
        if selection is None:
            selection = self._selections[kind] = kind()
        return selection.cut(scores, k)

    def settle(self) -> None:
        """Wait for what cuts on a device have found. Raises ValueError where it was NaN."""
        for selection in self._selections.values():
            selection.settle()


def _check(scores: Sequence[torch.Tensor], k: int) -> None:
    total = 0
    for s in scores:
        if s.dtype != torch.float32:
            raise ValueError(f"scores of dtype {s.dtype}: must be torch.float32")
        total += s.numel()
    if not 0 < total <= _MOST:
        raise ValueError(f"scores: there are {total or 'none'}; at least one is needed, and at most 2^32")
    if not 1 <= k <= total:
        raise ValueError(f"k={k}: must be from 1 to the number of scores, {total}")
