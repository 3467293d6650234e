"""Serve a ticket at its shipped size: weights are stored as seeds and one bit per entry.

    model = slth.serve(slth.Ticket.load("t.safetensors"), build())

Linear layers become :class:`SeededLinear`, which draws the random weights whenever it uses them (on a GPU tile by tile
in Triton, never the whole weight in memory; elsewhere one layer at a time). They store nothing of the random backbone:
each served model stores only its own masks, biases, and the layers (embeddings) that stay dense. Modules of slth
(attentions, the sources of constructions) are not replaced; their weights become
:class:`slth.ticket.seeded.SeededWeight`, drawn whenever they are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import slth.kernels as kernels
from slth.building import Recorded
from slth.kernels.seeded.reference import SEEDED
from slth.masking.layouts import is_conv1d
from slth.masking.scales import Scale
from slth.modules import check_module
from slth.ticket import Ticket, Weight, packing
from slth.ticket.making import tensors_of
from slth.ticket.seeded import read_seeded
from slth.weights.recipes import Draw


class SeededLinear(nn.Module):
    """A linear layer, (..., in) -> (..., out), that computes its weight from draws and one bit per entry in each pass.

    `bits` is uint8 (parts, rows, ceil(columns / 8)): the masks of equal parts along the outputs, in the format of
    `slth.kernels.pack_mask`. Rows are outputs, or inputs if `inputs_first`. The weight takes only `bits.nbytes` of
    memory, for any dtype of x, to which it is rounded on use.
    """

    bits: torch.Tensor
    bias: nn.Parameter | None

    def __init__(
        self, draws: Sequence[Draw], mask: torch.Tensor, bias: nn.Parameter | None = None, *, inputs_first: bool = False
    ) -> None:
        """Create a layer from the draws of its weight's parts along the outputs.

        Args:
            draws: one per part, of a distribution that `slth.kernels.seeded_linear` supports.
            mask: bool (out, in) as in nn.Linear, True = kept; out must be divisible by the number of parts.
            bias: (out,), or None.
            inputs_first: whether the weight and its mask are (in, out), as in Hugging Face's Conv1D.

        Raises:
            ValueError: for another distribution, and for parts or a bias that do not fit.
        """
        super().__init__()
        self.draws, self.inputs_first = tuple(draws), inputs_first
        if odd := sorted({draw.distribution for draw in self.draws}.difference(SEEDED)):
            raise ValueError(f"draws by {odd[0]!r}: must be by {', '.join(SEEDED)}")
        dim = self._dim
        self.out_features, self.in_features = mask.shape[dim], mask.shape[1 - dim]
        if not self.draws or self.out_features % len(self.draws):
            raise ValueError(f"{len(self.draws)} parts of {self.out_features} outputs: must be equal ones")
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(f"bias {tuple(bias.shape)}: must be ({self.out_features},)")
        parts = mask.unflatten(dim, (len(self.draws), -1)).movedim(dim, 0)  # (parts, rows, columns)
        self.register_buffer("bits", kernels.pack_mask(parts))
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., in) to (..., out), in the dtype of x; differentiable in x and the bias."""
        parts = len(self.draws)
        biases = [None] * parts if self.bias is None else self.bias.to(x.dtype).chunk(parts)
        outputs = [
            kernels.seeded_linear(
                x, draw, bits, columns=self.out_features // parts if self.inputs_first else None, bias=bias
            )
            for draw, bits, bias in zip(self.draws, self.bits, biases, strict=True)
        ]
        return outputs[0] if parts == 1 else torch.cat(outputs, dim=-1)

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, float32, (out, in) or (in, out), computed at each access."""
        columns = self.out_features // len(self.draws) if self.inputs_first else self.in_features
        parts = [
            kernels.seeded_weight((len(bits), columns), draw, bits=bits, device=bits.device)
            for draw, bits in zip(self.draws, self.bits, strict=True)
        ]
        return torch.cat(parts, dim=self._dim)

    def extra_repr(self) -> str:
        """Return sizes, distributions and bias, for repr."""
        drawn = ", ".join(dict.fromkeys(f"{draw.distribution} {draw.scale:.4g}" for draw in self.draws))
        return f"{self.in_features}, {self.out_features}, {drawn}, bias={self.bias is not None}"

    @property
    def _dim(self) -> int:
        """The axis of the outputs."""
        return int(self.inputs_first)


class SeededSum(nn.Module):
    """A linear layer, (..., in) -> (..., out), whose weight is a signed sum of masked weights: for signs or multiples.

    Each of `layers` draws the same weight under its own mask; `signs` are 1 or -1. With a scale, the output is
    multiplied by one factor per output, or the input by one factor per input.
    """

    outputs: torch.Tensor | None
    inputs: torch.Tensor | None
    bias: nn.Parameter | None

    def __init__(
        self,
        layers: Sequence[SeededLinear],
        signs: Sequence[int],
        bias: nn.Parameter | None = None,
        scale: tuple[Scale, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.signs = nn.ModuleList(layers), tuple(signs)
        self.register_parameter("bias", bias)
        first = layers[0]
        self.in_features, self.out_features, self.inputs_first = (
            first.in_features,
            first.out_features,
            first.inputs_first,
        )
        outputs = scale is not None and scale[0].axis == int(self.inputs_first)
        spread = None if scale is None else scale[0].spread(scale[1], self._shape).flatten()
        self.register_buffer("outputs", spread if outputs else None)
        self.register_buffer("inputs", None if outputs else spread)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., in) to (..., out), in the dtype of x; differentiable in x and the bias."""
        if self.inputs is not None:
            x = x * self.inputs.to(x.dtype)
        out = self._sum([layer(x) for layer in self.layers])
        if self.outputs is not None:
            out = out * self.outputs.to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, float32, (out, in) or (in, out), computed at each access."""
        total = self._sum([layer.weight for layer in self.layers])
        for factors, axis in ((self.outputs, int(self.inputs_first)), (self.inputs, 1 - int(self.inputs_first))):
            if factors is not None:
                total = total * factors.reshape([-1 if i == axis else 1 for i in range(2)])
        return total

    def _sum(self, terms: Sequence[Any]) -> torch.Tensor:
        """The sum of terms with the signs of the layers."""
        return torch.stack([sign * term for sign, term in zip(self.signs, terms, strict=True)]).sum(0)

    @property
    def _shape(self) -> tuple[int, int]:
        """The shape of the weight."""
        shape = self.out_features, self.in_features
        return shape[::-1] if self.inputs_first else shape


@torch.no_grad()
def serve(ticket: Ticket, module: nn.Module) -> nn.Module:
    """Turn a plain module into the ticket's network, in place, with linear layers that store one bit per weight.

    Each nn.Linear and Hugging Face Conv1D whose masked weight `slth.kernels` can draw (uniform, uniform16 or sign; in
    parts along the outputs if there are several) is replaced by a :class:`SeededLinear`, or, if masks do more than
    prune, by a :class:`SeededSum` with one for each sign and level. Such weights of slth's own modules are drawn
    whenever they are read. All other weights are those of `Ticket.apply`: embeddings, convolutions, tied weights,
    weights drawn by normal, and weights that a search redrew or made binary. Outputs are those of the applied ticket,
    up to the order of sums.

    The conversion needs as much memory as `Ticket.apply`. Afterwards each served weight takes ceil(columns / 8) bytes
    per row. On the CPU such layers are slower than dense ones, as each pass draws their weights.

    Args:
        ticket: the ticket.
        module: a plain module with the ticket's names, shapes and dtypes, on the device to serve from.

    Returns:
        The module in eval mode; if it is itself such a linear layer, the layer that replaces it.

    Raises:
        TicketError: as `Ticket.apply` does.
        TypeError: if `ticket` is not a ticket.
        ValueError: with the reasons, if no layer can be served, and if `module` is wrapped or no module. Nothing is
            changed after any error.
    """
    if not isinstance(ticket, Ticket):
        raise TypeError(f"ticket={ticket!r}: must be a slth.Ticket, which slth.Ticket.load reads from a file")
    check_module(module)
    served = _served(ticket, module)
    ticket.apply(module)
    masks, factors = ticket.multipliers(), packing.factors_of(ticket.weights, ticket.tensors)
    for weight in served:
        assert weight.recipe
        if not _is_linear(module.get_submodule(_layer(weight))):
            read_seeded(module, weight.path, weight.recipe.draws[0], masks.pop(weight.path))
            continue
        place, own = module.get_submodule(_layer(weight)), factors.get(weight.path)
        layer = _seeded(weight, masks.pop(weight.path), own, place)
        if not _layer(weight):
            return layer
        module.set_submodule(_layer(weight), layer)
    return module


def _served(ticket: Ticket, module: nn.Module) -> list[Weight]:
    """The weights of the ticket that a seeded layer can hold. Raises ValueError if there is none."""
    tensors_of(module)  # raises for a wrapped module
    places = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    tied = {path for path, p in module.named_parameters() if places[id(p)] > 1}
    layers = dict(module.named_modules())
    reasons = {w.path: _obstacle(w, layers, tied) for w in ticket.weights}
    if all(reasons.values()):
        lines = [f"{path} {reason}" for path, reason in reasons.items()]
        raise ValueError(f"no layer can be served: {'; '.join(lines[:8])}{'; ...' if len(lines) > 8 else ''}")
    return [weight for weight in ticket.weights if not reasons[weight.path]]


def _layer(weight: Weight) -> str:
    """The name of the layer that holds a weight."""
    return weight.path.rpartition(".")[0]


def _is_linear(layer: nn.Module | None) -> bool:
    return type(layer) is nn.Linear or (layer is not None and is_conv1d(layer))


def _is_of_slth(name: str, layers: dict[str, nn.Module]) -> bool:
    """Whether the layer with this name is a module of slth, or a list of parameters in one."""
    listed = isinstance(layers.get(name), nn.ParameterList)
    return isinstance(layers.get(name.rpartition(".")[0] if listed else name), Recorded)


def _obstacle(weight: Weight, layers: dict[str, nn.Module], tied: set[str]) -> str:
    """The reason why a weight cannot be served; empty if it can."""
    layer, of_slth = layers.get(_layer(weight)), _is_of_slth(_layer(weight), layers)
    if not of_slth and not (_is_linear(layer) and weight.path.rpartition(".")[2] == "weight"):
        return "is no weight of an nn.Linear or Conv1D, or of slth's own, in this module"
    if weight.path in tied:
        return "is tied"
    if weight.recipe is None:
        return "lies over a base, no seed makes it"
    if altered := [trait.altered for trait in weight.traits if trait.altered]:
        return f"was {' and '.join(altered)} by its search"
    draws = weight.recipe.draws
    if odd := sorted({draw.distribution for draw in draws}.difference(SEEDED)):
        return f"is drawn by {odd[0]!r}, must be by {', '.join(SEEDED)}"
    if len(draws) > 1 and (layer is None or of_slth or weight.recipe.dim != int(is_conv1d(layer))):
        return "has parts along its inputs, must have them along its outputs"
    if weight.recipe.zero_rows:
        return "has rows of padding"
    if weight.recipe.pairs is not None:
        return "comes in pairs"
    if of_slth and not weight.form.is_plain:
        return f"has masks of {weight.kind} or a scale, must be of an nn.Linear or Conv1D then"
    return ""


def _seeded(
    weight: Weight, multiplier: torch.Tensor, factors: torch.Tensor | None, layer: nn.Module
) -> SeededLinear | SeededSum:
    """Make the layer that replaces a linear layer."""
    bias, device = layer.bias, layer.get_parameter("weight").device
    assert bias is None or isinstance(bias, nn.Parameter)
    assert weight.recipe
    draws, multiplier, first = weight.recipe.draws, multiplier.to(device), is_conv1d(layer)
    if weight.form.is_plain:
        return SeededLinear(draws, multiplier, bias, inputs_first=first).train(layer.training)
    masks = as_masks(multiplier)
    layers = [SeededLinear(draws, mask, inputs_first=first) for mask, _ in masks]
    scale = None if factors is None or weight.scale is None else (weight.scale, factors.to(device))
    return SeededSum(layers, [sign for _, sign in masks], bias, scale).train(layer.training)


def as_masks(multiplier: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
    """Split a multiplier into pairs (mask, sign) whose signed sum it is; masks that keep nothing are omitted.

    There is at least one pair.
    """
    multiplier = multiplier.to(torch.int8)
    levels = int(multiplier.abs().max())
    masks = [(multiplier >= level, 1) for level in range(1, levels + 1)]
    masks += [(-multiplier >= level, -1) for level in range(1, levels + 1)]
    return [(mask, sign) for mask, sign in masks if mask.any()] or [(multiplier != 0, 1)]
