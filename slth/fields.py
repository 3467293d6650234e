"""Classes that declare their settings as the fields of a dataclass: searches, traits, configs."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass


def require_dataclass(kind: type) -> None:
    """Raise ValueError if a class or a base of it annotates fields and lacks @dataclass, so that they would be lost.

    What a class that derives from it declares again, as a dataclass, is not lost.
    """
    declared: set[str] = set()
    for each in kind.__mro__:
        own = {name for name, one in inspect.get_annotations(each).items() if "ClassVar" not in str(one)}
        if "__dataclass_fields__" in vars(each):
            declared |= own
        elif is_dataclass(each) and own - declared:
            raise ValueError(
                f"{each.__name__}: must be a frozen dataclass, as its base is, for it has fields of its own"
            )
