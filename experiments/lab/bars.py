"""Progress bars."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(iterable: Iterable[Any] | None, description: str, total: int | None = None) -> "tqdm[Any]":
    """The same items with a progress bar on stderr, quiet where that is no terminal. Without items: `.update()`."""
    return tqdm(iterable, desc=description, total=total, disable=None)
