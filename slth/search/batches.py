"""Batches: the batch of a step, its rows, and how it is split.

A batch may be anything that the loss accepts. To be split it must be a tensor, or tuples, lists and dicts of tensors,
with rows along the first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from slth.weights.philox import stream_key


class Feed:
    """The batch of each step, from a function or an iterable."""

    def __init__(self, batches: Callable[[int], Any] | Iterable[Any], seed: int) -> None:
        self.function = batches if callable(batches) else None
        self.iterable = batches
        self.seed, self.next = seed, 0
        self.items: Iterator[Any] | None = None

    def at(self, step: int) -> Any:
        """Return the batch of a step; on resuming, an iterable's batches of earlier steps are drawn and dropped."""
        if self.function is not None:
            return self.function(step)
        while self.next < step:
            self._draw()
        return self._draw()

    def _draw(self) -> Any:
        torch.manual_seed(generator_seed(self.seed, "batch", self.next))
        for _ in range(2):
            if self.items is None:
                self.items = iter(self.iterable)  # type: ignore[arg-type]
            for item in self.items:
                self.next += 1
                return item
            self.items = None
        raise ValueError("batches: must give at least one batch, each time that they are iterated over")


def generator_seed(seed: int, what: str, number: int) -> int:
    """Return the seed of torch's generator for the purpose `what` at step `number`."""
    low, high = stream_key(seed, f"fit/{what}/{number}")
    return (high << 32 | low) & (1 << 63) - 1


def count_rows(batch: Any, purpose: str) -> int:
    """Count the rows of a batch. Raises ValueError if it cannot be split; `purpose` says what for."""
    counts = {len(t) for t in _tensors(batch, purpose)}
    if len(counts) != 1:
        raise ValueError(f"batch: tensors of {sorted(counts) or 'no'} rows, must have equally many, to be {purpose}")
    return counts.pop()


def pieces(batch: Any, count: int) -> Iterator[tuple[Any, float]]:
    """Split a batch along its rows into `count` pieces; yields (piece, its share of the rows).

    With count=1 the batch itself is yielded. Raises ValueError if the batch cannot be split or has fewer rows.
    """
    if count == 1:
        yield batch, 1.0
        return
    total = count_rows(batch, "split")
    if total < count:
        raise ValueError(f"accumulate={count}: must be at most {total}, the rows of the batch")
    for i in range(count):
        start, stop = total * i // count, total * (i + 1) // count
        yield rows(batch, slice(start, stop)), (stop - start) / total


def rows(batch: Any, which: slice) -> Any:
    """Select rows of every tensor of a batch."""
    return mapped(batch, lambda tensor: tensor[which])


def mapped(batch: Any, fn: Callable[[Any], Any]) -> Any:
    """Apply fn to each leaf of a batch and return the results in the same tuples, lists and dicts."""
    if isinstance(batch, Mapping):
        return {key: mapped(part, fn) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [mapped(part, fn) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return fn(batch)


def leaves(batch: Any) -> Iterator[Any]:
    """Yield the leaves of nested tuples, lists and dicts, in order."""
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, tuple | list):
        for part in batch:
            yield from leaves(part)
    else:
        yield batch


def _tensors(batch: Any, purpose: str) -> list[torch.Tensor]:
    tensors = list(leaves(batch))
    for each in tensors:
        if not isinstance(each, torch.Tensor) or not each.dim():
            raise ValueError(f"batch of {type(each).__name__}: must be tensors with a first axis, to be {purpose}")
    return tensors
