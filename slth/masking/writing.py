"""Refuse assignments to a masked weight, so that the random weight under a mask does not change."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def refuse(path: str) -> None:
    """Raise ValueError with a remedy."""
    raise ValueError(
        f"{path} is masked, its random weights are not to be written: slth.unwrap the model first, or write its masks "
        "(slth.wrapping.handle(model).set_masks)"
    )


def guard(owner: nn.Module) -> None:
    """Make a layer refuse assigned parameters too, for which torch raises KeyError; the mask itself refuses tensors."""
    type(owner).register_parameter = _register_parameter  # type: ignore[method-assign]


def _register_parameter(self: Any, name: str, param: nn.Parameter | None) -> None:
    from slth.masking.masked import Masked

    for each in self.parametrizations[name] if parametrize.is_parametrized(self, name) else ():
        if isinstance(each, Masked):
            refuse(each.path)
    plain: Any = type(self).__bases__[0]
    plain.register_parameter(self, name, param)
