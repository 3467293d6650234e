"""How the steps of a search are taken: by the host, by a device, or from a recording of a device's work."""

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
    """Raise ValueError unless it is "auto", True or False, and for True without a CUDA device."""
    if graph != "auto" and not isinstance(graph, bool):
        raise ValueError(f"graph={graph!r}: must be auto, True or False")
    if graph is True and device.type != "cuda":
        raise ValueError(f"graph=True: needs a CUDA device, the model is on {device}")


def choose(training: Training, wrapped: Wrapped | None, graph: bool | str, name: str) -> Step:
    """How the steps of a training are taken: on a GPU by the device, from a graph unless that is False.

    What keeps a GPU from it is logged: as a warning where graph is True, else as information.
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
    """Why steps cannot be left to the device, empty where they can."""
    if parallel.size() > 1 or isinstance(training.model, _AROUND):
        return "several processes or devices train together"
    if not can_fuse(training.optimiser, training.device):
        return f"{type(training.optimiser).__name__} has no fused form for what is trained"
    return ""
