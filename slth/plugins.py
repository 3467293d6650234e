"""Choose classes by text: by a name in a registry or, for a user's own class, by its place.

A place is `my_file.py:Momentum`, with a path relative to the working folder, or `package.module:Momentum`. Each file
is imported only once. Options may follow in parentheses: `iterand(rate=0.2, every=50)`.
"""

from __future__ import annotations

import ast
import hashlib
import keyword
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

_PACKAGE = "slth.plugins"  # files are imported as its submodules, so that they hide no module of the same name
_WITH_OPTIONS = re.compile(r"(.*\w)\((.*)\)", re.DOTALL)  # the last bracket after a word: folder names may have some
_places: dict[type, str] = {}  # class -> the place by which it was first loaded
_defining: list[str] = []  # modules that register classes in packages which do not import them
_classes: dict[str, type] = {}  # place, both as passed and with an absolute path -> the class last loaded


def define(room: str) -> None:
    """Add a module of this package, whose import registers classes, to those that :func:`import_defining` imports."""
    _defining.append(room)


def import_defining() -> None:
    """Import all modules that :func:`define` added, so that the classes they register can be looked up."""
    for room in _defining:
        import_module(room)


def split(text: str) -> tuple[str, dict[str, Any]]:
    """Split a text into (name or place, options). Options are Python literals; words need no quotation marks.

    >>> split("iterand(rate=0.2, schedule=cubic)")
    ('iterand', {'rate': 0.2, 'schedule': 'cubic'})

    Raises ValueError if the options cannot be parsed.
    """
    parts = _WITH_OPTIONS.fullmatch(text)
    if parts is None:
        return text, {}
    name, rest = parts.groups()
    try:
        call = ast.parse(f"_({rest})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("no option=value")
        return name, {str(each.arg): _value(each.value) for each in call.keywords}
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{text}: must be a name, or name(option=value, ...) ({error})") from error


def join(name: str, options: Mapping[str, Any]) -> str:
    """Write a name and its options as text; the inverse of :func:`split`."""
    pairs = [f"{key}={value if _is_word(value) else repr(value)}" for key, value in options.items()]
    return f"{name}({', '.join(pairs)})" if pairs else name


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _is_word(value: object) -> bool:
    """Whether a value is text that needs no quotation marks."""
    return isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)


def is_place(name: str) -> bool:
    """Return whether a name is the place of a class, not a name in a registry."""
    return ":" in name


def file_of(text: str) -> Path | None:
    """Return the file whose class a text chooses; None for a registered name, a module or any other text."""
    where, colon, _ = split(text)[0].rpartition(":") if text.isprintable() else ("", "", "")
    return Path(where) if colon and where.endswith(".py") and Path(where).is_file() else None


def module_of(text: str) -> str | None:
    """Return the full name of the module whose class a text chooses; None for a registered name, a file or other text.

    The module need not exist.
    """
    where, _, name = split(text)[0].rpartition(":") if text.isprintable() else ("", "", "")
    is_module = name.isidentifier() and all(part.isidentifier() for part in where.split("."))
    return where if is_module and not where.endswith(".py") else None


def load(key: str, place: str, base: type[T]) -> type[T]:
    """Load the class at a place; its module is executed.

    Args:
        key: the config key, for error messages: with "method" they begin with `method=my_file.py:Momentum:`.
        place: a path ending in .py, or the name of an importable module, then a colon and the name of the class.
        base: the class from which it must derive.

    Raises:
        ValueError: if the file, module or class does not exist, the import fails, or the class does not derive from
            `base`.
    """
    prefix, where, module, name = _looked_up(key, place, "class")
    classes = [n for n, c in vars(module).items() if isinstance(c, type) and c is not base and issubclass(c, base)]
    kind = getattr(module, name, None)
    base_name = f"{base.__module__}.{base.__qualname__}"
    if not isinstance(kind, type):
        raise ValueError(f"{prefix}{where} has no class {name}; its classes of {base_name}: {_listed(classes)}")
    if not issubclass(kind, base) or kind is base:
        raise ValueError(f"{prefix}must derive from {base_name}; classes there that do: {_listed(classes)}")
    _places.setdefault(kind, place)
    _classes[place] = _classes[_absolute(place)] = kind
    return kind


def load_callable(key: str, place: str) -> Callable[..., Any]:
    """Load the class or function at a place; its module is executed. Raises ValueError as :func:`load` does."""
    prefix, where, module, name = _looked_up(key, place, "class or function")
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{prefix}{where} has no class or function {name}")
    return function


def _looked_up(key: str, place: str, what: str) -> tuple[str, str, ModuleType, str]:
    """Returns (the prefix of error messages, the module's name or path, the module, the name to look up in it)."""
    where, _, name = place.rpartition(":")
    prefix = f"{key}={place}: "
    if not (where and name.isidentifier()):
        raise ValueError(f"{prefix}must be the place of a {what}, as my_file.py:Name or package.module:Name")
    module = _from_file(prefix, Path(where)) if where.endswith(".py") else _imported(prefix, where, import_module)
    return prefix, where, module, name


def place_of(kind: type) -> str | None:
    """Return the place by which a class was first loaded; None if it was not loaded by a place."""
    return _places.get(kind)


def loaded(place: str, base: type[T]) -> type[T] | None:
    """Return the class, derived from `base`, already loaded from a place; None if there is none. Executes nothing.

    A class loaded from the file at this path in the working folder takes precedence over one that was loaded by the
    same text from another folder.
    """
    kind = _classes.get(_absolute(place), _classes.get(place))
    return kind if kind is not None and issubclass(kind, base) else None


def _absolute(place: str) -> str:
    """The place with the absolute path of its file."""
    where, _, name = place.rpartition(":")
    return f"{Path(where).resolve()}:{name}" if where.endswith(".py") else place


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _from_file(prefix: str, path: Path) -> ModuleType:
    """Import a file. The module is named after the file without its folder, so that saved names do not depend on it."""
    file = path.resolve()
    if not file.is_file():
        raise ValueError(f"{prefix}no file {path} in {Path.cwd()}")
    name = f"{_PACKAGE}.{file.stem}"
    if not _holds(name, file) and name in sys.modules:
        name = f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"  # another file has the plain name
    if _holds(name, file):
        return sys.modules[name]
    return _imported(prefix, name, lambda name: _executed(name, file))


def _holds(name: str, file: Path) -> bool:
    return getattr(sys.modules.get(name), "__file__", None) == str(file)


def _executed(name: str, file: Path) -> ModuleType:
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as dataclasses look up their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(prefix: str, name: str, load: Callable[[str], ModuleType]) -> ModuleType:
    try:
        return load(name)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{prefix}cannot be imported ({type(error).__name__}: {error})") from error
