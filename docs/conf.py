"""The settings of the documentation: `make docs` builds it into build/docs."""

import re
from collections.abc import Iterator

from sphinx.application import Sphinx

import slth

project = "slth"
author = "the authors of slth"
copyright = "2026, the authors of slth"
release = version = slth.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # `x` in a docstring is code
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # fields are documented once, as members
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"slth {release}"
smartquotes = False  # "input" is what one writes
suppress_warnings = ["ref.python"]  # fields of two classes may bear one name


def plain_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with formulas: let |x| and a * b stand for themselves."""
    own = type(obj).__doc__
    if what in ("data", "attribute") and isinstance(own, str) and lines[:1] == own.splitlines()[:1]:
        lines.clear()  # the words of dict itself on a dict
    lines[:] = list(escaped(lines))


def escaped(lines: list[str]) -> Iterator[str]:
    """The lines with indented blocks as literal ones, and with signs outside of code that mean nothing."""
    block: int | None = None  # the indent of the line that a literal block follows
    indent, blank, marked = 0, False, False
    for line in lines:
        if line.strip():
            own = len(line) - len(line.lstrip())
            if block is None and blank and own >= indent + 4:
                block = indent
                if not marked:
                    yield from (" " * indent + "::", "")
            elif block is not None and own <= block:
                block = None
            if block is None:
                indent, marked = own, line.rstrip().endswith("::")
        blank = not line.strip()
        yield line if block is not None or re.match(r"\s*(>>>|={3,} )", line) else _escaped(line)


def _escaped(line: str) -> str:
    parts = re.split(r"(`+[^`]+`+)", line)
    parts[::2] = [re.sub(r"\||\*(?=\S)|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def setup(app: Sphinx) -> None:
    """Have the docstrings pass through :func:`plain_text` before their sections are read."""
    app.connect("autodoc-process-docstring", plain_text, priority=400)
