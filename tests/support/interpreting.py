"""Triton's interpreter, which puts numpy's operations in the place of its language's.

By itself it does so at every launch and at every call of a function within a kernel, which takes half of its time.
"""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

from triton import language
from triton.runtime import interpreter

MODULES = SimpleNamespace(__globals__={"tl": language, "core": language.core})  # what kernels and their functions see


@contextmanager
def patching_at_launches():
    """Within it the interpreter patches all modules of the language at a launch, and none at a call of a function."""
    patch_lang = interpreter._patch_lang
    with (
        patch.object(interpreter, "_patch_lang", lambda kernel: patch_lang(MODULES)),
        patch.object(interpreter.InterpretedFunction, "__call__", _call),
    ):
        yield


def _call(function, *arguments, **options):
    return function.rewrite()(*arguments, **options)
