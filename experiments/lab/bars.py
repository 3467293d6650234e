"""Progress bars."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(iterable: Iterable[Any] | None, description: str, total: int | None = None) -> "tqdm[Any]":
    """Wrap items in a progress bar on stderr, silent if that is no terminal. Without items, use `.update()`."""
    return tqdm(iterable, desc=description, total=total, disable=None)
