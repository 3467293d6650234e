"""A step as a CUDA graph: recorded once, then replayed, so that Python launches one thing a step and not thousands.

What Python does in the loss and the model is done while the step is recorded, and not again: a number that a loss takes
from outside the batch stays what it was.
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
_WARM = 3  # steps that are taken before one is recorded, in which libraries allocate what they keep
_MOST = 8  # recordings, after which weights that move all the time are no longer followed


class Recorder(Protocol):
    """Records work on a device."""

    def record(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Record the work, perhaps without doing it; what is returned does it, and gives the same tensor each time."""


class CUDARecorder:
    """Records work as a CUDA graph of a device, which need not be the current one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Record the work without doing it."""
        with torch.cuda.device(self.device), _left_as_it_was(self.device):
            graph = torch.cuda.CUDAGraph()
            # in this mode a loader's threads may go on
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                out = work()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


@contextmanager
def _left_as_it_was(device: torch.device) -> Iterator[None]:
    """Undo what torch leaves of a capture that was broken off: its stream as the current one, the generator in it."""
    generator = torch.cuda.default_generators[device.index]
    before = generator.clone_state()
    with torch.cuda.stream(torch.cuda.current_stream(device)):
        try:
            yield
        except BaseException:
            generator.graphsafe_set_state(before)
            raise


class _Recording(NamedTuple):
    batch: Any  # of tensors on the device, that those of each step are copied into
    replay: Callable[[], torch.Tensor]
    parameters: list[nn.Parameter]
    addresses: list[int]  # of these, which the recording reads and writes

    def holds(self) -> bool:
        """Whether the parameters lie where they did."""
        return _addresses(self.parameters) == self.addresses


class GraphStep:
    """A device's step, recorded after some steps for batches of the first one's layout.

    A batch of another layout (structure, shapes, dtypes, anything in it that is no tensor) is taken without the
    recording. What cannot be recorded, because it reads something back from the device, draws random numbers on the
    host or lacks memory, is not tried again, and a line of the log says so once. Where parameters were moved, the step
    is recorded anew.
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
        """Wait for what the steps so far have found, as :meth:`DeviceStep.settle` does."""
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
        for held, given in zip(batches.leaves(self._recording.batch), batches.leaves(batch), strict=True):
            if isinstance(held, torch.Tensor):
                held.copy_(_staged(given, held.device), non_blocking=True)
        return self._recording.replay()

    def _record(self, batch: Any) -> None:
        """Record the step for batches like this one, once enough like it were taken."""
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
        except Exception as error:  # whatever a loss does that a graph cannot hold
            self._forget()
            self._left = 0
            why = error.__context__ or error  # of which the end of the capture is a consequence
            _LOG.warning("%s: steps run without a CUDA graph, as this one cannot be recorded: %s", self.name, why)
        else:
            self._recording = _Recording(held, replay, parameters, _addresses(parameters))
            self._left -= 1
            self.step.recorded()

    def _forget(self) -> None:
        self._recording, self._warm = None, 0


def layout_of(batch: Any) -> list[Any]:
    """What batches must have in common for one recording to do for them: nothing has, where objects are in them."""
    return [str(batches.mapped(batch, lambda one: "")), *map(_layout_of_leaf, batches.leaves(batch))]


def _layout_of_leaf(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype
    return leaf if isinstance(leaf, int | float | str | bool | None) else object()  # what is in it may change


def _staged(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor that a copy to the device need not wait for, and that nobody writes meanwhile."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor
    return torch.empty_like(tensor, pin_memory=True).copy_(tensor)


def _addresses(parameters: Sequence[nn.Parameter]) -> list[int]:
    return [parameter.data_ptr() for parameter in parameters]
