"""Quantisation-aware training: the network uses signs or ternary values of latent float weights.

A straight-through estimator passes the gradient of a quantised weight to its latent weight (Bengio et al. 2013, arXiv
1308.3432). Each part of a weight (query, key and value if they are fused) has one scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from slth.masking import Masked, state
from slth.search import controls
from slth.wrapping import handle

_LEAST = 1e-5  # added to a ternary scale, as in BitNet


def binary_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (signs, scale): -1 or 1 (1 for 0), and mean |w|. Source: Rastegari et al. 2016 (arXiv 1603.05279)."""
    return torch.where(weight < 0, -1.0, 1.0), weight.abs().mean()


def ternary_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (codes, scale): w / mean |w| rounded and clipped to -1, 0 or 1, and mean |w|.

    Source: BitNet b1.58, Ma et al. 2024 (arXiv 2402.17764).
    """
    scale = weight.abs().mean()
    return (weight / (scale + _LEAST)).round().clamp(-1.0, 1.0), scale


#: name -> (codes, scale) of one part of a weight.
QUANTISED: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "binary": binary_codes,
    "ternary": ternary_codes,
}


def quantise(model: nn.Module, name: str) -> None:
    """Make a wrapped model use quantised weights, without masks, and make the latent weights trainable, in place.

    name is a key of QUANTISED. Scores are not trained. Raises ValueError, with nothing changed, for another name, and
    for a model that is not wrapped.
    """
    if name not in _GATES:
        raise ValueError(f"name={name!r}: must be one of {', '.join(_GATES)}")
    controls.train_weights(model)
    for masked in handle(model).weights.values():
        masked.gate = _GATES[name]


@state.named("binary")
def _binary(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    return _quantised(masked, weight, binary_codes)


@state.named("ternary")
def _ternary(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    return _quantised(masked, weight, ternary_codes)


def _quantised(
    masked: Masked, weight: torch.Tensor, codes_of: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    with torch.no_grad():
        parts = [codes_of(part.of(weight)) for part in masked.parts]
        values = [codes.to(weight.dtype) * scale for codes, scale in parts]
        value = values[0] if len(values) == 1 else torch.cat(values, dim=masked.parts[0].dim)
    return value + (weight - weight.detach()) if weight.requires_grad else value


_GATES = {"binary": _binary, "ternary": _ternary}
