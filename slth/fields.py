"""Classes that declare their settings as the fields of a dataclass: searches, traits, configs."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass


def require_dataclass(kind: type) -> None:
    """Raise ValueError if a class or one of its bases annotates fields but lacks @dataclass, which ignores them.

    Fields that a derived dataclass declares again are allowed.
    """
    declared: set[str] = set()
    for each in kind.__mro__:
        own = {name for name, one in inspect.get_annotations(each).items() if "ClassVar" not in str(one)}
        if "__dataclass_fields__" in vars(each):
            declared |= own
        elif is_dataclass(each) and own - declared:
            raise ValueError(
                f"{each.__name__}: must be a frozen dataclass, as its base is, because it has fields of its own"
            )
