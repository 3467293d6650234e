"""Training steps: controlled by the host, left to the device, or replayed from a CUDA graph."""

from __future__ import annotations

import logging

import torch
from torch import nn

from slth.masking import Wrapped
from slth.search import parallel
from slth.search.steps.device import DeviceStep, can_fuse
from slth.search.steps.graph import GraphStep
from slth.search.steps.host import HostStep
from slth.search.steps.training import Step, Training

__all__ = ["Step", "Training", "check_graph", "choose"]

_AROUND = nn.DataParallel, nn.parallel.DistributedDataParallel
_LOG = logging.getLogger(__name__)


def check_graph(graph: object, device: torch.device) -> None:
    """Raise ValueError unless graph is "auto", True or False, and for True without a CUDA device."""
    if graph != "auto" and not isinstance(graph, bool):
        raise ValueError(f"graph={graph!r}: must be auto, True or False")
    if graph is True and device.type != "cuda":
        raise ValueError(f"graph=True: needs a CUDA device, the model is on {device}")


def choose(training: Training, wrapped: Wrapped | None, graph: bool | str, name: str) -> Step:
    """Choose how the steps are taken: on a GPU by the device, with a CUDA graph unless graph is False.

    If a GPU cannot do so, the reason is logged: as a warning if graph is True, else as info.
    """
    if training.device.type != "cuda":
        return HostStep(training)
    level = logging.WARNING if graph is True else logging.INFO
    if reason := _host_alone(training):
        _LOG.log(level, "%s: each step waits for the device, without a CUDA graph: %s", name, reason)
        return HostStep(training)
    step = DeviceStep(training, wrapped)
    if graph is False:
        return step
    if not step.recordable:
        _LOG.log(level, "%s: steps run without a CUDA graph, which cannot hold the masks of this search", name)
        return step
    return GraphStep(step, name)


def _host_alone(training: Training) -> str:
    """The reason why steps cannot be left to the device; empty if they can."""
    if parallel.size() > 1 or isinstance(training.model, _AROUND):
        return "several processes or devices train together"
    if not can_fuse(training.optimiser, training.device):
        return f"{type(training.optimiser).__name__} has no fused form for what is trained"
    return ""
