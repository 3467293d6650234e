"""Approximation errors over sources: against width, length and depth."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from slth.plots.aggregate import Curve
from slth.plots.style import (
    CERTIFICATE,
    FIT,
    FORMULA,
    GREY,
    LOOKS,
    MEAN,
    MEDIAN,
    POINTS,
    Fit,
    Look,
    assign_looks,
    draw_band,
    draw_formula,
    draw_line,
    legend_below,
    legend_key,
    make_panels,
    mark_float64,
    require,
    styled,
)

# where the structural mask of a constructed ticket lies; a learned one has none
SIDES = {"input": LOOKS[0], "output": LOOKS[1], "free": LOOKS[2]}
NAMES = {"input": "construction, side=input", "output": "construction, side=output", "free": "edge-popup"}

ERROR_COLUMNS = frozenset({"hidden", "length", "source", "side", "d_in", "error_mean", "certificate"})
ERROR_LABEL = "approximation error\n(maximum over tokens, mean over samples)"
MEAN_ERROR_LABEL = "approximation error\n(maximum over tokens, mean over samples and sources)"
X_LABELS = {"hidden": "hidden dimension $n$ per head", "length": "length $T$"}

ERROR_KEYS = (legend_key("median over sources", kind=MEDIAN), legend_key("mean over sources", kind=MEAN))
SPREAD_KEY = Patch(color=GREY, alpha=0.25, linewidth=0, label="10 to 90 % of the sources")
CERTIFICATE_KEY = legend_key("certificate, median", kind=CERTIFICATE)


@styled
def error_against_width(table: pd.DataFrame, fits: Mapping[str, Fit] | None = None) -> Figure:
    """Error against the source's width, at the shortest length of the table: linear as in the paper, and logarithmic.

    Left: mean and standard deviation over the sources, the fit gamma exp(-delta n) and, at the paper's d_in = 2, the
    paper's 0.8 exp(-0.06 n). Right: median with the 10 to 90 % band, mean, median certificate, and 2^(-n/d_in), the
    resolution of the subset sums of n/d_in candidates.

    Args:
        table: one row per (hidden, length, source, side), with ERROR_COLUMNS; side "free" is edge-popup's.
        fits: for a side ("input", "output") its gamma, delta, and the 95 % interval delta_low, delta_high of delta.
            A side that is missing, or has a value that is None or not finite, gets no curve.

    Raises:
        ValueError: if the table has no rows, lacks a column, or names another side.
    """
    _require_errors(table)
    length, d_in = table["length"].min(), int(table["d_in"].iloc[0])
    table = table[table["length"] == length]
    names = _names(table)
    figure, (linear, log) = make_panels(2, share_y=False)
    log.set_yscale("log")
    for side, rows in _by_side(table):
        look, errors = SIDES[side], _over_sources(rows, "hidden", "error_mean")
        draw_line(linear, errors["mean"], look, POINTS, f"{names[side]}: mean ± standard deviation")
        draw_band(linear, errors["mean"] - errors["std"], errors["mean"] + errors["std"], look)
        _median_and_mean(log, rows, "hidden", look)
        _spread(log, rows, "hidden", look)
        _certificate(log, rows, "hidden", look)
    linear.set_ylim(0, max(linear.get_ylim()[1], 0.85 if d_in == 2 else 0))  # room for the paper's curve
    for axes, scale in ((linear, "linear, as in the paper"), (log, "logarithmic")):
        axes.set_xlim(left=0)
        axes.set(xlabel=X_LABELS["hidden"], title=f"{scale} ({_count_sources(table)}, $T$ = {length})")
    linear.set_ylabel(ERROR_LABEL)
    for side, fit in (fits or {}).items():
        _fit(linear, fit, SIDES[side].color, names[side])
    if d_in == 2:
        draw_formula(linear, lambda n: 0.8 * np.exp(-0.06 * n), r"the paper's fit $0.8\,e^{-0.06\,n}$")
    draw_formula(log, lambda n: 2.0 ** (-n / d_in))
    mark_float64(log)
    sides = [legend_key(names[side], SIDES[side]) for side, _ in _by_side(table)]
    formula = legend_key(f"$2^{{-n/{d_in}}}$", kind=FORMULA)
    legend_below(linear, linear.get_legend_handles_labels()[0], columns=1)
    legend_below(log, [*sides, *ERROR_KEYS, SPREAD_KEY, CERTIFICATE_KEY, formula], columns=2)
    return figure


@styled
def error_against_length(table: pd.DataFrame) -> Figure:
    """Error against the number of tokens: one panel per side, one look per hidden.

    Median with the 10 to 90 % band, mean and median certificate, over the sources that were measured at every length:
    so all lengths speak of the same sources.

    Args:
        table: one row per (hidden, length, source, side), with ERROR_COLUMNS.

    Raises:
        ValueError: if the table has no rows, lacks a column, or names another side, or if no source was measured at
            every length.
    """
    _require_errors(table)
    table = _at_every_length(table)
    looks = assign_looks(sorted(table["hidden"].unique()))
    figure, panels = make_panels(table["side"].nunique())
    for axes, (side, on_side) in zip(panels, _by_side(table), strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for hidden, rows in on_side.groupby("hidden"):
            _median_and_mean(axes, rows, "length", looks[hidden])
            _spread(axes, rows, "length", looks[hidden])
            _certificate(axes, rows, "length", looks[hidden])
        mark_float64(axes)
        title = f"{_panel_name(table, side)}, the same {_count_sources(on_side)} at every length"
        axes.set(xlabel=X_LABELS["length"], title=title)
    panels[0].set_ylabel(ERROR_LABEL)
    widths = [legend_key(f"$n$ = {hidden}", look) for hidden, look in looks.items()]
    keys = [*widths, *ERROR_KEYS, SPREAD_KEY, CERTIFICATE_KEY]
    figure.legend(handles=keys, loc="outside lower center", ncols=4)
    return figure


def _of_widths(table: pd.DataFrame) -> pd.DataFrame:
    """At the shortest length, or nothing of a single width at several lengths."""
    lengths = table["length"]
    return table[lengths == lengths.min()] if table["hidden"].nunique() > 1 or lengths.nunique() == 1 else table[:0]


def _of_lengths(table: pd.DataFrame) -> pd.DataFrame:
    """At the largest width."""
    widest: pd.DataFrame = table[table["hidden"] == table["hidden"].max()]
    return widest


ERROR_CURVES = (
    Curve(
        name="error_vs_width",
        columns=ERROR_COLUMNS,
        x="hidden",
        y="error_mean",
        labels=(X_LABELS["hidden"], MEAN_ERROR_LABEL),
        by=("length", "d_in"),
        panel="side",
        titles=NAMES,
        rows=_of_widths,
        log="y",
    ),
    Curve(
        name="error_vs_length",
        columns=ERROR_COLUMNS,
        x="length",
        y="error_mean",
        labels=(X_LABELS["length"], MEAN_ERROR_LABEL),
        by=("hidden", "d_in"),
        panel="side",
        titles=NAMES,
        rows=_of_lengths,
        log="xy",
        least=2,
    ),
)


# ---------------------------------------------------------------- depth

DEPTH_COLUMNS = frozenset(
    {"hidden", "depth", "length", "source", "error_mean", "error_max", "candidates_attention"}
    | {"certificate", "certificate_recursion"}
)
DEPTH_CURVES = (
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
RESOLVED = 40  # candidates that a subset sum in float64 can still tell apart
RECURSION_KEY = legend_key("the paper's recursion, median where finite", kind=FORMULA)


@styled
def error_against_depth(table: pd.DataFrame, fits: Mapping[str, Fit] | None = None) -> Figure:
    """Error of transformers against the source's width, one look per depth, at the shortest length of the table.

    Left: mean over the sources, and the fits gamma exp(-delta n). Right: medians of the largest error, of its
    certificate and of the paper's recursion.

    Args:
        table: one row per (hidden, depth, length, source), with DEPTH_COLUMNS.
        fits: for a depth (as a string) its gamma, delta, delta_low, delta_high and r2. A depth that is missing, or has
            a value that is None or not finite, gets no curve.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    require(table, DEPTH_COLUMNS)
    length = table["length"].min()
    table = table[table["length"] == length]
    looks = assign_looks(sorted(table["depth"].unique()))
    figure, (left, right) = make_panels(2, share_y=False)
    for axes in (left, right):
        axes.set_yscale("log")
    for depth, look in looks.items():
        widths = table[table["depth"] == depth].groupby("hidden")
        draw_line(left, widths["error_mean"].mean(), look, POINTS, _depth_label(depth, (fits or {}).get(str(depth))))
        draw_line(right, widths["error_max"].median(), look, MEDIAN)
        draw_line(right, widths["certificate"].median(), look, CERTIFICATE)
    limits = right.get_ylim()
    for depth, look in looks.items():
        draw_line(
            right, table[table["depth"] == depth].groupby("hidden")["certificate_recursion"].median(), look, FORMULA
        )
    right.set_ylim(limits)
    for axes in (left, right):
        axes.set(xlim=(0, 1.35 * table["hidden"].max()), xlabel=X_LABELS["hidden"])
        _mark_unresolved(axes, table)
        mark_float64(axes)
    for depth, look in looks.items():
        _fit(left, (fits or {}).get(str(depth), {}), look.color, "_")
    left.set(ylabel=ERROR_LABEL, title=f"mean over {_count_sources(table)} and fit, $T$ = {length}")
    right.set(ylabel="largest error over all inputs", title="largest error and certificates")
    legend_below(left, left.get_legend_handles_labels()[0], columns=1)
    keys = [legend_key(_blocks(depth), look) for depth, look in looks.items()]
    legend_below(right, [*keys, legend_key("median over sources"), CERTIFICATE_KEY, RECURSION_KEY], columns=2)
    return figure


def _blocks(depth: int) -> str:
    return f"{depth} block{'s' if depth > 1 else ''}"


def _depth_label(depth: int, fit: Fit | None) -> str:
    gamma, delta, r2 = ((fit or {}).get(key) for key in ("gamma", "delta", "r2"))
    if gamma is None or delta is None or r2 is None:
        return _blocks(depth)
    return rf"{_blocks(depth)}: fit ${gamma:.2g}\,e^{{-{delta:.3g}\,n}}$, $R^2$ = {r2:.3f}"


def _mark_unresolved(axes: Axes, table: pd.DataFrame) -> None:
    """Where an entry of attention has more candidates than float64 resolves, if the axis reaches so far."""
    per_candidate = float((table["hidden"] / table["candidates_attention"]).min())
    start, end = RESOLVED * per_candidate, axes.get_xlim()[1]
    if start >= end:
        return
    axes.axvspan(start, end, color="0.93", zorder=0)
    text = f"over {RESOLVED} candidates per entry of attention:\nbeyond float64, not fitted"
    if per_candidate == 2:
        text += " (the paper: $n$ = 100 to 225)"
    place = axes.get_xaxis_transform()
    at_edge: Any = {
        "rotation": 90,
        "ha": "right",
        "va": "center",
        "bbox": {"color": "0.93", "pad": 1},
    }  # over the fits' ends
    axes.annotate(text, (0.99 * end, 0.5), xycoords=place, fontsize=8, color=GREY, **at_edge)


# ---------------------------------------------------------------- parts


def _over_sources(rows: pd.DataFrame, x: str, column: str) -> pd.DataFrame:
    """Mean, std, median, low (10 %) and high (90 %) of a column at each value of x, in the order of x."""
    groups = rows.groupby(x)[column]
    return pd.DataFrame(
        {
            "mean": groups.mean(),
            "std": groups.std().fillna(0.0),  # of a single source
            "median": groups.median(),
            "low": groups.quantile(0.1),
            "high": groups.quantile(0.9),
        }
    )


def _median_and_mean(axes: Axes, rows: pd.DataFrame, x: str, look: Look) -> None:
    errors = _over_sources(rows, x, "error_mean")
    draw_line(axes, errors["median"], look, MEDIAN)
    draw_line(axes, errors["mean"], look, MEAN)


def _spread(axes: Axes, rows: pd.DataFrame, x: str, look: Look) -> None:
    errors = _over_sources(rows, x, "error_mean")
    draw_band(axes, errors["low"], errors["high"], look)


def _certificate(axes: Axes, rows: pd.DataFrame, x: str, look: Look) -> None:
    draw_line(axes, _over_sources(rows, x, "certificate")["median"], look, CERTIFICATE)


def _names(table: pd.DataFrame) -> dict[str, str]:
    """The sides by what they are called: that of learned masks as their one method, where the table tells."""
    learned = table[table["side"] == "free"]
    methods = list(learned["method"].unique()) if "method" in learned else []
    return NAMES | ({"free": str(methods[0]).replace("_", "-")} if len(methods) == 1 else {})


def _panel_name(table: pd.DataFrame, side: str) -> str:
    return _names(table)[side].removeprefix("construction, ")


def _by_side(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    return ((side, table[table["side"] == side]) for side in SIDES if (table["side"] == side).any())


def _at_every_length(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the sources that were measured at every length."""
    lengths = table.groupby("source")["length"].nunique()
    table = table[table["source"].isin(lengths.index[lengths == table["length"].nunique()])]
    if table.empty:
        raise ValueError("no source was measured at every length")
    return table


def _require_errors(table: pd.DataFrame) -> None:
    require(table, ERROR_COLUMNS)
    unknown = set(table["side"]) - set(SIDES)
    if unknown:
        raise ValueError(f"side={unknown.pop()!r}: must be one of {', '.join(SIDES)}")


def _count_sources(table: pd.DataFrame) -> str:
    count = table["source"].nunique()
    return f"{count} source{'s' if count > 1 else ''}"


def _fit(axes: Axes, fit: Fit, color: str, name: str) -> None:
    """gamma exp(-delta n), with the interval of delta in the legend."""
    values = [fit.get(part) for part in ("gamma", "delta", "delta_low", "delta_high")]
    if any(value is None or not np.isfinite(value) for value in values):
        return
    gamma, delta, low, high = (float(value) for value in values if value is not None)
    label = rf"{name}: fit ${gamma:.2g}\,e^{{-{delta:.2g}\,n}}$, rate {low:.2g} to {high:.2g} (95 %)"
    draw_formula(axes, lambda n: gamma * np.exp(-delta * n), label, FIT, color)
