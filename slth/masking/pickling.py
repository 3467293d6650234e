"""Pickle whole modules with masked weights, as in `torch.save(module)`: torch refuses parametrized modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from slth.masking import writing


def allow(owner: nn.Module) -> None:
    """Make a parametrized module picklable; its class is its own, so that no other module changes."""
    type(owner).__reduce_ex__ = _reduced  # type: ignore[assignment]


def read_afresh(rnn: nn.RNNBase) -> None:
    """Make a recurrent layer look up its weights at each use instead of caching those of the last forward pass.

    A weight that is missing is None, as a DataParallel replica is asked for its weights before it has any.
    """
    type(rnn).__setstate__ = nn.Module.__setstate__  # type: ignore[method-assign] # its own looks them up immediately
    type(rnn)._flat_weights = property(  # type: ignore[assignment] # a parametrized module has its own class
        lambda self: [getattr(self, name, None) for name in self._flat_weights_names], lambda self, weights: None
    )


def _reduced(self: Any, protocol: int) -> tuple[Any, ...]:
    plain: Any = type(self).__bases__[0]
    state = dict(vars(self)) if isinstance(self, nn.RNNBase) else plain.__getstate__(self)
    return _revived, (plain, tuple(self.parametrizations)), state


def _revived(plain: type[nn.Module], names: Sequence[str]) -> nn.Module:
    """Create an empty module of a parametrized class."""
    module = plain.__new__(plain)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    if isinstance(module, nn.RNNBase):
        read_afresh(module)
    allow(module)
    writing.guard(module)
    return module
