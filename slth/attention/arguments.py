"""What a caller passes to an attention: options and tokens, each refused in one sentence where it does not fit."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from slth.attention.facts import Facts
from slth.numbers import as_int

_INNER = ("widths",)  # options that are there for subclasses


def check_facts(kind: type[nn.Module]) -> None:
    """Raise TypeError unless a class of attentions states its facts itself, and has what they say."""
    facts = vars(kind).get("facts")
    if not isinstance(facts, Facts):
        raise TypeError(
            f"{kind.__name__} states no facts: its class must have facts = slth.attention.Facts(roles=..., "
            "constructible=...), of its own even where it derives from a mechanism that has some"
        )
    options = options_of(kind)
    for fact, stated, needed in (
        ("norm", bool(facts.norm), facts.norm),
        ("grouped", facts.grouped, "kv_heads"),
        ("mixing_inits", bool(facts.mixing_inits), "mixing_init"),
    ):
        if stated and needed not in options:
            raise TypeError(f"{kind.__name__}: facts.{fact} needs an option {needed}; it takes {', '.join(options)}")
    if "mixing_init" in options and not facts.mixing_inits:
        raise TypeError(f"{kind.__name__}: takes mixing_init, so facts.mixing_inits must say of which values")
    if facts.constructible is True and not hasattr(kind, "factors"):
        raise TypeError(f"{kind.__name__}: facts.constructible=True needs factors, as slth.attention.SoftmaxAttention")
    if facts.matrix and not hasattr(kind, "effective_matrix"):
        raise TypeError(f"{kind.__name__}: facts.matrix=True needs effective_matrix, as GroupedQueryAttention has it")


def check_known(module: nn.Module, unknown: Mapping[str, object], hint: str = "") -> None:
    """Raise ValueError where there is an option that the constructors of the module's class do not take."""
    for option, value in unknown.items():
        kind = type(module)
        raise ValueError(f"{option}={value!r}: {kind.__name__} takes {', '.join(options_of(kind))}{hint}")


def options_of(kind: type[nn.Module]) -> list[str]:
    """The options that a class of attentions takes: what its constructors name, without what its mechanism has not."""
    facts: Any = getattr(kind, "facts", None)
    names = _named(cast(Any, kind))  # mypy takes classes of modules for unhashable
    return [name for name in names if name not in _INNER and getattr(facts, name, True) is not False]


@cache
def _named(kind: Any) -> tuple[str, ...]:
    """The keywords of a class's constructors, its own first."""
    constructors = [vars(each)["__init__"] for each in kind.__mro__ if "__init__" in vars(each)]
    named = [p for each in constructors for p in inspect.signature(each).parameters.values()]
    return tuple(dict.fromkeys(p.name for p in named if p.kind is inspect.Parameter.KEYWORD_ONLY))


def check_groups(heads: int, kv_heads: int | None) -> int:
    """The number of key and value heads, heads where None. Raises ValueError unless it divides heads."""
    if kv_heads is None:
        return heads
    kv_heads = as_int("kv_heads", kv_heads, 1)
    if heads % kv_heads:
        raise ValueError(f"kv_heads={kv_heads}: must divide heads={heads}")
    return kv_heads


def check_tokens(module: nn.Module, x: Any, d_in: int) -> None:
    """Raise ValueError unless x is a tensor (..., T, d_in) of the module's dtype; autocast casts floats by itself."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"x of type {type(x).__name__}: must be a torch.Tensor (..., T, d_in)")
    if x.dim() < 2:
        raise ValueError(f"x of shape {tuple(x.shape)}: must be (..., T, d_in)")
    if x.shape[-1] != d_in:
        raise ValueError(f"x of width {x.shape[-1]}: must be d_in={d_in}")
    if torch.compiler.is_compiling():  # what is compiled was tried before, or ends in torch's own words
        return
    first = next(module.parameters(), None)  # a replica has none
    if first is not None and x.dtype != first.dtype and not (x.is_floating_point() and _casts(x.device.type)):
        kind = type(module).__name__.removeprefix("Parametrized")
        raise ValueError(f"x of dtype {x.dtype}: must be {first.dtype}, as the {kind}'s weights are")


def _casts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
