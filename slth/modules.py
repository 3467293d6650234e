"""Check that an argument is a module."""

from __future__ import annotations

from torch import nn


def check_module(module: object, name: str = "module") -> None:
    """Raise ValueError, with `name`, unless module is an instance of nn.Module."""
    if isinstance(module, nn.Module):
        return
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise ValueError(f"{name}={module.__name__}: is a class, must be an instance, as {module.__name__}(...) gives")
    raise ValueError(f"{name} of type {type(module).__name__}: must be a torch.nn.Module")
