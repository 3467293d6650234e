"""A network whose linear maps others have coded: what a ticket of as many bits is measured beside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from slth.construct.networks.hiding import rounded
from slth.construct.networks.maps import linear_maps
from slth.construct.subset_sum import FloatArray
from slth.experiments.studies.rate import peers, seedlm

Coder = Callable[[FloatArray, int, int], tuple[FloatArray, float]]
"""From a matrix, bits a weight and weights of a group to what is decoded, and the bits that it takes."""

OURS = "pairs"
PEERS: dict[str, Coder] = {
    "rounding": peers.rounding,
    "absmax": peers.absmax,
    "sign": peers.sign,
    "seedlm": lambda matrix, bits, group: seedlm.whole(matrix, bits),
}
CODES = (OURS, *PEERS)


@dataclass(frozen=True)
class Decoded:
    """A network with decoded weights; errors by the name of a linear map; bits of all of them, scales among them."""

    network: nn.Module
    errors: dict[str, torch.Tensor]
    bits: int


def has(code: str, bits: int) -> bool:
    """Whether a code is defined for so many bits a weight."""
    return bits in {"sign": (1,), "seedlm": tuple(seedlm.SHAPES)}.get(code, (bits,))


@torch.no_grad()
def decoded(network: nn.Module, code: str, bits: int, group: int, *, embeddings: bool = False) -> Decoded:
    """A copy of a network whose linear maps have been coded, each by itself, its weights as they lie in memory."""
    twin, errors, total = copy.deepcopy(network), {}, 0.0
    for each in linear_maps(network, tables=embeddings):
        target = each.matrix(network.get_parameter(each.parameter).detach()).double()
        values, counted = PEERS[code](np.ascontiguousarray(target.T.numpy()), bits, group)  # (outputs, inputs)
        weight = rounded(np.ascontiguousarray(values.T), each.dtype)
        each.put(twin.get_parameter(each.parameter), weight)
        errors[each.name] = weight.double() - target
        total += counted * target.numel()
    return Decoded(twin, errors, round(total))
