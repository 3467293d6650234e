"""The plan of the rooms: each imports those below it, none in a circle, and heavy libraries stay where they belong.

What may be imported at all, and what only within functions, ruff says: flake8-tidy-imports in pyproject.toml.
"""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

from helpers import ROOT
from libraries import LIBRARIES

#: From the ground up: a room may import itself and the rooms of the lines before its own.
FLOORS = [
    "disk processors",
    # one idea each, none knows a room
    "former fields numbers threads watched console defaults modules storage files plugins extras building",
    "resuming",
    "weights",
    "kernels",
    "masking",
    "attention",
    "models theory tasks",
    "convert",
    "wrapping",
    "ticket",
    "construct search",
    "hf",
    "plots",
    "experiments",
    "cli",
    "__main__",
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def files():
    for folder, within, names in os.walk(ROOT / "slth", followlinks=True):
        within[:] = [each for each in within if each != "__pycache__"]
        yield from (Path(folder, name).relative_to(ROOT) for name in names if name.endswith(".py"))


def dotted(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): ast.parse((ROOT / path).read_text()) for path in files()}


def nodes(tree, everywhere):
    """All that runs: what stands under TYPE_CHECKING does not; of what runs at the import alone, no function's body."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from nodes(node, everywhere)


def imports(name, everywhere=True):
    """The modules of this house, and the top-level names of others, that a module imports."""
    for node in nodes(MODULES[name], everywhere):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(name, node)
            names = [each if (each := f"{module}.{alias.name}") in MODULES else module for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [each.value for each in node.args[:1] if isinstance(each, ast.Constant)]
        else:
            continue
        yield from (each if each.split(".")[0] == "slth" else each.split(".")[0] for each in names)


def _absolute(name, node):
    """What an import is from, a relative one counted from the module's package."""
    if not node.level:
        return node.module
    is_package = (ROOT / Path(*name.split(".")) / "__init__.py").exists()
    package = name.split(".")[: len(name.split(".")) + is_package - node.level]
    return ".".join([*package, *filter(None, [node.module])])


def room(name):
    return name.split(".")[1] if "." in name else "slth"


def test_every_room_has_its_floor():
    assert {room(name) for name in MODULES} - {"slth"} <= set(FLOOR)


def test_no_import_goes_upwards():
    for name in MODULES:
        for other in imports(name):
            if room(name) != "slth" and other.startswith("slth.") and room(other) != room(name):
                assert FLOOR[room(other)] < FLOOR[room(name)], f"{name} imports {other}"


def test_no_import_goes_in_a_circle():
    arrows = {name: {other for other in imports(name, False) if other in MODULES} - {name} for name in MODULES}
    assert len(list(TopologicalSorter(arrows).static_order())) == len(MODULES)  # raises CycleError for one


def test_heavy_libraries_stay_where_they_belong():
    for name in MODULES:
        for library in LIBRARIES.keys() & set(imports(name)):
            assert room(name) in LIBRARIES[library], f"{name} imports {library}"


def test_every_folder_is_a_package():
    folders = {path.parent for path in files()}
    assert not [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()]


def test_kernels_are_known_by_one_name():
    assert "kernels" not in set(chain.from_iterable(imports(name) for name in MODULES))


def test_wrapping_brings_neither_torchs_compiler_nor_its_algebra():
    """Two seconds of imports, which only torch.compile needs."""
    code = "import sys, slth.wrapping; print(*sorted({'torch._dynamo', 'sympy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
