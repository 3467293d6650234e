"""Check the arguments of `slth.fit` and the results of the functions among them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.loss import _Loss

from slth.numbers import plain
from slth.search.base import Search

_OF_ROWS = ("step", "train_loss")  # names that fit itself writes to a row of measurements
_OPTIMISER = "must be a function of the parameters, as lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
_LOSS = "must be a function (model, batch) -> scalar tensor"
_BATCHES = "must be a function of the step, or an iterable of batches"


def check_method(method: object) -> None:
    """Raise ValueError unless the method is a search or None."""
    if method is not None and not isinstance(method, Search):
        raise ValueError(f"method={method!r}: must be a search, as slth.search.IteRand()")


def check_functions(batches: object, loss: object, evaluate: object, log: object = None) -> None:
    """Raise ValueError for functions that cannot be called as fit calls them. Nothing is called."""
    if log is not None and not _takes(log, 2):
        raise ValueError(f"log={_name(log)}: must be a function (numbers by name, steps done), as wandb.log is")
    of_torch = isinstance(loss, _Loss) or getattr(loss, "__module__", "") == "torch.nn.functional"
    if of_torch or (isinstance(loss, type) and issubclass(loss, nn.Module)):
        raise ValueError(f"loss={_name(loss)}: takes outputs and targets, {_LOSS}, which may call it")
    if not _takes(loss, 2):
        raise ValueError(f"loss={_name(loss)}: {_LOSS}")
    if evaluate is not None and not _takes(evaluate, 1):
        raise ValueError(f"evaluate={_name(evaluate)}: must be a function model -> numbers by name")
    iterable = isinstance(batches, Iterable) or hasattr(batches, "__getitem__")
    if isinstance(batches, str | bytes | Mapping) or not (callable(batches) or iterable):
        raise ValueError(f"batches of type {type(batches).__name__}: {_BATCHES}")
    if callable(batches) and (inspect.isgeneratorfunction(batches) or not _takes(batches, 1)):
        raise ValueError(f"batches={_name(batches)}: {_BATCHES}; this takes another number of arguments, or yields")


def _takes(function: object, count: int) -> bool:
    """Whether an object can be called with `count` arguments; True if its signature is unknown."""
    if not callable(function):
        return False
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # no signature: not written in Python
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _name(function: object) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def optimiser_of(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    parameters: list[nn.Parameter],
    model: nn.Module,
) -> torch.optim.Optimizer:
    """Build the optimiser of the parameters with `make`.

    Raises ValueError if make is no function, or if its result is no optimiser, needs more than a gradient (LBFGS) or
    trains other parameters than the model's.
    """
    if isinstance(make, torch.optim.Optimizer) or not callable(make):
        raise ValueError(f"optimiser={type(make).__name__}: {_OPTIMISER}")
    built = make(parameters)
    if not all(hasattr(built, name) for name in ("param_groups", "step", "zero_grad", "state_dict")):
        raise ValueError(f"optimiser: gave {type(built).__name__}, must give a torch.optim.Optimizer")
    if isinstance(built, torch.optim.LBFGS):
        raise ValueError("optimiser: gave LBFGS, which evaluates the loss again in a step; must need gradients alone")
    trained = {id(p) for group in built.param_groups for p in group["params"]}
    if not trained <= {id(p) for p in model.parameters()} or not trained & {id(p) for p in parameters}:
        raise ValueError("optimiser: trains parameters that are not the model's, must train those that it is given")
    return built


def check_loss(value: object) -> torch.Tensor:
    """Return the value of `loss`. Raises ValueError unless it is a tensor of one floating-point number."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point():
        return value
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        kind = f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    hint = ", as its .loss is" if isinstance(getattr(value, "loss", None), torch.Tensor) else ""
    raise ValueError(f"loss: gave {kind}, must give a scalar tensor{hint}")


def check_gradient(value: torch.Tensor) -> None:
    """Raise ValueError if a loss depends on no trained parameter."""
    if not value.requires_grad:
        raise ValueError("loss: gave a tensor without a gradient, must depend on what is trained (not through .item())")


def measured(values: object) -> dict[str, float]:
    """Convert the result of `evaluate` to floats. Raises ValueError unless it is a mapping from names to numbers."""
    if not isinstance(values, Mapping):
        raise ValueError(f"evaluate: gave {values!r}, must give numbers by name, as {{'val_loss': 1.5}}")
    return {_row_name(name): _measured(name, value) for name, value in values.items()}


def _row_name(name: object) -> str:
    if not isinstance(name, str) or name in _OF_ROWS:
        raise ValueError(f"evaluate: gave the name {name!r}, must be text other than {', '.join(_OF_ROWS)}")
    return name


def _measured(name: object, value: Any) -> float:
    value = plain(value)
    try:
        if isinstance(value, str | bytes | Sequence):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"evaluate: gave {name}={value!r}, must be one number") from None


def path_of(checkpoint: str | os.PathLike[str] | None) -> Path | None:
    """Return the absolute path of the checkpoint, or None. Raises ValueError if it is not a path."""
    if checkpoint is None:
        return None
    if not isinstance(checkpoint, str | os.PathLike):
        raise ValueError(f"checkpoint={checkpoint!r}: must be a path")
    return Path(checkpoint).absolute()
