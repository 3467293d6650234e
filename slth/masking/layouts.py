"""How layers store their weights: the layer of a parameter, whether it is a weight, its layout and its fan.

A parametrization of a weight (`torch.nn.utils.parametrizations`) is transparent: the tensor under it has the layout of
the layer's own weight.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
)
_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,
)
#: Names of normalisations: norm1, LayerNorm, BatchNormalization; not normal_map, NormalizedLinear, NormedLinear.
_NORM = re.compile("norm(?!al(?!i[sz]ation)|ed)")
#: Words in the names of gains and shifts.
_GAINS = {"gain", "gains", "gamma", "gammas", "scale", "scales", "beta", "betas", "shift", "shifts"}
#: Prefixes of words in the names of tables that are parameters: position_embeddings, cls_token.
_TABLES = ("embed", "pos", "token", "cls")
_INPUTS_FIRST = {"Llama4TextExperts"}  # in transformers; other such classes have `is_transposed`


@dataclass(frozen=True)
class Axes:
    """The axes of a weight for its output units and its inputs."""

    outputs: int = 0
    inputs: int = 1


MATRIX = Axes()  # those of torch's linear layers


@dataclass(frozen=True)
class Seat:
    """A place that holds a parameter: `owner.name`, which is the tensor `role` of `layer`, found at `layer_path`.

    owner and layer differ for a parametrized weight: the owner is the parametrization, which belongs to the layer.
    """

    owner: nn.Module
    name: str
    layer: nn.Module
    layer_path: str
    role: str

    @classmethod
    def of(cls, module: nn.Module, path: str) -> Seat:
        """Return the seat of a parameter, given its name in the module."""
        prefix, _, name = path.rpartition(".")
        owner = layer = module.get_submodule(prefix)
        role = name
        while isinstance(layer, ParametrizationList):
            prefix, _, role = prefix.rpartition(".")  # LAYER.parametrizations.ROLE
            prefix = prefix.rpartition(".")[0]
            layer = module.get_submodule(prefix)
        return cls(owner, name, layer, prefix, role)

    @property
    def layer_name(self) -> str:
        """The layer's name in its parent module."""
        return self.layer_path.rpartition(".")[2]

    def is_weight(self, parameter: nn.Parameter) -> bool:
        """Return whether this is a matrix or kernel, not a bias or a gain."""
        if self._is_of_a_norm() or self._is_gain():
            return False
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            return "bias" not in self.role
        if isinstance(self.layer, _LAYERS):
            return "weight" in self.role and parameter.dim() >= 2
        return sum(size > 1 for size in parameter.shape) >= 2 and "bias" not in self.role

    def _is_of_a_norm(self) -> bool:
        if isinstance(self.layer, _LAYERS):
            return False
        names = type(self.layer).__name__, self.layer_name
        return isinstance(self.layer, _NORMS) or any(_NORM.search(name.lower()) for name in names)

    def _is_gain(self) -> bool:
        """Whether it is a gain, by name or of weight_norm (`original0` of a parametrization, `weight_g` of a layer)."""
        if isinstance(self.owner, ParametrizationList) and self.name == "original0":
            return any(type(each).__name__ == "_WeightNorm" for each in self.owner)
        if self.role.endswith("_g") and f"{self.role[:-2]}_v" in self.owner._parameters:
            return True
        return not _GAINS.isdisjoint(self.role.lower().split("_")) or type(self.layer).__name__.endswith("Scale")

    def fans(self, shape: torch.Size) -> tuple[float, float]:
        """Return (fan_in, fan_out) of a weight with this shape, or of an equal part of one.

        fan_in is the number of inputs that one unit sums, fan_out the number of units that one input reaches. The
        layout follows from the type of the layer. In a module that is not torch's own, nor named after a convolution
        (conv1d), a tensor with three axes is a stack of matrices (stack, out, in), or (stack, in, out) if the module's
        `inputs_first` or `is_transposed` is true.
        """
        if len(shape) < 2:
            return max(1, shape.numel()), max(1, shape.numel())
        if self._inputs_first(len(shape)):
            return shape[-2], shape[-1]
        kernel = math.prod(shape[2:])
        if isinstance(self.layer, nn.modules.conv._ConvTransposeNd):  # (in, out / groups, *kernel)
            shared = self.layer.groups * math.prod(self.layer.stride)  # each output uses 1 / stride of the kernel
            return shape[0] * kernel / shared, shape[1] * kernel
        if len(shape) == 3 and not isinstance(self.layer, _LAYERS) and not self._is_convolution():
            return shape[2], shape[1]
        return shape[1] * kernel, shape[0] * kernel  # (out, in / groups, *kernel)

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """Reshape a weight with two or more axes, or an equal part of one, to a matrix (inputs, outputs).

        The layout is that of :meth:`fans`. Matrices of a stack (of experts or groups) are concatenated along the rows.
        """
        if self._inputs_first(tensor.dim()):
            return tensor.reshape(-1, tensor.shape[-1])
        if isinstance(self.layer, nn.modules.conv._ConvTransposeNd):
            return tensor.flatten(1)
        if tensor.dim() == 3 and not isinstance(self.layer, _LAYERS) and not self._is_convolution():
            return tensor.mT.reshape(-1, tensor.shape[1])
        return tensor.flatten(1).T

    def axes(self, dim: int) -> Axes:
        """Return the axes of outputs and inputs of a weight with `dim` >= 2 axes, in the layout of :meth:`fans`."""
        if self._inputs_first(dim):
            return Axes(outputs=dim - 1, inputs=dim - 2)
        if isinstance(self.layer, nn.modules.conv._ConvTransposeNd):
            return Axes(outputs=1, inputs=0)
        if dim == 3 and not isinstance(self.layer, _LAYERS) and not self._is_convolution():
            return Axes(outputs=1, inputs=2)
        return Axes(outputs=0, inputs=min(1, dim - 1))

    def is_table(self) -> bool:
        """Return whether this is a table, of tokens, positions or classes, whose rows are looked up or added."""
        if isinstance(self.layer, nn.Embedding | nn.EmbeddingBag):
            return True
        words = {word for name in (self.role, self.layer_name) for word in name.lower().split("_")}
        return not isinstance(self.layer, _LAYERS) and any(word.startswith(_TABLES) for word in words)

    def _inputs_first(self, axes: int) -> bool:
        if is_conv1d(self.layer) or getattr(self.layer, "inputs_first", False):
            return True
        stated = getattr(self.layer, "is_transposed", False) is True or type(self.layer).__name__ in _INPUTS_FIRST
        return axes == 3 and stated and not isinstance(self.layer, _LAYERS)

    def _is_convolution(self) -> bool:
        return bool(re.search(r"conv\dd", type(self.layer).__name__.lower()))

    def obstacle(self) -> str:
        """Return the reason why the layer cannot have a masked weight; empty if it can."""
        if isinstance(self.layer, nn.Embedding | nn.EmbeddingBag) and self.layer.max_norm is not None:
            return (
                f"max_norm={self.layer.max_norm} writes to the weights in each forward pass, which masked weights "
                "do not allow; set max_norm=None on the layer, or leave it out by parameters=..."
            )
        return ""

    def padding_row(self) -> int | None:
        """Return an embedding's padding_idx as a row index >= 0; None for other layers or without padding."""
        row = self.layer.padding_idx if isinstance(self.layer, nn.Embedding | nn.EmbeddingBag) else None
        return None if row is None else int(row)


def is_conv1d(layer: nn.Module) -> bool:
    """Return whether a layer is Hugging Face's Conv1D, a linear layer with a weight (in, out), without importing it."""
    return type(layer).__name__ in ("Conv1D", "ParametrizedConv1D") and hasattr(layer, "nf")
