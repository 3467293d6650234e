"""Networks with linear maps coded by other codes, for comparison with tickets of equal bits."""

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
"""Maps (matrix, bits per weight, weights per group) to (decoded matrix, bits used)."""

OURS = "pairs"
PEERS: dict[str, Coder] = {
    "rounding": peers.rounding,
    "absmax": peers.absmax,
    "sign": peers.sign,
    "seedlm": lambda matrix, bits, group: seedlm.coded(matrix, bits),
}
CODES = (OURS, *PEERS)


@dataclass(frozen=True)
class Decoded:
    """A network with decoded weights, the errors by name of the linear map, and all bits including scales."""

    network: nn.Module
    errors: dict[str, torch.Tensor]
    bits: int


def has(code: str, bits: int) -> bool:
    """Tell whether a code is defined for this many bits per weight."""
    return bits in {"sign": (1,), "seedlm": tuple(seedlm.SHAPES)}.get(code, (bits,))


@torch.no_grad()
def decoded(network: nn.Module, code: str, bits: int, group: int, *, embeddings: bool = False) -> Decoded:
    """Copy a network with each linear map coded independently, its weights in the order of memory."""
    twin, errors, total = copy.deepcopy(network), {}, 0.0
    for each in linear_maps(network, tables=embeddings):
        target = each.matrix(network.get_parameter(each.parameter).detach()).double()
        values, counted = PEERS[code](np.ascontiguousarray(target.T.numpy()), bits, group)  # (outputs, inputs)
        weight = rounded(np.ascontiguousarray(values.T), each.dtype)
        each.put(twin.get_parameter(each.parameter), weight)
        errors[each.name] = weight.double() - target
        total += counted * target.numel()
    return Decoded(twin, errors, round(total))
