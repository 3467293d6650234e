"""A step as a CUDA graph: recorded once, then replayed, so that Python makes one launch per step instead of thousands.

The Python code of the loss and the model runs only while the step is recorded: a number that a loss takes from outside
the batch keeps its value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from slth.search import batches
from slth.search.steps.device import DeviceStep, capturable
from slth.search.steps.draws import without_draws

_LOG = logging.getLogger(__name__)
_WARM = 3  # steps before the recording, in which libraries allocate their workspaces
_MOST = 8  # recordings at most: if weights move more often, steps run without a graph


class Recorder(Protocol):
    """Records work on a device."""

    def record(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Record the work, perhaps without running it. Returns a function that runs it, always with the same tensor."""


class CUDARecorder:
    """Records work as a CUDA graph on a device, which need not be the current one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Record the work without running it. Returns a function that replays it."""
        with torch.cuda.device(self.device), _left_as_it_was(self.device):
            graph = torch.cuda.CUDAGraph()
            # in this mode a data loader's threads may continue to use CUDA
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                out = work()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


@contextmanager
def _left_as_it_was(device: torch.device) -> Iterator[None]:
    """Undo what torch leaves behind after a failed capture: the current stream and the state of the generator."""
    generator = torch.cuda.default_generators[device.index]
    before = generator.clone_state()
    with torch.cuda.stream(torch.cuda.current_stream(device)):
        try:
            yield
        except BaseException:
            generator.graphsafe_set_state(before)
            raise


class _Recording(NamedTuple):
    batch: Any  # tensors on the device, into which the batch of each step is copied
    replay: Callable[[], torch.Tensor]
    parameters: list[nn.Parameter]
    addresses: list[int]  # of the parameters, as the recording uses them

    def holds(self) -> bool:
        """Return whether the addresses of the parameters are still the same."""
        return _addresses(self.parameters) == self.addresses


class GraphStep:
    """A device's step, recorded after a few steps for batches of their layout.

    A batch of another layout (structure, shapes, dtypes, values that are no tensors) is run without the recording. If
    a step cannot be recorded, because it reads a value back from the device, draws random numbers on the host or lacks
    memory, this is logged once and not tried again. If parameters were moved, the step is recorded again.
    """

    def __init__(self, step: DeviceStep, name: str, recorder: Recorder | None = None) -> None:
        self.step, self.name = step, name
        self._recorder = recorder or CUDARecorder(step.training.device)
        self._recording: _Recording | None = None
        self._layout: list[Any] = []
        self._warm, self._left = 0, _MOST

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each of the optimiser's groups."""
        self.step.set_rates(rates)

    def settle(self) -> None:
        """Wait for all steps so far. Raises as :meth:`DeviceStep.settle` does."""
        self.step.settle()

    def take(self, batch: Any, number: int) -> torch.Tensor:
        """Take a step and return the loss, on the device."""
        if self.step.refresh() or (self._recording and not self._recording.holds()):
            self._forget()
        if self._recording is None and self._left and self.step.recordable:
            self._record(batch)
        if self._recording is None or layout_of(batch) != self._layout:
            return self.step.take(batch, number)
        return self.step.take(batch, number, self._replay)

    def _replay(self, batch: Any) -> torch.Tensor:
        assert self._recording
        for target, source in zip(batches.leaves(self._recording.batch), batches.leaves(batch), strict=True):
            if isinstance(target, torch.Tensor):
                target.copy_(_staged(source, target.device), non_blocking=True)
        return self._recording.replay()

    def _record(self, batch: Any) -> None:
        """Record the step for the layout of this batch, once enough steps with this layout were taken."""
        layout = layout_of(batch)
        self._warm = self._warm + 1 if layout == self._layout else 0
        self._layout = layout
        if self._warm < _WARM:
            return
        device = self.step.training.device
        parameters = list(self.step.training.model.parameters())
        try:
            held = batches.mapped(batch, lambda one: one.to(device).clone() if isinstance(one, torch.Tensor) else one)
            self.step.check_recordable()
            with without_draws(), capturable(self.step.training.optimiser):
                replay = self._recorder.record(lambda: self.step.run(held))
        except Exception as error:  # the loss may do anything that a graph cannot record
            self._forget()
            self._left = 0
            why = error.__context__ or error  # the context is the cause, the error that of the failed capture
            _LOG.warning("%s: steps run without a CUDA graph, as this one cannot be recorded: %s", self.name, why)
        else:
            self._recording = _Recording(held, replay, parameters, _addresses(parameters))
            self._left -= 1
            self.step.recorded()

    def _forget(self) -> None:
        self._recording, self._warm = None, 0


def layout_of(batch: Any) -> list[Any]:
    """Return the layout that batches must share to use one recording; unequal to any other if it holds objects."""
    return [str(batches.mapped(batch, lambda one: "")), *map(_layout_of_leaf, batches.leaves(batch))]


def _layout_of_leaf(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype
    return leaf if isinstance(leaf, int | float | str | bool | None) else object()  # never equal: may change


def _staged(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A pinned copy of a CPU tensor, from which an asynchronous copy to the device is safe."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor
    return torch.empty_like(tensor, pin_memory=True).copy_(tensor)


def _addresses(parameters: Sequence[nn.Parameter]) -> list[int]:
    return [parameter.data_ptr() for parameter in parameters]
