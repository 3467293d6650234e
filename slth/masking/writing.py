"""What is assigned to a masked weight is refused: what is under a mask stays as it was drawn."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def refuse(path: str) -> None:
    """Raise ValueError with a way out."""
    raise ValueError(
        f"{path} is masked, its random weights are not to be written: slth.unwrap the model first, or write its masks "
        "(slth.wrapping.handle(model).set_masks)"
    )


def guard(owner: nn.Module) -> None:
    """Have a layer refuse parameters too, which torch would refuse as a KeyError; tensors meet the mask itself."""
    type(owner).register_parameter = _register_parameter  # type: ignore[method-assign]


def _register_parameter(self: Any, name: str, param: nn.Parameter | None) -> None:
    from slth.masking.masked import Masked

    for each in self.parametrizations[name] if parametrize.is_parametrized(self, name) else ():
        if isinstance(each, Masked):
            refuse(each.path)
    plain: Any = type(self).__bases__[0]
    plain.register_parameter(self, name, param)
