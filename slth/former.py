"""Former names of moved modules: `import slth.masks` gives slth.masking.masks, the same module object."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: former name -> present name
MOVED = {
    "slth.bits": "slth.ticket.bits",
    "slth.freezing": "slth.search.freezing",
    "slth.inits": "slth.weights.inits",
    "slth.kernels.triton_seeded": "slth.kernels.seeded.triton",
    "slth.layouts": "slth.masking.layouts",
    "slth.masking.freezing": "slth.search.freezing",
    "slth.masks": "slth.masking.masks",
    "slth.recipes": "slth.weights.recipes",
    "slth.serving": "slth.ticket.serving",
    "slth.masking.targets": "slth.masking.parameters",
    "slth.targets": "slth.masking.parameters",
}


class _Former(MetaPathFinder, Loader):
    def __init__(self) -> None:
        self._own: dict[str, ModuleSpec | None] = {}  # present name -> original __spec__, which an import overwrites

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(MOVED[spec.name])
        self._own.setdefault(module.__name__, module.__spec__)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own[module.__name__]


def follow() -> None:
    """Make former names importable."""
    if not any(type(finder).__name__ == _Former.__name__ for finder in sys.meta_path):
        sys.meta_path.append(_Former())
