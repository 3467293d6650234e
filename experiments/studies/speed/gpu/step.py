"""Time a training step of GPT-2's blocks with learned masks against the dense step, on a GPU in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import slth
from slth import kernels
from slth.experiments.studies.speed.training_step import Blocks, Shape
from slth.kernels.timing import Row, compare, interleave
from slth.models import gpt2_kernels
from slth.weights import inits

WHAT = "step"
PEER = "dense"
GPT2_SMALL = Shape(12, 768, 8, 1024)


def rows(device: torch.device, rounds: int, seed: int, shape: Shape = GPT2_SMALL) -> list[Row]:
    """Time forward, backward and SGD with momentum on the same tokens: ours with our attention, dense with torch's.

    The error is the largest difference between our outputs and those of the same model without Triton, before the first
    step, relative to the largest entry; the dense peer computes another function and has none. `floor_s` is the time of
    the products of a dense step at 8e14 FLOP/s.
    """
    x = inits.normal((shape.batch, shape.length, shape.d), 1.0, seed=seed, name="speed/tokens").to(device)
    ours = slth.wrap(Blocks(shape, seed, gpt2_kernels.NAME).to(device), 0.5, seed=seed)
    error = _error(ours, x)
    models = {"ours": ours, PEER: Blocks(shape, seed, "sdpa").to(device)}
    timed = interleave({name: _step(model, x) for name, model in models.items()}, rounds, warmups=3)
    weights = shape.blocks * 12 * shape.d**2
    size = f"{shape.blocks} x d={shape.d}, {shape.batch} x {shape.length} tokens"
    row = compare(WHAT, size, timed["ours"], PEER, timed[PEER], error, float("nan"))
    return [row | {"rounds": rounds, "floor_s": 6 * weights * shape.batch * shape.length / 8e14}]


@torch.no_grad()
def _error(model: nn.Module, x: torch.Tensor) -> float:
    with kernels.use("reference"):
        wanted = _forward(model, x)
    return float((_forward(model, x) - wanted).abs().max() / wanted.abs().max())


def _forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
        loss: torch.Tensor = model(x).float()
        return loss


def _step(model: nn.Module, x: torch.Tensor) -> Callable[[int], None]:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2, momentum=0.9)

    def step(_: int) -> None:
        optimiser.zero_grad(set_to_none=True)
        _forward(model, x).square().mean().backward()
        optimiser.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step
