"""Several processes that train the same scores, each on its share of every batch (torchrun, accelerate).

    torchrun --nproc-per-node 2 my_search.py        # which calls torch.distributed.init_process_group and slth.fit

Each process holds the whole model. It takes its rows of the batch, and what travels is one flat tensor: the gradients
of what is trained, scores alone where a model is wrapped. All processes then take the same step from the same bits, so
that their scores and masks stay the same without being compared. Where no group of processes was made, all of this is
nothing.
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
_own: dist.ProcessGroup | None = None  # in which processes tell each other numbers and words, within `talking`


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _together() else 1


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Have processes that meet over gloo tell each other things in a group of their own, and leave it in the end.

    gloo's threads let go of what Python sent late, and under Python's lock. Should they wait for it while
    DistributedDataParallel, at its end, takes their group down and holds that lock, both wait for ever (torch 2.13: 9
    of 40 searches hung as their processes ended, none with this). A group that is left as here is taken down without
    the lock. One that a process leaves by an error breaks for the others, which end by one too.
    """
    global _own
    gloo = _gloo() if _own is None else None
    if gloo is None:
        yield
        return
    given = getattr(getattr(gloo, "options", None), "_timeout", None)  # the user's; torch's own where it is not told
    _own = dist.new_group(backend="gloo", timeout=given)
    try:
        dist.barrier(group=_own)  # nobody leaves before all have come
        yield
    finally:
        _leave()


def _gloo() -> Any:
    """What tensors on the CPU travel by, where that is gloo and there are several processes; else None."""
    if size() == 1:
        return None
    try:
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    except RuntimeError:  # none, as under NCCL alone
        return None
    return backend if backend.name() == "gloo" else None


def _leave() -> None:
    """A function of its own: the group must be held by no frame of an error that somebody keeps."""
    global _own
    left, _own = _own, None
    with contextlib.suppress(ValueError):  # the default group was taken down, and this one with it
        dist.destroy_process_group(left)


def _tell(collective: Callable[..., Any], *given: Any, device: str = "cpu") -> None:
    """A collective in the group of `talking` for what is on the CPU, in the default one for the rest."""
    try:
        collective(*given, group=_own if device == "cpu" else None)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # torch's, which hold the group
        raise


def share(batch: Any, pieces: int = 1) -> tuple[Any, float]:
    """(this process's rows of a batch, their share of it times the number of processes): 1.0 where all are equal.

    A batch is a tensor or tuples, lists and dicts of them, split along the first axis. pieces: that a process will cut
    its rows into. Raises ValueError, in every process, for another batch, rows that differ between its tensors, and
    fewer rows than processes and pieces need.
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
    """The mean of a scalar over all processes, the same number in each."""
    if size() == 1:
        return float(value.detach())
    found = value.detach().double().clone()
    _tell(dist.all_reduce, found, device=found.device.type)
    return float(found / size())


@torch.no_grad()
def average_gradients(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, as one flat tensor a dtype; DDP has done so already."""
    if size() == 1 or isinstance(model, nn.parallel.DistributedDataParallel):
        return
    for p in parameters:  # the same ones in all processes
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for kind in {(p.dtype, p.device): None for p in parameters}:
        grads = [p.grad for p in parameters if p.grad is not None and (p.dtype, p.device) == kind]
        flat = torch.cat([g.reshape(-1) for g in grads])
        _tell(dist.all_reduce, flat, device=flat.device.type)
        flat /= size()
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))


@torch.no_grad()
def agree_on_statistics(model: nn.Module) -> None:
    """Give all processes the running means of the first one's normalisations, which saw its rows alone."""
    if size() == 1:
        return
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            for buffer in module.buffers(recurse=False):
                _tell(dist.broadcast, buffer, 0, device=buffer.device.type)


def check_same(identity: str) -> None:
    """Raise ValueError, in every process, unless all begin with the same model and settings."""
    if size() == 1:
        return
    found: list[Any] = [None] * size()
    _tell(dist.all_gather_object, found, identity)
    if len(set(found)) > 1:
        ranks = [r for r, one in enumerate(found) if one != found[0]]
        raise ValueError(
            f"processes {ranks} begin with another model, seed or settings than process 0: must be the same"
        )


def from_first(call: Callable[[], T]) -> T:
    """What a call gives in the first process, which alone makes it, in all of them; or its error, in all of them."""
    if size() == 1:
        return call()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told = [call(), None]
        except Exception as error:  # whatever it is: the others wait for an answer
            told = [None, error]
    _tell(dist.broadcast_object_list, told, 0)
    if told[1] is not None:
        raise told[1]
    found: T = told[0]
    return found


def check_whole(batches: object) -> None:
    """Raise ValueError for a loader that gives each process rows of its own: these would be shared out once more."""
    parts = (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    kinds = [type(part).__name__ for part in parts]
    shards = [kind for kind in kinds if kind == "DistributedSampler" or "Shard" in kind]
    if size() > 1 and shards:
        raise ValueError(
            f"batches: {shards[0]} shares them out, must give every process the whole batch: fit does that"
        )
