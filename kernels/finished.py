"""Wrap calls to return when the device has finished, so that they can be timed."""

from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], torch.Tensor]


def captured(call: Call, device: torch.device) -> Callable[[Any], torch.Tensor]:
    """Capture the call in a CUDA graph, if the device is CUDA, so that its time does not include launch overhead.

    The result is overwritten by the next call. Inputs must keep their addresses.
    """
    if device.type != "cuda":
        return waited(call, device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()

    def replay() -> torch.Tensor:
        graph.replay()
        return found

    return waited(replay, device)


def waited(call: Call, device: torch.device) -> Callable[[Any], torch.Tensor]:
    """Wrap the call, launched by Python each time, as a function of a round's number, which is ignored."""

    def run(_: Any) -> torch.Tensor:
        found = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found.detach()

    return run
