"""Find the modules of all kernel folders, so that no list of kernels is needed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType


def modules(file: str) -> list[ModuleType]:
    """Import kernels/*/file.py of all folders that have it, sorted by name."""
    here = Path(__file__).parent
    names = sorted(path.parent.name for path in here.glob(f"*/{file}.py"))
    return [import_module(f"{__package__}.{name}.{file}") for name in names]
