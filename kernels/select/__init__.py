"""Selection: the threshold that keeps exactly k scores, those of largest magnitude, with ties to the lowest index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..arguments import check_device
from ..cut import Cut
from ..dispatch import Kernel
from . import reference

_MOST = 2**32  # most scores of a group

_SELECT = Kernel(reference.select_threshold)
_SELECTION = Kernel(reference.Selection, "select_threshold")


def select_threshold(scores: torch.Tensor, k: int, *, near: Cut | None = None, impl: str = "auto") -> Cut:
    """Find the threshold that keeps the k scores of largest magnitude, with ties to the lowest index.

    On a GPU nothing is copied to the host, so the call does not synchronise.

    Args:
        scores: float32, any shape, without NaN (which is not checked).
        k: number of scores to keep, from 1 to all.
        near: the cut of the last step, where Triton's search starts; it does not affect the result.
        impl: "auto", "reference", "cpu" or "triton".

    Returns a :class:`Cut` of tensors, whose last_tie is a row-major index. Raises ValueError for another dtype or k.
    """
    _check([scores], k)
    if near is not None and isinstance(near.value, torch.Tensor):
        check_device(scores=scores, near=near.value)
    return _SELECT.choose(impl, scores)(scores, k, near)


class Selector:
    """Finds the cut of one group of scores step after step, starting from the last one."""

    def __init__(self) -> None:
        self._selections: dict[Callable[[], reference.Selection], reference.Selection] = {}  # by implementation

    def cut(self, scores: Sequence[torch.Tensor], k: int, *, impl: str = "auto") -> Cut:
        """Find the cut that keeps exactly k of the group's scores, float32 of any shape and device.

        With Triton nothing is copied to the host: the cut consists of tensors, and NaN is detected one or more calls
        later, or by :meth:`settle`.

        Raises ValueError for no scores or more than 2^32, for k outside [1, number of scores], and for scores that are
        not float32 or contain NaN.
        """
        _check(scores, k)
        kind = _SELECTION.choose(impl, scores[0])
        selection = self._selections.get(kind)
        if selection is None:
            selection = self._selections[kind] = kind()
        return selection.cut(scores, k)

    def settle(self) -> None:
        """Wait for the NaN checks of all cuts on a device. Raises ValueError if one found NaN."""
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
