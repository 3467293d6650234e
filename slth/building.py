"""Record how a module was built (its class and arguments) for human readers.

A ticket holds weights and no code. It may also name the class of its network and the arguments of the constructor, so
that a reader of the file knows which network to build. This record is never imported or called.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

_ARGUMENTS = "_slth_arguments"


class Recorded(nn.Module):
    """A module that stores the arguments of its constructor, as JSON, for :func:`built_of`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _recording(vars(cls)["__init__"]))  # noqa: B010


def built_of(module: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Describe how a module was built, as JSON.

    Args:
        module: any module.
        arguments: of its constructor, for a module that does not store them itself.

    Returns:
        "class", the path of the module's class; "config" for a Hugging Face model; "arguments", those of the
        constructor, for a module of slth or where they are passed; "dtype", the present one, if it is not float32.
    """
    kind = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    built: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        built["config"] = _json(config.to_dict())
    if known := module.__dict__.get(_ARGUMENTS, {}) | _json(arguments):
        built["arguments"] = known
    if (dtypes := _dtypes(module)) not in ("", "float32"):
        built["dtype"] = dtypes
    return built


def _dtypes(module: nn.Module) -> str:
    """The floating dtypes of a module's parameters, separated by commas; "" if it has none."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _recording(init: Any) -> Any:
    """Wrap a constructor so that it stores its arguments; a base class's constructor, called within, stores none."""

    @wraps(init)
    def recorded(self: nn.Module, *args: Any, **options: Any) -> None:
        if _ARGUMENTS not in self.__dict__:
            self.__dict__[_ARGUMENTS] = _bound(init, args, options)
        init(self, *args, **options)

    return recorded


def _bound(init: Any, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name; {} if they do not fit the signature, as the constructor itself will then raise."""
    signature = inspect.signature(init)
    try:
        _, *bound = signature.bind_partial(None, *args, **options).arguments.items()
    except TypeError:
        return {}
    named = dict(bound)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return {name: _json(value) for name, value in named.items()}


def _json(value: Any) -> Any:
    """Convert a value to JSON types: a module to its :func:`built_of`, an object that JSON lacks to its repr."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, nn.Module):
        return built_of(value)
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        return f"tensor of shape {tuple(value.shape)}"
    scalar = getattr(value, "item", None)  # of numpy or torch
    return _json(scalar()) if callable(scalar) else repr(value)
