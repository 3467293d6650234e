"""A training step of GPT-2's blocks under learned masks against the same step dense, on a GPU in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import slth
from benchmarks.timing import Row, compare, interleave
from slth import inits

WHAT = "step"
PEER = "dense"


class Shape(NamedTuple):
    """Blocks of width d (a multiple of 64, a head's width), and the tokens they see."""

    blocks: int
    d: int
    batch: int
    length: int


GPT2_SMALL = Shape(12, 768, 8, 1024)


class Block(nn.Module):
    """A block of GPT-2, without dropout and biases: attention and a feed-forward network, each after its norm."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.heads = d // 64
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.c_fc, self.c_out = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X (batch, T, d) -> the same shape."""
        fused = self.c_attn(self.ln_1(x)).unflatten(-1, (3, self.heads, 64)).permute(2, 0, 3, 1, 4)
        query, key, value = fused.unbind(0)  # (batch, heads, T, 64)
        found = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.c_proj(found.transpose(1, 2).flatten(-2))
        return x + self.c_out(nn.functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


def blocks_of(shape: Shape, seed: int, device: torch.device) -> nn.Module:
    """The blocks, their weights from a seed, in float32; a step runs them under autocast."""
    model = nn.Sequential(*(Block(shape.d) for _ in range(shape.blocks))).to(device)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            weight.data.copy_(inits.normal(weight.shape, 0.05, seed=seed, name=name, device=device))
    return model


def rows(device: torch.device, rounds: int, seed: int, shape: Shape = GPT2_SMALL) -> list[Row]:
    """Forward, backward and SGD with momentum on the same tokens; torch's attention in both, so masks alone differ.

    `floor_s`: the products of a dense step at 8e14 operations a second.
    """
    x = inits.normal((shape.batch, shape.length, shape.d), 1.0, seed=seed, name="speed/tokens").to(device)
    models = {"ours": slth.wrap(blocks_of(shape, seed, device), 0.5, seed=seed), PEER: blocks_of(shape, seed, device)}
    timed = interleave({name: _step(model, x) for name, model in models.items()}, rounds, warmups=3)
    weights = shape.blocks * 12 * shape.d**2
    size = f"{shape.blocks} x d={shape.d}, {shape.batch} x {shape.length} tokens"
    row = compare(WHAT, size, timed["ours"], PEER, timed[PEER], float("nan"), float("nan"))
    return [row | {"rounds": rounds, "floor_s": 6 * weights * shape.batch * shape.length / 8e14}]


def _step(model: nn.Module, x: torch.Tensor) -> Callable[[int], None]:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2, momentum=0.9)

    def step(_: int) -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            loss = model(x).float().square().mean()
        loss.backward()
        optimiser.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step
