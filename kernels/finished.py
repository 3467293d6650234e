"""Calls that return when the device is done, so that they can be timed."""

from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], torch.Tensor]


def captured(call: Call, device: torch.device) -> Callable[[Any], torch.Tensor]:
    """The call as a CUDA graph, where there is CUDA: its kernels' time, without Python's for launching them.

    What it returns is overwritten by the next call. Inputs must stay where they are.
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
    """The call, launched by Python each time; it takes a round's number, which it has no use for."""

    def run(_: Any) -> torch.Tensor:
        found = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found.detach()

    return run
