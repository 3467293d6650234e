"""Classes chosen by text: by their name in a registry, or, where they are the user's own, by their place.

A place is `my_file.py:Momentum`, the path one from the working folder, or `package.module:Momentum`. A file is imported
once, however often it is named. Options may follow in parentheses: `iterand(rate=0.2, every=50)`.
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

_PACKAGE = "slth.plugins"  # as whose parts files are imported, so that they hide no module of the same name
_WITH_OPTIONS = re.compile(r"(.*\w)\((.*)\)", re.DOTALL)  # the last bracket after a word: folders may have some, too
_places: dict[type, str] = {}  # by class, as it was asked for first
_defining: list[str] = []  # modules that register classes in rooms below their own
_classes: dict[str, type] = {}  # by place, as it was asked for last and with the whole path of its file


def define(room: str) -> None:
    """Have :func:`import_defining` import a module of this package, which registers classes as it is imported."""
    _defining.append(room)


def import_defining() -> None:
    """Import the modules that :func:`define` named, for whoever looks one of their classes up."""
    for room in _defining:
        import_module(room)


def split(text: str) -> tuple[str, dict[str, Any]]:
    """(name or place, options) of a text: numbers, words and other literals, words without quotation marks too.

    >>> split("iterand(rate=0.2, schedule=cubic)")
    ('iterand', {'rate': 0.2, 'schedule': 'cubic'})

    Raises ValueError where the options cannot be read.
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
    """The text that :func:`split` reads; without options the name alone."""
    told = [f"{key}={value if _is_word(value) else repr(value)}" for key, value in options.items()]
    return f"{name}({', '.join(told)})" if told else name


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _is_word(value: object) -> bool:
    """Whether text can stand without quotation marks."""
    return isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)


def is_place(name: str) -> bool:
    """Whether a name is that of a class by its place, and none of a registry."""
    return ":" in name


def file_of(text: str) -> Path | None:
    """The file whose class a text chooses; None for a name, a module, and text that chooses nothing."""
    where, colon, _ = split(text)[0].rpartition(":") if text.isprintable() else ("", "", "")
    return Path(where) if colon and where.endswith(".py") and Path(where).is_file() else None


def module_of(text: str) -> str | None:
    """The module whose class a text chooses, by its full name; None for a name, a file, and text that chooses nothing.

    The module need not be there: it is not looked for.
    """
    where, _, name = split(text)[0].rpartition(":") if text.isprintable() else ("", "", "")
    is_module = name.isidentifier() and all(part.isidentifier() for part in where.split("."))
    return where if is_module and not where.endswith(".py") else None


def load(key: str, place: str, base: type[T]) -> type[T]:
    """The class at a place, which derives from `base`; its module is executed.

    Args:
        key: the config key, for error messages: "method" begins them as `method=my_file.py:Momentum: `.
        place: a path ending in .py, or the name of an importable module, then a colon and the name of the class.
        base: what the class must derive from.

    Raises ValueError where there is no such file, module or class, where importing it fails, and for another class.
    """
    refused, where, module, name = _looked_up(key, place, "class")
    classes = [n for n, c in vars(module).items() if isinstance(c, type) and c is not base and issubclass(c, base)]
    found = getattr(module, name, None)
    wanted = f"{base.__module__}.{base.__qualname__}"
    if not isinstance(found, type):
        raise ValueError(f"{refused}{where} has no class {name}; its classes of {wanted}: {_listed(classes)}")
    if not issubclass(found, base) or found is base:
        raise ValueError(f"{refused}must derive from {wanted}; classes there that do: {_listed(classes)}")
    _places.setdefault(found, place)
    _classes[place] = _classes[_whole(place)] = found
    return found


def load_callable(key: str, place: str) -> Callable[..., Any]:
    """The class or function at a place; its module is executed. Arguments and errors are those of :func:`load`."""
    refused, where, module, name = _looked_up(key, place, "class or function")
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{refused}{where} has no class or function {name}")
    return function


def _looked_up(key: str, place: str, what: str) -> tuple[str, str, ModuleType, str]:
    """(the beginning of a refusal, the module's place, the module, the name to be looked up there)."""
    where, _, name = place.rpartition(":")
    refused = f"{key}={place}: "
    if not (where and name.isidentifier()):
        raise ValueError(f"{refused}must be the place of a {what}, as my_file.py:Name or package.module:Name")
    module = _from_file(refused, Path(where)) if where.endswith(".py") else _imported(refused, where, import_module)
    return refused, where, module, name


def place_of(kind: type) -> str | None:
    """Where a class was loaded from, as it was asked for; None for one that no place was given for."""
    return _places.get(kind)


def loaded(place: str, base: type[T]) -> type[T] | None:
    """The class, derived from `base`, that was loaded from a place before; None if there is none. Executes nothing.

    The class of the file that the place means in the working folder comes before one that was loaded by the same text
    from another folder.
    """
    found = _classes.get(_whole(place), _classes.get(place))
    return found if found is not None and issubclass(found, base) else None


def _whole(place: str) -> str:
    """The place with the whole path of its file."""
    where, _, name = place.rpartition(":")
    return f"{Path(where).resolve()}:{name}" if where.endswith(".py") else place


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _from_file(refused: str, path: Path) -> ModuleType:
    """The module of a file. Its name is that of the file alone, so that what is saved does not depend on folders."""
    file = path.resolve()
    if not file.is_file():
        raise ValueError(f"{refused}no file {path} in {Path.cwd()}")
    name = f"{_PACKAGE}.{file.stem}"
    if not _holds(name, file) and name in sys.modules:
        name = f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"  # of another file with this name
    if _holds(name, file):
        return sys.modules[name]
    return _imported(refused, name, lambda name: _executed(name, file))


def _holds(name: str, file: Path) -> bool:
    return getattr(sys.modules.get(name), "__file__", None) == str(file)


def _executed(name: str, file: Path) -> ModuleType:
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(refused: str, name: str, load: Callable[[str], ModuleType]) -> ModuleType:
    try:
        return load(name)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"{refused}cannot be imported ({type(error).__name__}: {error})") from error
