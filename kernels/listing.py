"""The kernels' folders: what lies in them is found, and listed nowhere."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType


def modules(file: str) -> list[ModuleType]:
    """kernels/*/file.py of all folders that have it, by name."""
    here = Path(__file__).parent
    names = sorted(path.parent.name for path in here.glob(f"*/{file}.py"))
    return [import_module(f"{__package__}.{name}.{file}") for name in names]
