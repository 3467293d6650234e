"""Config files, as in `with my.yaml`, whose keys have the same meaning as on a command line, method.rate included."""

import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

from slth.experiments.lab.border import ConfigDict, load_config_file, set_by_dotted_path
from slth.experiments.lab.refusals import Refused, one_line


def read(path: str, with_options: Set[str]) -> ConfigDict:
    """Read the values of a file of a kind that Sacred supports; keys in `with_options` may have key.option as well.

    Raises:
        Refused: if the file cannot be read, or holds something else than keys with values.
    """
    try:
        content = load_config_file(path)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}: must be keys with values")
        return ConfigDict(canonical(nested(content, with_options), with_options))
    except Exception as error:  # any error of the readers of JSON, YAML and pickles
        raise Refused(one_line(f"{os.fspath(path)}: no config file that can be read ({error})")) from error


def nested(content: Mapping[str, Any], with_options: Set[str]) -> dict[str, Any]:
    """Convert {"a.b": 1} to {"a": {"b": 1}}, at every depth."""
    tree: dict[str, Any] = {}
    if odd := [key for key in content if not isinstance(key, str) or not all(key.split("."))]:
        raise ValueError(f"key {odd[0]!r}: must be text without empty parts")
    for key, path in folded(content, with_options).items():
        set_by_dotted_path(tree, path, _nested_within(content[key]))
    return tree


def _nested_within(value: Any) -> Any:
    """Convert values that are themselves configs, or lists of them, as in a sweep."""
    if isinstance(value, list):
        return [_nested_within(item) for item in value]
    return nested(value, {*value}) if isinstance(value, dict) else value


def canonical(values: Mapping[str, Any], with_options: Set[str]) -> dict[str, Any]:
    """Convert plain names of keys in `with_options` to {"name": name}, so that options can be added."""
    return {key: {"name": v} if key in with_options and isinstance(v, str) else v for key, v in values.items()}


def folded(keys: Iterable[str], with_options: Set[str]) -> dict[str, str]:
    """Map each key to itself, or to key.name if it may have options and there is a key.option."""
    keys = [*keys]
    return {
        key: f"{key}.name"
        if key.partition(".")[0] in with_options and any(other.startswith(f"{key}.") for other in keys)
        else key
        for key in keys
    }
