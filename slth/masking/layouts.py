"""How layers hold their weights: which layer a parameter belongs to, whether it is a weight, and its fan.

A parametrization that stands around a weight (`torch.nn.utils.parametrizations`) is looked through: what lies under it
is laid out as the layer has it.
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
#: In names of layers and classes: norm1, LayerNorm, BatchNormalization; not normal_map, NormalizedLinear, NormedLinear.
_NORM = re.compile("norm(?!al(?!i[sz]ation)|ed)")
#: Words that names of gains, and of the shifts beside them, are made of.
_GAINS = {"gain", "gains", "gamma", "gammas", "scale", "scales", "beta", "betas", "shift", "shifts"}
#: How words in names of tables begin that are held as parameters: position_embeddings, cls_token.
_TABLES = ("embed", "pos", "token", "cls")
_INPUTS_FIRST = {"Llama4TextExperts"}  # of transformers; its others say `is_transposed`


@dataclass(frozen=True)
class Axes:
    """The axes of a weight along which its output units and its inputs lie."""

    outputs: int = 0
    inputs: int = 1


MATRIX = Axes()  # as torch's linear layers have them


@dataclass(frozen=True)
class Seat:
    """Where a module holds a parameter: `owner.name`, which is the tensor `role` of `layer`, found at `layer_path`.

    owner and layer differ where a parametrization stands between them: its `original` belongs to the layer around.
    """

    owner: nn.Module
    name: str
    layer: nn.Module
    layer_path: str
    role: str

    @classmethod
    def of(cls, module: nn.Module, path: str) -> Seat:
        """The seat of a parameter, by its name in module."""
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
        """What the module around the layer calls it."""
        return self.layer_path.rpartition(".")[2]

    def is_weight(self, parameter: nn.Parameter) -> bool:
        """Whether this is a matrix or kernel that a network multiplies by, neither a bias nor a gain."""
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
        """Gains by name, and those of weight_norm: `original0` of a parametrization, `weight_g` beside `weight_v`."""
        if isinstance(self.owner, ParametrizationList) and self.name == "original0":
            return any(type(each).__name__ == "_WeightNorm" for each in self.owner)
        if self.role.endswith("_g") and f"{self.role[:-2]}_v" in self.owner._parameters:
            return True
        return not _GAINS.isdisjoint(self.role.lower().split("_")) or type(self.layer).__name__.endswith("Scale")

    def fans(self, shape: torch.Size) -> tuple[float, float]:
        """(inputs that one unit sums, units that one input reaches) of a weight of that shape, or of an equal part.

        Layers say how they are laid out; in a module that is none of torch's, nor named after a convolution (conv1d),
        a tensor with three axes is a stack of matrices (stack, out, in), or (stack, in, out) where the module's
        `inputs_first` or `is_transposed` is true.
        """
        if len(shape) < 2:
            return max(1, shape.numel()), max(1, shape.numel())
        if self._inputs_first(len(shape)):
            return shape[-2], shape[-1]
        kernel = math.prod(shape[2:])
        if isinstance(self.layer, nn.modules.conv._ConvTransposeNd):  # (in, out / groups, *kernel)
            shared = self.layer.groups * math.prod(self.layer.stride)  # each output meets 1 / stride of the kernel
            return shape[0] * kernel / shared, shape[1] * kernel
        if len(shape) == 3 and not isinstance(self.layer, _LAYERS) and not self._is_convolution():
            return shape[2], shape[1]
        return shape[1] * kernel, shape[0] * kernel  # (out, in / groups, *kernel)

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """A weight of two axes or more, or an equal part, as one matrix (inputs, outputs), laid out as in `fans`.

        The matrices of a stack, of experts or of groups, lie one below the other.
        """
        if self._inputs_first(tensor.dim()):
            return tensor.reshape(-1, tensor.shape[-1])
        if isinstance(self.layer, nn.modules.conv._ConvTransposeNd):
            return tensor.flatten(1)
        if tensor.dim() == 3 and not isinstance(self.layer, _LAYERS) and not self._is_convolution():
            return tensor.mT.reshape(-1, tensor.shape[1])
        return tensor.flatten(1).T

    def axes(self, dim: int) -> Axes:
        """The axes of output units and of inputs of a weight with so many axes, two or more, laid out as in `fans`."""
        if self._inputs_first(dim):
            return Axes(outputs=dim - 1, inputs=dim - 2)
        if isinstance(self.layer, nn.modules.conv._ConvTransposeNd):
            return Axes(outputs=1, inputs=0)
        if dim == 3 and not isinstance(self.layer, _LAYERS) and not self._is_convolution():
            return Axes(outputs=1, inputs=2)
        return Axes(outputs=0, inputs=min(1, dim - 1))

    def is_table(self) -> bool:
        """Whether rows are looked up or added, not multiplied by: of tokens, positions or classes."""
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
        """Why the layer cannot have a masked weight, empty where it can."""
        if isinstance(self.layer, nn.Embedding | nn.EmbeddingBag) and self.layer.max_norm is not None:
            return (
                f"max_norm={self.layer.max_norm} writes to the weights in each forward pass, which masked weights "
                "do not allow; set max_norm=None on the layer, or leave it out by parameters=..."
            )
        return ""

    def padding_row(self) -> int | None:
        """The row of an embedding that stands for no token, None without one."""
        row = self.layer.padding_idx if isinstance(self.layer, nn.Embedding | nn.EmbeddingBag) else None
        return None if row is None else int(row)


def is_conv1d(layer: nn.Module) -> bool:
    """Hugging Face's linear layer with a weight (in, out), told by its name: transformers need not be imported."""
    return type(layer).__name__ in ("Conv1D", "ParametrizedConv1D") and hasattr(layer, "nf")
