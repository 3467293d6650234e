"""Check the facts, options and tokens of attentions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from slth.attention.facts import Facts
from slth.numbers import as_int

_INNER = ("widths",)  # options for subclasses only


def check_facts(kind: type[nn.Module]) -> None:
    """Raise TypeError unless a class of attentions declares facts in its own body and has what they require."""
    facts = vars(kind).get("facts")
    if not isinstance(facts, Facts):
        raise TypeError(
            f"{kind.__name__} states no facts: its class must have facts = slth.attention.Facts(roles=..., "
            "constructible=...), of its own even where it derives from a mechanism that has some"
        )
    options = options_of(kind)
    for fact, declared, option in (
        ("norm", bool(facts.norm), facts.norm),
        ("grouped", facts.grouped, "kv_heads"),
        ("mixing_inits", bool(facts.mixing_inits), "mixing_init"),
    ):
        if declared and option not in options:
            raise TypeError(f"{kind.__name__}: facts.{fact} needs an option {option}; it takes {', '.join(options)}")
    if "mixing_init" in options and not facts.mixing_inits:
        raise TypeError(f"{kind.__name__}: takes mixing_init, so facts.mixing_inits must say of which values")
    if facts.constructible is True and not hasattr(kind, "factors"):
        raise TypeError(f"{kind.__name__}: facts.constructible=True needs factors, as slth.attention.SoftmaxAttention")
    if facts.matrix and not hasattr(kind, "effective_matrix"):
        raise TypeError(f"{kind.__name__}: facts.matrix=True needs effective_matrix, as GroupedQueryAttention has it")


def check_known(module: nn.Module, unknown: Mapping[str, object], hint: str = "") -> None:
    """Raise ValueError if there is an option that the constructors of the module's class do not take."""
    for option, value in unknown.items():
        kind = type(module)
        raise ValueError(f"{option}={value!r}: {kind.__name__} takes {', '.join(options_of(kind))}{hint}")


def options_of(kind: type[nn.Module]) -> list[str]:
    """Return the options of a class of attentions: its constructors' keywords, without those that its facts exclude."""
    facts: Any = getattr(kind, "facts", None)
    names = _named(cast(Any, kind))  # mypy considers classes of modules unhashable
    return [name for name in names if name not in _INNER and getattr(facts, name, True) is not False]


@cache
def _named(kind: Any) -> tuple[str, ...]:
    """The keyword-only parameters of a class's constructors, its own first."""
    constructors = [vars(each)["__init__"] for each in kind.__mro__ if "__init__" in vars(each)]
    named = [p for each in constructors for p in inspect.signature(each).parameters.values()]
    return tuple(dict.fromkeys(p.name for p in named if p.kind is inspect.Parameter.KEYWORD_ONLY))


def check_groups(heads: int, kv_heads: int | None) -> int:
    """Return the number of key and value heads, `heads` for None. Raises ValueError unless it divides heads."""
    if kv_heads is None:
        return heads
    kv_heads = as_int("kv_heads", kv_heads, 1)
    if heads % kv_heads:
        raise ValueError(f"kv_heads={kv_heads}: must divide heads={heads}")
    return kv_heads


def check_tokens(module: nn.Module, x: Any, d_in: int) -> None:
    """Raise ValueError unless x is a tensor (..., T, d_in) of the module's dtype, or a float that autocast converts."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"x of type {type(x).__name__}: must be a torch.Tensor (..., T, d_in)")
    if x.dim() < 2:
        raise ValueError(f"x of shape {tuple(x.shape)}: must be (..., T, d_in)")
    if x.shape[-1] != d_in:
        raise ValueError(f"x of width {x.shape[-1]}: must be d_in={d_in}")
    if torch.compiler.is_compiling():  # the dtype is not checked: a compiled call fails with torch's own error
        return
    first = next(module.parameters(), None)  # a replica has none
    if first is not None and x.dtype != first.dtype and not (x.is_floating_point() and _casts(x.device.type)):
        kind = type(module).__name__.removeprefix("Parametrized")
        raise ValueError(f"x of dtype {x.dtype}: must be {first.dtype}, as the {kind}'s weights are")


def _casts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
