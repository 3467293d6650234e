"""A ticket in use at the size it is shipped in: weights that exist as seeds and one bit an entry.

    model = slth.serve(slth.Ticket.load("t.safetensors"), build())

Linear layers become :class:`SeededLinear`, which makes the random weights again wherever it uses them (on a GPU tile by
tile in Triton, never as a whole in memory; elsewhere a layer at a time). Of the random backbone they store nothing:
served models that share one hold the bits of their own masks, biases, and those layers (embeddings) that stay dense.
Modules of slth (attentions, the networks that constructions hide in) stay what they are, and their weights are
:class:`slth.ticket.seeded.SeededWeight`, made whenever they are read.
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
    """A linear layer, (..., in) -> (..., out), whose weight is made from draws and one bit an entry in each pass.

    `bits` is uint8 (parts, rows, ceil(columns / 8)): the masks, as `slth.kernels.pack_mask` has them, of equal parts
    side by side along the outputs; rows are outputs, or inputs where `inputs_first`. `bits.nbytes` is all the memory
    that the weight takes, whatever the dtype of x, to which it is rounded where it is used.
    """

    bits: torch.Tensor
    bias: nn.Parameter | None

    def __init__(
        self, draws: Sequence[Draw], mask: torch.Tensor, bias: nn.Parameter | None = None, *, inputs_first: bool = False
    ) -> None:
        """A layer from the draws of its weight's parts along the outputs.

        Args:
            draws: one a part, of a distribution that `slth.kernels.seeded_linear` has.
            mask: bool (out, in) as nn.Linear has it, True = kept; out is divisible by the number of parts.
            bias: (out,).
            inputs_first: the weight and its mask are (in, out), as in Hugging Face's Conv1D.

        Raises ValueError for another distribution, and for parts or a bias that do not fit.
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
        """X (..., in) -> (..., out), of x's dtype; differentiable in x and the bias."""
        parts = len(self.draws)
        biases = [None] * parts if self.bias is None else self.bias.to(x.dtype).chunk(parts)
        made = [
            kernels.seeded_linear(
                x, draw, bits, columns=self.out_features // parts if self.inputs_first else None, bias=bias
            )
            for draw, bits, bias in zip(self.draws, self.bits, biases, strict=True)
        ]
        return made[0] if parts == 1 else torch.cat(made, dim=-1)

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, float32, (out, in) or (in, out): made whenever it is read."""
        columns = self.out_features // len(self.draws) if self.inputs_first else self.in_features
        made = [
            kernels.seeded_weight((len(bits), columns), draw, bits=bits, device=bits.device)
            for draw, bits in zip(self.draws, self.bits, strict=True)
        ]
        return torch.cat(made, dim=self._dim)

    def extra_repr(self) -> str:
        """What repr says of the layer."""
        drawn = ", ".join(dict.fromkeys(f"{draw.distribution} {draw.scale:.4g}" for draw in self.draws))
        return f"{self.in_features}, {self.out_features}, {drawn}, bias={self.bias is not None}"

    @property
    def _dim(self) -> int:
        """The axis of the outputs."""
        return int(self.inputs_first)


class SeededSum(nn.Module):
    """A linear layer, (..., in) -> (..., out), whose weight is a sum of differently masked ones: signs or multiples.

    Each of `layers` draws the same weights under a mask of its own; `signs` (1 or -1) say how they add up. With a scale
    the sum is multiplied by factors of the outputs, or its input by factors of the inputs.
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
        """X (..., in) -> (..., out), of x's dtype; differentiable in x and the bias."""
        if self.inputs is not None:
            x = x * self.inputs.to(x.dtype)
        out = self._sum([layer(x) for layer in self.layers])
        if self.outputs is not None:
            out = out * self.outputs.to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, float32, (out, in) or (in, out): made whenever it is read."""
        total = self._sum([layer.weight for layer in self.layers])
        for factors, axis in ((self.outputs, int(self.inputs_first)), (self.inputs, 1 - int(self.inputs_first))):
            if factors is not None:
                total = total * factors.reshape([-1 if i == axis else 1 for i in range(2)])
        return total

    def _sum(self, terms: Sequence[Any]) -> torch.Tensor:
        """With the signs of the layers."""
        return torch.stack([sign * term for sign, term in zip(self.signs, terms, strict=True)]).sum(0)

    @property
    def _shape(self) -> tuple[int, int]:
        """Of the weight."""
        shape = self.out_features, self.in_features
        return shape[::-1] if self.inputs_first else shape


@torch.no_grad()
def serve(ticket: Ticket, module: nn.Module) -> nn.Module:
    """Make a plain module the ticket's network, in place, its linear layers served from one bit a weight.

    Replaced by :class:`SeededLinear` (or, where masks do more than prune, a :class:`SeededSum` of several, one for each
    sign and level) is each nn.Linear and Hugging Face Conv1D whose masked weight `slth.kernels` can
    make: drawn by uniform, uniform16 or sign, in parts along the outputs if several. Such weights of slth's own modules
    are made whenever they are read. Everything else becomes what `Ticket.apply` makes it: embeddings, convolutions,
    tied weights, those drawn by normal, those that a search has redrawn or made binary. Outputs are those of the
    applied ticket, up to the order of sums.

    While it is made it takes the memory of `Ticket.apply`; then, for each weight served, ceil(columns / 8) bytes a row.
    On the CPU such layers are slower than dense ones: each pass draws their weights.

    Args:
        ticket: as loaded or taken.
        module: a plain one of the ticket's names, shapes and dtypes, on the device to serve from.

    Returns the module in eval mode (where it is itself such a layer, the one in its place). Raises TicketError as
    `Ticket.apply` does, TypeError for something else than a ticket, and ValueError, with the reasons, where no layer
    can be served, or where the module is wrapped or none; nothing is changed then.
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
    """The ticket's weights that a seeded layer can hold. Raises ValueError where there is none."""
    tensors_of(module)  # refuses a wrapped module
    places = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    tied = {path for path, p in module.named_parameters() if places[id(p)] > 1}
    layers = dict(module.named_modules())
    reasons = {w.path: _obstacle(w, layers, tied) for w in ticket.weights}
    if all(reasons.values()):
        told = [f"{path} {reason}" for path, reason in reasons.items()]
        raise ValueError(f"no layer can be served: {'; '.join(told[:8])}{'; ...' if len(told) > 8 else ''}")
    return [weight for weight in ticket.weights if not reasons[weight.path]]


def _layer(weight: Weight) -> str:
    """The name of the layer that holds a weight."""
    return weight.path.rpartition(".")[0]


def _is_linear(layer: nn.Module | None) -> bool:
    return type(layer) is nn.Linear or (layer is not None and is_conv1d(layer))


def _is_of_slth(name: str, layers: dict[str, nn.Module]) -> bool:
    """Whether the layer of this name is one of slth's modules, or a list of parameters in one."""
    listed = isinstance(layers.get(name), nn.ParameterList)
    return isinstance(layers.get(name.rpartition(".")[0] if listed else name), Recorded)


def _obstacle(weight: Weight, layers: dict[str, nn.Module], tied: set[str]) -> str:
    """What keeps a weight from being served, empty where nothing does."""
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
    """What stands in a layer's place."""
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
    """(mask, sign) of masks (bool) whose signed sum is the multiplier; only those that keep anything, at least one."""
    multiplier = multiplier.to(torch.int8)
    levels = int(multiplier.abs().max())
    masks = [(multiplier >= level, 1) for level in range(1, levels + 1)]
    masks += [(-multiplier >= level, -1) for level in range(1, levels + 1)]
    return [(mask, sign) for mask, sign in masks if mask.any()] or [(multiplier != 0, 1)]
