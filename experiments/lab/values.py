"""Values on a command line or in a file, where lists of words need no quotes."""

import ast
import re
from collections.abc import Mapping
from typing import Any

from slth.experiments.lab.refusals import BadConfig

_PART = re.compile(
    r"""
    (?P<quoted> (?: '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" ) \s* (?=[],]) )
    | (?P<mark> [][,] \s* )
    | (?P<bare> [^][,'"{}]+ (?=[],]) )
    """,
    re.VERBOSE,
)


def quoted(text: str) -> str:
    """Convert [a,b] from a command line to the literal ['a','b']: quote words, and leave literals unchanged.

    Lists may contain lists. Other text is returned unchanged.
    """
    if not (text.startswith("[") and text.endswith("]")) or _is_literal(text):
        return text
    parts, end = [], 0
    for part in _PART.finditer(text):
        if part.start() != end:
            return text
        end = part.end()
        word = part[0].strip()
        parts.append(repr(word) if part["bare"] and not _is_literal(word) else word)
    made = "".join(parts)
    return made if end == len(text) and _is_literal(made) else text


def unbracketed(value: Any) -> Any:
    """Convert text [a,b], as in a file, to a list; return other values unchanged."""
    made = quoted(value) if isinstance(value, str) and value.startswith("[") else ""
    return ast.literal_eval(made) if _is_literal(made) else value


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def require_text(key: str, value: Any) -> None:
    """Raise BadConfig for text that files cannot hold: null characters, and unpaired surrogates."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for part in value:
            require_text(key, part)
    elif isinstance(value, str) and ("\0" in value or value != value.encode(errors="replace").decode()):
        raise BadConfig(key, value, "text in UTF-8 without null characters")
