"""Pickled and revived whole, as by `torch.save(module)`: torch itself refuses modules that are parametrized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from slth.masking import writing


def allow(owner: nn.Module) -> None:
    """Let a parametrized module be pickled, by a class that it shares with no other."""
    type(owner).__reduce_ex__ = _reduced  # type: ignore[assignment]


def read_afresh(rnn: nn.RNNBase) -> None:
    """Let a recurrent layer look its weights up at each use, where it would keep those of the last forward pass.

    One that becomes a replica is asked for them before it has any.
    """
    type(rnn).__setstate__ = nn.Module.__setstate__  # type: ignore[method-assign] # its own would look them up at once
    type(rnn)._flat_weights = property(  # type: ignore[assignment] # parametrization has given it a class of its own
        lambda self: [getattr(self, name, None) for name in self._flat_weights_names], lambda self, weights: None
    )


def _reduced(self: Any, protocol: int) -> tuple[Any, ...]:
    plain: Any = type(self).__bases__[0]
    state = dict(vars(self)) if isinstance(self, nn.RNNBase) else plain.__getstate__(self)
    return _revived, (plain, tuple(self.parametrizations)), state


def _revived(plain: type[nn.Module], names: Sequence[str]) -> nn.Module:
    """A module of a parametrized class, empty as yet."""
    module = plain.__new__(plain)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    if isinstance(module, nn.RNNBase):
        read_afresh(module)
    allow(module)
    writing.guard(module)
    return module
