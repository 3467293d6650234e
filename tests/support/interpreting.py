"""Make Triton's interpreter quicker: it replaces the operations of Triton's language by numpy's once per launch.

By default it does so at every launch and at every call of a function within a kernel, which takes half of its time.
"""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

from triton import language
from triton.runtime import interpreter

MODULES = SimpleNamespace(__globals__={"tl": language, "core": language.core})  # what kernels and their functions see


def can_patch():
    """Return whether this version of Triton has the private names that are replaced (3.6 and 3.7 do)."""
    return hasattr(interpreter, "_patch_lang") and hasattr(interpreter.InterpretedFunction, "rewrite")


@contextmanager
def patching_at_launches():
    """Within the block, the interpreter patches the language at launches, and not at calls of functions."""
    patch_lang = interpreter._patch_lang
    with (
        patch.object(interpreter, "_patch_lang", lambda kernel: patch_lang(MODULES)),
        patch.object(interpreter.InterpretedFunction, "__call__", _call),
    ):
        yield


def _call(function, *arguments, **options):
    return function.rewrite()(*arguments, **options)
