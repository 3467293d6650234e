"""Detect random numbers that a step draws on the host: a recording would repeat the same ones in every step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def without_draws() -> Iterator[None]:
    """Raise RuntimeError after the block if it drew from Python's, numpy's or torch's generator on the host.

    The states of the generators are restored in any case.
    """
    before = _states()
    try:
        yield
        drawn = _comparable(_states()) != _comparable(before)
    finally:
        python, numpy, torchs = before
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torchs)
    if drawn:
        raise RuntimeError("it draws random numbers on the host, which would be the same in each step")


def _states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _comparable(states: tuple[Any, Any, torch.Tensor]) -> list[Any]:
    python, numpy, torchs = states
    return [python, [repr(part) if not hasattr(part, "tobytes") else part.tobytes() for part in numpy], torchs.tolist()]
