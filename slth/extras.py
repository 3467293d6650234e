"""What is not of the core comes with an extra of this package, as pyproject.toml lists them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import packages of an extra within it: `with extra("gpt2"): import transformers`.

    Raises ModuleNotFoundError for one that is not installed, with the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        hint = f'{error.name} is not installed: pip install "slth[{name}]"'
        raise ModuleNotFoundError(hint, name=error.name) from error
