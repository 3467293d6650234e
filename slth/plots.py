"""Figures from tidy tables: a table of measurements goes in, a matplotlib Figure comes out.

One row of a table is one measurement; the columns are those of an experiment's results.csv. Nothing is shown or
stored here, and pyplot's global state is not touched. Series differ in more than their colour, so that a figure can
be printed in grey.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import NamedTuple, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

P = ParamSpec("P")
Fit = Mapping[str, float | None]


class Look(NamedTuple):
    """What tells one series from another."""

    color: str
    marker: str


# Neighbours differ in lightness, for grey print.
LOOKS = (
    Look("#004488", "o"),
    Look("#D98E04", "s"),
    Look("#B03A5B", "^"),
    Look("#40B5A6", "D"),
    Look("#111111", "v"),
    Look("#8C8C8C", "P"),
)
SIDES = {"input": LOOKS[0], "output": LOOKS[1]}
NOTE = "0.3"  # the grey of what is not measured here, and of what stands for a line style in a legend
MEDIAN, MEAN, CERTIFICATE, THEORY = "-", (0, (4, 1.5)), (0, (6, 2, 1, 2)), ":"

ERROR = r"$\max_i\,\Vert\mathrm{Attn}_S(x_i)-\mathrm{Attn}_T(x_i)\Vert_2$, mean over samples"
WIDTH = "hidden dimension $n$ per head"
LENGTH = "length $T$ in tokens"
ZERO = 2.0**-60  # where a logarithmic axis shows zeros, well below what float64 resolves

STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a figure function draw in STYLE and leave the caller's settings as they are."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def figures(table: pd.DataFrame, fits: Mapping[str, Fit] | None = None) -> dict[str, Figure]:
    """Every figure that the table has the columns and rows for, by the name of its file."""
    drawn = {}
    if WIDTH_COLUMNS <= set(table.columns):
        drawn["error_vs_width"] = error_against_width(table, fits)
        if table["length"].nunique() > 1:
            drawn["error_vs_length"] = error_against_length(table)
    return drawn


# ---------------------------------------------------------------------------------------------------------------------
# The error of a constructed ticket
# ---------------------------------------------------------------------------------------------------------------------

WIDTH_COLUMNS = {"hidden", "length", "source", "side", "d_in", "error_mean", "certificate"}


@styled
def error_against_width(table: pd.DataFrame, fits: Mapping[str, Fit] | None = None) -> Figure:
    """Error against the source's width, at the shortest length of the table: linear as in the paper, and logarithmic.

    Left: mean and standard deviation over the sources, the fit gamma exp(-delta n) and, at the paper's d_in = 2, the
    paper's own 0.8 exp(-0.06 n). Right: median with the 10 to 90 % band, mean, median certificate, and 2^(-n/d_in),
    which is how fast the best of all subset sums of n/d_in candidates comes closer.

    Args:
        table: one row per (hidden, length, source, side), with the columns WIDTH_COLUMNS.
        fits: for a side ("input", "output") its gamma, delta, delta_low and delta_high (95 % interval of delta);
            a missing side, or a value that is None or not finite, is left out.

    Raises:
        ValueError: if the table is empty, lacks a column or names another side.
    """
    _require(table, WIDTH_COLUMNS)
    length = table["length"].min()
    table = table[table["length"] == length]
    figure, (linear, log) = _panels(2)
    log.set_yscale("log")
    for side, rows in _by_side(table):
        look, errors = SIDES[side], over_sources(rows, "hidden", "error_mean")
        line(linear, errors["mean"], look, label=f"side={side}: mean ± standard deviation")
        band(linear, errors["mean"] - errors["std"], errors["mean"] + errors["std"], look)
        _add_fit(linear, errors.index, (fits or {}).get(side), look)
        _add_error(log, rows, "hidden", look)
    linear.set_ylim(bottom=0)
    d_in = int(table["d_in"].iloc[0])
    if d_in == 2:
        formula(linear, lambda n: 0.8 * np.exp(-0.06 * n), r"the paper's $0.8\,e^{-0.06\,n}$")
    formula(log, lambda n: 2.0 ** (-n / d_in), "")
    _mark_resolution(log)
    linear.set(xlabel=WIDTH, ylabel=ERROR, title="mean and fit, linear")
    log.set(xlabel=WIDTH, title=f"{_count(table)}, $T$ = {length}, logarithmic")
    _legend(linear, linear.get_legend_handles_labels()[0])
    _legend(log, [*_side_handles(table), *ERROR_HANDLES, _handle(THEORY, rf"$2^{{-n/{d_in}}}$")])
    return figure


@styled
def error_against_length(table: pd.DataFrame) -> Figure:
    """Error against the number of tokens: one panel per side, one line per hidden, mean with the 10 to 90 % band.

    Only the sources that were measured at every length count, so that all lengths speak of the same ones. The dashed
    lines are the median certificates.

    Args:
        table: one row per (hidden, length, source, side), with the columns WIDTH_COLUMNS.

    Raises:
        ValueError: if the table is empty, lacks a column or names another side.
    """
    _require(table, WIDTH_COLUMNS)
    table = _common_sources(table)
    sides = list(_by_side(table))
    figure, panels = _panels(len(sides), sharey=True)
    widths = sorted(table["hidden"].unique())
    looks = _looks(widths)
    for panel, (side, rows) in zip(panels, sides, strict=True):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        for hidden, at_width in rows.groupby("hidden"):
            errors = over_sources(at_width, "length", "error_mean")
            line(panel, errors["mean"], looks[hidden], style=MEAN)
            band(panel, errors["low"], errors["high"], looks[hidden])
            bounds = over_sources(at_width, "length", "certificate")
            line(panel, bounds["median"], looks[hidden], style=CERTIFICATE, marker="")
        _mark_resolution(panel)
        panel.set(xlabel=LENGTH, title=f"side={side}, {_count(table)}")
        handles = [_handle("-", f"$n$ = {n}", looks[n]) for n in widths]
        _legend(panel, [*handles, _handle(MEAN, "mean"), BAND_HANDLE, _handle(CERTIFICATE, "certificate (median)")])
    panels[0].set_ylabel(ERROR)
    return figure
