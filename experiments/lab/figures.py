"""Render figures as files."""

import io
import logging
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from PIL import Image


def render(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Render each figure as NAME.png (150 dpi), NAME.svg and NAME.pdf; equal figures give equal bytes."""
    files: dict[str, bytes] = {}
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of the date in matplotlib's own fonts
    with matplotlib.rc_context({"svg.hashsalt": "slth", "pdf.fonttype": 42}):  # TrueType, which journals require
        for name, figure in figures.items():
            png, svg, pdf = io.BytesIO(), io.BytesIO(), io.BytesIO()
            figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
            figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
            files |= {
                f"{name}.png": _with_few_colors(png),
                f"{name}.svg": svg.getvalue(),
                f"{name}.pdf": pdf.getvalue(),
            }
    return files


def _with_few_colors(png: io.BytesIO) -> bytes:
    """Convert a PNG to a palette of 256 colours: at most half the size, and no visible difference."""
    small = io.BytesIO()
    Image.open(png).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png")
    return small.getvalue()
