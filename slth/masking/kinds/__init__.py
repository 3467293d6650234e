"""The kinds of masks by name.

slth.wrap(model, 0.667, kind="signed")
slth.wrap(model, 0.5, kind=NOfM(2, 4))
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from slth import plugins
from slth.masking.kinds.base import Kind
from slth.masking.kinds.levels import Nested, Prune, Signed
from slth.masking.kinds.structured import Blocks, NOfM

__all__ = ["KINDS", "PRUNE", "Blocks", "Kind", "NOfM", "Nested", "Prune", "Signed", "as_kind", "of_json"]

#: name -> class.
KINDS: dict[str, type[Kind]] = {each.key: each for each in (Prune, Signed, Nested, Blocks, NOfM)}
PRUNE = Prune()


def as_kind(kind: object) -> Kind:
    """Convert a name in KINDS, with options in parentheses, to a kind: as_kind("n_of_m(n=1, m=4)").

    A kind is returned unchanged. Raises ValueError for an unknown name, an unknown option, and a value that an option
    does not allow.
    """
    if isinstance(kind, Kind):
        return kind
    allowed = f"one of {', '.join(KINDS)}, or a Kind"
    if not isinstance(kind, str):
        raise ValueError(f"kind={kind!r}: must be {allowed}")
    try:
        name, options = plugins.split(kind)
    except (ValueError, TypeError) as error:
        raise ValueError(f"kind={kind!r}: must be {allowed} ({error})") from error
    return _made(name, options, allowed)


def of_json(stored: Any) -> Kind:
    """Read the result of `Kind.to_json`. Raises ValueError or TypeError for anything else."""
    name, options = stored
    return _made(name, dict(options), f"one of {', '.join(KINDS)}")


def _made(name: str, options: dict[str, Any], allowed: str) -> Kind:
    if name not in KINDS:
        raise ValueError(f"kind={name!r}: must be {allowed}")
    known = [each.name for each in fields(KINDS[name])]
    if odd := [option for option in options if option not in known]:
        must = f"one of {', '.join(known)}" if known else "left out"
        raise ValueError(f"kind={name}: has no option {odd[0]!r}, must be {must}")
    try:
        return KINDS[name](**options)
    except ValueError as error:
        raise ValueError(f"kind={name}: {error}") from error
