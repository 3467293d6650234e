"""Approximation errors of transformers against the source's width, by depth."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from slth.plots.curves import Curve
from slth.plots.entries import Entry, with_fits
from slth.plots.errors import ERROR_LABEL, MEAN_ERROR_LABEL, X_LABELS, Fit, finite_fit
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import BOUND, CERTIFICATE, FIT, MEDIAN, POINTS, key, looks_of, patch
from slth.plots.marks import draw_formula, draw_line, mark_float64
from slth.plots.page import Page, panels
from slth.plots.tables import count_sources, require

DEPTH_COLUMNS = frozenset(
    {"hidden", "depth", "length", "source", "error_mean", "error_max", "candidates_attention"}
    | {"certificate", "certificate_recursion"}
)
CURVES = (
    Curve(
        name="error_vs_depth",
        columns=DEPTH_COLUMNS,
        x="hidden",
        y="error_mean",
        labels=(X_LABELS["hidden"], MEAN_ERROR_LABEL),
        by=("depth", "length"),
        rows=lambda table: table[table["length"] == table["length"].min()],
        log="y",
    ),
)
RESOLVED = 40  # most candidates whose subset sums float64 resolves


def error_against_depth(
    table: pd.DataFrame,
    fits: Mapping[str, Fit] | None = None,
    *,
    axes: Sequence[Axes] | None = None,
    layout: Layout = SCREEN,
) -> list[Axes]:
    """Draw the error of transformers against the source's width, by depth, at the shortest length of the table.

    Left: mean over the sources, and the fits gamma exp(-delta n). Right: medians of the largest error, of its
    certificate and of the paper's recursion.

    Args:
        table: one row per (hidden, depth, length, source), with DEPTH_COLUMNS.
        fits: depth (as a string) -> its gamma, delta, delta_low, delta_high and r2. A depth that is missing, or has a
            value that is None or not finite, gets no curve.
        axes: two axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The two axes.

    Raises:
        ValueError: if the table has no rows or lacks a column, or there are not two axes.
    """
    require(table, DEPTH_COLUMNS)
    length = table["length"].min()
    table = table[table["length"] == length]
    of_depth = looks_of(sorted(table["depth"].unique()))
    with panels(2, axes, layout) as page:
        left, right = page.axes
        for panel in page.axes:
            panel.set_yscale("log")
        for depth, look in of_depth.items():
            widths = table[table["depth"] == depth].groupby("hidden")
            draw_line(left, widths["error_mean"].mean(), look, POINTS)
            draw_line(right, widths["error_max"].median(), look, MEDIAN)
            draw_line(right, widths["certificate"].median(), look, CERTIFICATE)
            page.name(right, _blocks(depth), look, widths["error_max"].median())
            page.legend([key(_label(depth, (fits or {}).get(str(depth))), look, POINTS)], left)
        limits = right.get_ylim()
        for depth, look in of_depth.items():
            rows = table[table["depth"] == depth]
            draw_line(right, rows.groupby("hidden")["certificate_recursion"].median(), look, BOUND)
        right.set_ylim(limits)
        for panel in page.axes:
            panel.set(xlim=(0, 1.35 * table["hidden"].max()), xlabel=X_LABELS["hidden"])
            mark_float64(panel)
        for depth, look in of_depth.items():
            if complete := finite_fit((fits or {}).get(str(depth), {})):
                gamma, delta, *_ = complete
                draw_formula(left, lambda n, g=gamma, d=delta: g * np.exp(-d * n), FIT, look.color)  # type: ignore[misc]
        left.set(ylabel=ERROR_LABEL, title=f"mean over {count_sources(table)} and fit, $T$ = {length}")
        right.set(ylabel="largest error over all inputs", title="largest error and certificates")
        kinds = {"median over sources": MEDIAN, "certificate, median": CERTIFICATE}
        kinds |= {"the paper's recursion, median where finite": BOUND}
        page.legend([key(label, kind=kind) for label, kind in kinds.items()], right)
        _mark_unresolved(page, table)
    return page.axes


def _blocks(depth: int) -> str:
    return f"{depth} block{'s' if depth > 1 else ''}"


def _label(depth: int, fit: Fit | None) -> str:
    gamma, delta, r2 = ((fit or {}).get(part) for part in ("gamma", "delta", "r2"))
    if gamma is None or delta is None or r2 is None:
        return f"{_blocks(depth)}: mean over sources"
    return rf"{_blocks(depth)}: fit ${gamma:.2g}\,e^{{-{delta:.3g}\,n}}$, $R^2$ = {r2:.3f}"


def _mark_unresolved(page: Page, table: pd.DataFrame) -> None:
    """Shade the widths where an attention entry has more candidates than float64 resolves, if the axes show any."""
    per_candidate = float((table["hidden"] / table["candidates_attention"]).min())
    start, end = RESOLVED * per_candidate, page.axes[0].get_xlim()[1]
    if start >= end:
        return
    for axes in page.axes:
        axes.axvspan(start, end, color="0.9", zorder=0)
    text = f"over {RESOLVED} candidates per attention entry: beyond float64, not fitted"
    if per_candidate == 2:
        text += " (the paper: $n$ = 100 to 225)"
    page.legend([patch(text, "0.9")])


FIGURES = (Entry("error_vs_depth", DEPTH_COLUMNS, with_fits(error_against_depth)),)
