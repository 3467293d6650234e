"""The version of the code that runs: the same config under changed code is another run."""

import ast
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slth import plugins

EXPERIMENTS = Path(__file__).parents[1]
IDLE = ("experiments/sweep.py", "experiments/plot.py", "experiments/sweeps/")  # of slth: no run executes them
DYNAMIC = {"import_module", "__import__", "run_path", "run_module", "spec_from_file_location", "exec"}


def version(script: Path, imported: Iterable[str] = ()) -> str:
    """slth's version and 16 hex digits over every source file of slth, its kernels, the experiments and the script's.

    The script's are the script, what it imports from outside the standard library and the installed packages, now or
    later, and what these import in turn; of a package all files. `imported` names modules that are known to be needed,
    as those in sys.modules once the script has been imported. Comments count, data files and installed packages do
    not: it is bytes that are compared, under names that do not depend on where the files lie.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_sources(script, imported)):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"{installed('slth')}+{digest.hexdigest()[:16]}"


def version_of(config: Mapping[str, Any], version: str) -> str:
    """The version, with 16 hex digits over the user's own classes where a config chooses any.

    Over the files of their modules, and of what these import from outside the standard library and the installed
    packages. No module is executed.
    """
    contents = {(name, path.read_bytes()) for text in _texts(config) for name, path in _of_class(text).items()}
    if not contents:
        return version
    digests = sorted(f"{name}\0{hashlib.sha256(content).hexdigest()}" for name, content in contents)
    return f"{version}+{hashlib.sha256(chr(10).join(digests).encode()).hexdigest()[:16]}"


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value


def _of_class(text: str) -> dict[str, Path]:
    """The files, by name, of the class of the user's own that a text chooses, and of what they import."""
    try:
        file, module = plugins.file_of(text), plugins.module_of(text)
    except (ValueError, OSError):  # a text of something else
        return {}
    return ({file.name: file} if file else {}) | _local([file] if file else [], [module] if module else [])


def _sources(script: Path, imported: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for name, path in _python_files(EXPERIMENTS.parent):
        if not name.startswith(IDLE):
            yield f"slth/{name}", path
    yield "script", script
    modules = _local([script], imported)
    yield from ((f"module {name}", path) for name, path in modules.items() if not path.samefile(script))


def _local(files: Iterable[Path], modules: Iterable[str]) -> dict[str, Path]:
    """The files, by name, of modules and of all that these and files need, but of this project and what is installed.

    An import is followed wherever it stands, in a function too. Where a file imports by a name that only it knows, all
    files beside it may be meant.
    """
    found: dict[str, Path] = {}
    names, files = {name.partition(".")[0] for name in modules}, [*files]
    known: set[str] = set()
    while names or files:
        for name in names - known:
            for key, path in _files_of(name).items():
                if key not in found:
                    found[key] = path
                    files.append(path)
        known |= names
        names = set()
        if files:
            file = files.pop()
            names, dynamic = _imports(file)
            if dynamic:
                names |= {path.stem for path in file.parent.glob("*.py")}
    return found


def _files_of(name: str) -> dict[str, Path]:
    """The files of a top-level module by their names; none of what is installed, of this project, or not there."""
    if name in sys.stdlib_module_names or name == "slth":
        return {}
    try:
        spec = find_spec(name)
    except (ImportError, ValueError, AttributeError):  # a module that was made by hand, as __main__
        return {}
    return {key: path for key, path in _files(spec) if _is_local(path)} if spec else {}


def _files(spec: ModuleSpec) -> Iterator[tuple[str, Path]]:
    for place in spec.submodule_search_locations or ():
        if _is_local(Path(place)):
            yield from ((f"{spec.name}/{name}", path) for name, path in _python_files(Path(place)))
    if spec.has_location and spec.origin and not spec.submodule_search_locations:
        yield Path(spec.origin).name, Path(spec.origin)


def _python_files(package: Path) -> Iterator[tuple[str, Path]]:
    """(path within the package, path) of each source file, also of packages that are links to folders elsewhere."""
    for folder, within, names in os.walk(package, followlinks=True):
        within[:] = [one for one in within if one.isidentifier()]  # no subpackage has another name
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            yield path.relative_to(package).as_posix(), path


def _is_local(path: Path) -> bool:
    """Whether a file is neither of the standard library, nor installed, nor one of experiments/."""
    folders = [EXPERIMENTS, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
    return path.exists() and not (
        {"site-packages", "dist-packages"} & {*path.parts}
        or any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
    )


def _imports(path: Path) -> tuple[set[str], bool]:
    """The top-level modules that a file imports by name, and whether it imports any by a name that is not in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a compiled module
        return set(), False
    names, dynamic = set(), False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) in DYNAMIC:
            match node.args:
                case [ast.Constant(str() as name), *_] if name.replace(".", "").isidentifier():
                    names.add(name)
                    dynamic |= "spec_from_file_location" in ast.unparse(node.func)
                case _:
                    dynamic = True
    return {name.partition(".")[0] for name in names}, dynamic
