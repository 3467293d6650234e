"""The version of the code, a hash of all source files: with changed code, the same config is a new run."""

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
IDLE = ("experiments/sweep.py", "experiments/plot.py", "experiments/sweeps/")  # files of slth that no run executes
DYNAMIC = {"import_module", "__import__", "run_path", "run_module", "spec_from_file_location", "exec"}


def version(script: Path, imported: Iterable[str] = ()) -> str:
    """Return slth's version and 16 hex digits of a SHA-256 hash of all source files that the script may execute.

    The hash includes every source file of slth, its kernels and the experiments, the script, and the modules that the
    script imports, directly or indirectly, at the top or within functions. Modules of the standard library and of
    installed packages are left out, and so are data files. A local package counts with all its files. The hash is of
    bytes, so comments count, and of file names that do not depend on the location of the files.

    Args:
        script: the path of the experiment.
        imported: names of modules that are known to be needed, such as sys.modules after the script's import.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_sources(script, imported)):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"{installed('slth')}+{digest.hexdigest()[:16]}"


def version_of(config: Mapping[str, Any], version: str) -> str:
    """Return the version; if the config names classes of the user, with 16 hex digits of a hash of their code.

    The hash includes the files of their modules and of the local modules that these import, but not the standard
    library or installed packages. No module is executed.
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
    """Return the files, by name, of a user's class that a text names and of the local modules that they import."""
    try:
        file, module = plugins.file_of(text), plugins.module_of(text)
    except (ValueError, OSError):  # the text names no class
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
    """Return the files, by name, of local modules and of all local modules that these and `files` import.

    Modules of this project, of the standard library and of installed packages are left out. Imports within functions
    count. If a file computes the name of an import, all Python files in its folder are included.
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
    """Return the files, by name, of a top-level module; none if it is missing, installed or part of this project."""
    if name in sys.stdlib_module_names or name == "slth":
        return {}
    try:
        spec = find_spec(name)
    except (ImportError, ValueError, AttributeError):  # a module without a spec, such as __main__
        return {}
    return {key: path for key, path in _files(spec) if _is_local(path)} if spec else {}


def _files(spec: ModuleSpec) -> Iterator[tuple[str, Path]]:
    for place in spec.submodule_search_locations or ():
        if _is_local(Path(place)):
            yield from ((f"{spec.name}/{name}", path) for name, path in _python_files(Path(place)))
    if spec.has_location and spec.origin and not spec.submodule_search_locations:
        yield Path(spec.origin).name, Path(spec.origin)


def _python_files(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path relative to the package, path) of each source file; symbolic links to folders are followed."""
    for folder, within, names in os.walk(package, followlinks=True):
        within[:] = [one for one in within if one.isidentifier()]  # other folders cannot be subpackages
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            yield path.relative_to(package).as_posix(), path


def _is_local(path: Path) -> bool:
    """Return whether a path exists outside the standard library, installed packages and experiments/."""
    folders = [EXPERIMENTS, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
    return path.exists() and not (
        {"site-packages", "dist-packages"} & {*path.parts}
        or any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
    )


def _imports(path: Path) -> tuple[set[str], bool]:
    """Return the top-level modules that a file imports, and whether it computes the name of any import."""
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
