"""Optional dependencies, installed with the extras that pyproject.toml lists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import packages of an extra in a block: `with extra("gpt2"): import transformers`.

    Raises ModuleNotFoundError, with the command to install the extra, for a package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        hint = f'{error.name} is not installed: pip install "slth[{name}]"'
        raise ModuleNotFoundError(hint, name=error.name) from error
