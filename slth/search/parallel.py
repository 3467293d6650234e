"""Train the same scores in several processes, each on its share of every batch (torchrun, accelerate).

    torchrun --nproc-per-node 2 my_search.py        # calls torch.distributed.init_process_group and slth.fit

Each process holds the whole model and takes its rows of the batch. The processes exchange one flat tensor, the
gradients of the trained parameters (scores only, if the model is wrapped). All of them then take the same step from the
same bits, so that their scores and masks stay equal without being compared. Without an initialised process group, every
function here is a no-op.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from slth.search import batches

T = TypeVar("T")
_own: dist.ProcessGroup | None = None  # the group for communication on the CPU, inside `talking`


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the index of this process, from 0."""
    return dist.get_rank() if _together() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _together() else 1


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """If processes communicate over gloo, use a separate group in the block and destroy it at the end.

    gloo's threads release Python objects late and need the GIL for it. If DistributedDataParallel destroys their group
    at exit while holding the GIL, both deadlock (torch 2.13: 9 of 40 searches hung when their processes ended, none
    with this). A group that is destroyed here is destroyed without the GIL. If one process leaves with an error, the
    group breaks, so that the others end with an error too.
    """
    global _own
    gloo = _gloo() if _own is None else None
    if gloo is None:
        yield
        return
    timeout = getattr(getattr(gloo, "options", None), "_timeout", None)  # the user's; None: torch's default
    _own = dist.new_group(backend="gloo", timeout=timeout)
    try:
        dist.barrier(group=_own)  # no process leaves before all have entered
        yield
    finally:
        _leave()


def _gloo() -> Any:
    """The backend for tensors on the CPU, if it is gloo and there are several processes; else None."""
    if size() == 1:
        return None
    try:
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    except RuntimeError:  # no CPU backend, as with NCCL alone
        return None
    return backend if backend.name() == "gloo" else None


def _leave() -> None:
    """Destroy the group. A separate function, so that no frame of an error that is kept refers to the group."""
    global _own
    group, _own = _own, None
    with contextlib.suppress(ValueError):  # the default group was destroyed, and this one with it
        dist.destroy_process_group(group)


def _run(collective: Callable[..., Any], *args: Any, device: str = "cpu") -> None:
    """Run a collective, on the CPU in the group of `talking`, on other devices in the default group."""
    try:
        collective(*args, group=_own if device == "cpu" else None)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # torch's frames refer to the group
        raise


def share(batch: Any, pieces: int = 1) -> tuple[Any, float]:
    """Select this process's rows of a batch.

    Args:
        batch: a tensor or tuples, lists and dicts of tensors, split along the first axis.
        pieces: the number of pieces into which each process will split its rows.

    Returns:
        (rows, weight): the weight is the rows' share of the batch times the number of processes, 1.0 if all have
        equally many.

    Raises:
        ValueError: in every process, for another type of batch, tensors with different numbers of rows, and fewer rows
            than processes times pieces.
    """
    if size() == 1:
        return batch, 1.0
    count = batches.count_rows(batch, "shared out")
    if count < size():
        raise ValueError(f"batch of {count} rows: must have one or more for each of {size()} processes")
    if count < size() * pieces:
        raise ValueError(
            f"accumulate={pieces}: must be at most {count // size()}, the rows of the batch that each of {size()} "
            "processes has"
        )
    rows = [count * r // size() for r in (rank(), rank() + 1)]
    return batches.rows(batch, slice(*rows)), (rows[1] - rows[0]) * size() / count


def mean(value: torch.Tensor) -> float:
    """Return the mean of a scalar tensor over all processes, the same number in each."""
    if size() == 1:
        return float(value.detach())
    total = value.detach().double().clone()
    _run(dist.all_reduce, total, device=total.device.type)
    return float(total / size())


@torch.no_grad()
def average_gradients(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, sent as one flat tensor per dtype; under DDP a no-op."""
    if size() == 1 or isinstance(model, nn.parallel.DistributedDataParallel):
        return
    for p in parameters:  # the same ones in all processes
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for kind in {(p.dtype, p.device): None for p in parameters}:
        grads = [p.grad for p in parameters if p.grad is not None and (p.dtype, p.device) == kind]
        flat = torch.cat([g.reshape(-1) for g in grads])
        _run(dist.all_reduce, flat, device=flat.device.type)
        flat /= size()
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))


@torch.no_grad()
def agree_on_statistics(model: nn.Module) -> None:
    """Copy running statistics of normalisations from the first process to all; they cover its rows only."""
    if size() == 1:
        return
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            for buffer in module.buffers(recurse=False):
                _run(dist.broadcast, buffer, 0, device=buffer.device.type)


def check_same(identity: str) -> None:
    """Raise ValueError, in every process, unless all begin with the same model and settings."""
    if size() == 1:
        return
    identities: list[Any] = [None] * size()
    _run(dist.all_gather_object, identities, identity)
    if len(set(identities)) > 1:
        ranks = [r for r, one in enumerate(identities) if one != identities[0]]
        raise ValueError(
            f"processes {ranks} begin with another model, seed or settings than process 0: must be the same"
        )


def from_first(call: Callable[[], T]) -> T:
    """Run a call in the first process only, and return its result, or raise its error, in all processes."""
    if size() == 1:
        return call()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome = [call(), None]
        except Exception as error:  # any error is sent, as the other processes wait for the outcome
            outcome = [None, error]
    _run(dist.broadcast_object_list, outcome, 0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def check_whole(batches: object) -> None:
    """Raise ValueError for a loader that already splits batches between processes: they would be split twice."""
    parts = (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    kinds = [type(part).__name__ for part in parts]
    shards = [kind for kind in kinds if kind == "DistributedSampler" or "Shard" in kind]
    if size() > 1 and shards:
        raise ValueError(
            f"batches: {shards[0]} shares them out, must give every process the whole batch: fit does that"
        )
