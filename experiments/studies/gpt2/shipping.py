"""Trained networks as files: the coding of their weights, and the size in bytes.

Codes are entropy-coded by weight (`slth.ticket.bits`, as for masks in tickets), and all other floats are float16. The
functions replace a plain model's parameters by those that the file decodes to, so that its loss is the file's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import nn

from slth.experiments.studies.rate import peers
from slth.ticket import bits

GROUP = 128  # weights per scale when a trained network is rounded


@torch.no_grad()
def floats(model: nn.Module) -> int:
    """Convert all parameters to float16; return the bytes of the file."""
    return _size([], [_halved(p) for p in model.parameters()])


@torch.no_grad()
def sparse(model: nn.Module, paths: Iterable[str]) -> int:
    """Store the masks and the nonzero values of the named weights; return the bytes of the file."""
    coded = _of(model, paths)
    held = [_halved(weight) for weight in coded]
    masks = [weight != 0 for weight in coded]
    values = [value[mask] for value, mask in zip(held, masks, strict=True)]
    return _size([mask.flatten() for mask in masks], values + _rest(model, coded))


@torch.no_grad()
def levels(model: nn.Module, parts_of: Mapping[str, Sequence[torch.Tensor]], count: int) -> int:
    """Code parts (views) of weights by 2 or 3 levels -s, 0 and s, with a float32 s; return the bytes of the file."""
    parts = [part for own in parts_of.values() for part in own]
    codes = [part.sign().long() + 1 if count == 3 else (part > 0).long() for part in parts]
    scales = torch.stack([part.abs().amax() for part in parts])
    streams = [stream for code in codes for stream in streams_of(code.flatten(), count - 1)]
    return _size(streams, _rest(model, _of(model, parts_of)), scales)


@torch.no_grad()
def rounded(model: nn.Module, paths: Iterable[str], width: int) -> int:
    """Round the named weights to 2^width levels, with a bfloat16 scale per GROUP; return the bytes of the file."""
    coded, streams, scales = _of(model, paths), [], []
    for weight in coded:
        matrix: npt.NDArray[np.float64] = weight.double().cpu().numpy()
        codes, steps = peers.nearest(matrix, width, GROUP)
        value = peers.decoded(codes, steps, matrix)
        weight.copy_(torch.from_numpy(value))
        flat = torch.from_numpy(codes.reshape(-1)[: matrix.size]).long() + (1 << width) // 2
        streams += streams_of(flat, width)
        scales.append(torch.from_numpy(steps.reshape(-1)).bfloat16())
    return _size(streams, _rest(model, coded), torch.cat(scales))


def streams_of(codes: torch.Tensor, width: int) -> list[torch.Tensor]:
    """Split codes (n,) int64 in [0, 2^width) into streams of bits, bool.

    The first stream has the highest bits; for each next bit there is one stream per value of the bits above it. Coding
    each stream by its entropy takes the entropy of the codes.
    """
    found = []
    for bit in reversed(range(width)):
        above, here = codes >> (bit + 1), (codes >> bit & 1).bool()
        found += [here[above == prefix] for prefix in range(1 << (width - 1 - bit))]
    return [stream.cpu() for stream in found if stream.numel()]


def _size(streams: list[torch.Tensor], rest: list[torch.Tensor], *scales: torch.Tensor) -> int:
    """Return the bytes of a safetensors file: bits coded by entropy if that is smaller, floats unchanged."""
    tensors = {"floats": torch.cat([each.flatten().cpu() for each in rest])} if rest else {}
    tensors |= {f"scales.{i}": each.cpu() for i, each in enumerate(scales)}
    if streams:
        tensors["codes"] = min(bits.pack(streams), bits.encode(streams), key=torch.Tensor.numel)
    return len(save(tensors))


def _of(model: nn.Module, paths: Iterable[str]) -> list[torch.Tensor]:
    return [model.get_parameter(path) for path in paths]


def _rest(model: nn.Module, coded: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return all other parameters in float16."""
    known = {id(each) for each in coded}
    return [_halved(p) for p in model.parameters() if id(p) not in known]


def _halved(parameter: torch.Tensor) -> torch.Tensor:
    """Round a parameter to float16 in place, and return it as float16."""
    half = parameter.detach().half()
    parameter.copy_(half)
    return half
