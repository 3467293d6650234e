"""The settings of the documentation: `make docs` builds it into build/docs."""

import re

from sphinx.application import Sphinx

import slth

project = "slth"
author = "the authors of slth"
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
    literal: int | None = None  # the indent of the line that a literal block follows
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() and literal is not None and indent <= literal:
            literal = None
        if literal is None and not re.match(r"\s*(>>>|={3,} )", line):
            parts = re.split(r"(`+[^`]+`+)", line)
            parts[::2] = [re.sub(r"\||\*(?=\S)|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
            lines[i] = "".join(parts)
        if line.rstrip().endswith("::"):
            literal = indent


def setup(app: Sphinx) -> None:
    """Have the docstrings pass through :func:`plain_text` before their sections are read."""
    app.connect("autodoc-process-docstring", plain_text, priority=400)
