"""Approximation errors, aggregated over sources, against width and length."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from slth.plots.curves import Curve
from slth.plots.entries import Entry, plain, with_fits
from slth.plots.layout import SCREEN, Layout
from slth.plots.looks import (
    CERTIFICATE,
    FILLED,
    FORMULA,
    MEAN,
    MEDIAN,
    POINTS,
    Kind,
    Look,
    key,
    looks_of,
    patch,
)
from slth.plots.marks import draw_band, draw_formula, draw_line, mark_float64
from slth.plots.page import panels
from slth.plots.tables import count_sources, require

Fit = Mapping[str, float | None]

# side: the factor with the structural mask of a constructed ticket; learned masks are "free"
NAMES = {"input": "construction, side=input", "output": "construction, side=output", "free": "learned masks"}
SIDES = looks_of(NAMES)
ONE_METHOD = "edge_popup"  # the method of tables without a column for it

ERROR_COLUMNS = frozenset({"hidden", "length", "source", "side", "d_in", "error_mean", "certificate"})
ERROR_LABEL = "approximation error\n(maximum over tokens, mean over samples)"
MEAN_ERROR_LABEL = "approximation error\n(maximum over tokens, mean over samples and sources)"
X_LABELS = {"hidden": "hidden dimension $n$ per head", "length": "length $T$"}


FEWEST = 4  # least number of widths for a fit to be drawn


def error_keys(panel: str = "") -> list[Artist]:
    """Return legend entries for the kinds of lines; `panel` is a prefix that names the panel, if not all have them."""
    return [
        key(f"{panel}median over sources", kind=MEDIAN),
        key(f"{panel}mean over sources", kind=MEAN),
        patch(f"{panel}10 to 90 % of the sources"),
        key(f"{panel}certificate, median", kind=CERTIFICATE),
    ]


def error_against_width(
    table: pd.DataFrame,
    fits: Mapping[str, Fit] | None = None,
    *,
    axes: Sequence[Axes] | None = None,
    layout: Layout = SCREEN,
) -> list[Axes]:
    """Draw the error against the source's width, at the shortest length of the table.

    Left (linear, as in the paper): mean and standard deviation over the sources, the fit gamma exp(-delta n) and, at
    the paper's d_in = 2, the paper's 0.8 exp(-0.06 n). Right (logarithmic): median with the 10 to 90 % band, mean,
    median certificate, and 2^(-n/d_in), the resolution of subset sums of n/d_in candidates.

    Args:
        table: one row per (hidden, length, source, side), with ERROR_COLUMNS; side "free" stands for learned masks.
        fits: side ("input", "output") -> its gamma, delta, and the 95 % interval delta_low, delta_high of delta. A side
            gets no curve, and "no fit" in the legend, if it has a value that is None or not finite, fewer than 4
            widths, or an interval of delta that includes 0. A side that is missing gets no curve.
        axes: two axes to draw in. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The two axes.

    Raises:
        ValueError: if the table has no rows, lacks a column, or names another side, or there are not two axes.
    """
    _require_errors(table)
    length, d_in = table["length"].min(), int(table["d_in"].iloc[0])
    table = table[table["length"] == length]
    names = side_names([table])
    with panels(2, axes, layout) as page:
        linear, log = page.axes
        log.set_yscale("log")
        page.fixed += [(linear, "y"), (log, "y")]  # the figure already shows both scales
        for side, rows in _by_side(table):
            look, errors = SIDES[side], _over_sources(rows, "hidden", "error_mean")
            draw_band(linear, errors["mean"] - errors["std"], errors["mean"] + errors["std"], look)
            draw_line(linear, errors["mean"], look, POINTS)
            _draw_errors(log, rows, "hidden", look)
        linear.set_ylim(0, max(linear.get_ylim()[1], 0.85 if d_in == 2 else 0))  # room for the paper's curve
        for panel, scale in ((linear, "linear, as in the paper"), (log, "logarithmic")):
            panel.set_xlim(left=0)
            panel.set(xlabel=X_LABELS["hidden"], ylabel="")
            panel.set_title(f"{scale} ({count_sources(table)}, $T$ = {length})")
        page.ylabel(ERROR_LABEL)
        page.legend([key(names[side], SIDES[side], FILLED) for side, _ in _by_side(table)])
        for side, fit in (fits or {}).items():
            page.legend([_draw_fit(linear, names[side], side, fit, table)], linear)
        if d_in == 2:
            draw_formula(linear, lambda n: 0.8 * np.exp(-0.06 * n))
            page.legend([key(r"linear: the paper's fit $0.8\,e^{-0.06\,n}$", kind=FORMULA)], linear)
        draw_formula(log, lambda n: 2.0 ** (-n / d_in))
        mark_float64(log)
        page.legend([key("linear: mean over sources", kind=POINTS), patch("linear: mean ± standard deviation")], linear)
        page.legend(error_keys("logarithmic: "), log)
        page.legend([key(f"logarithmic: $2^{{-n/{d_in}}}$", kind=FORMULA)], log)
    return page.axes


def error_against_length(
    table: pd.DataFrame, *, axes: Sequence[Axes] | None = None, layout: Layout = SCREEN
) -> list[Axes]:
    """Draw the error against the number of tokens: one panel per side, one series per hidden.

    It shows the median with the 10 to 90 % band, the mean and the median certificate. Only sources that were measured
    at every length are used, so that all lengths have the same sources.

    Args:
        table: one row per (hidden, length, source, side), with ERROR_COLUMNS.
        axes: axes to draw in, one per side. None: a new figure.
        layout: layout of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the table has no rows, lacks a column, or names another side, if no source was measured at every
            length, or if there are more or fewer axes than sides.
    """
    _require_errors(table)
    table = _at_every_length(table)
    names = side_names([table])
    of_width = looks_of(sorted(table["hidden"].unique()))
    with panels(table["side"].nunique(), axes, layout, share_y=True) as page:
        for panel, (side, on_side) in zip(page.axes, _by_side(table), strict=True):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            for hidden, rows in on_side.groupby("hidden"):
                _draw_errors(panel, rows, "length", of_width[hidden])
                page.name(panel, f"$n$ = {hidden}", of_width[hidden], rows.groupby("length")["error_mean"].median())
            mark_float64(panel)
            name = names[side].removeprefix("construction, ")
            panel.set_title(f"{name}, the same {count_sources(on_side)} at every length")
            panel.set(xlabel=X_LABELS["length"], ylabel="")
        page.ylabel(ERROR_LABEL)
        page.legend(error_keys())
    return page.axes


def _draw_fit(axes: Axes, name: str, side: str, fit: Fit, table: pd.DataFrame) -> Artist:
    """Draw the fit of a side, in the side's dashes, if it is significant; return the legend's entry."""
    widths = table.loc[table["side"] == side, "hidden"].nunique()
    complete = finite_fit(fit)
    if complete is None or widths < FEWEST or complete[2] <= 0 <= complete[3]:
        return key(f"{name}: no fit", kind={"linestyle": "", "marker": ""})
    gamma, delta, low, high = complete
    line: Kind = {"linestyle": SIDES[side].dashes, "marker": ""}
    draw_formula(axes, lambda n: gamma * np.exp(-delta * n), line, SIDES[side].color)
    label = rf"{name}: fit ${gamma:.2g}\,e^{{-{delta:.2g}\,n}}$, rate {low:.2g} to {high:.2g} (95 %)"
    return key(label, SIDES[side], line)


def finite_fit(fit: Fit) -> list[float] | None:
    """Return gamma, delta, delta_low and delta_high if all are finite numbers, else None."""
    values = [fit.get(part) for part in ("gamma", "delta", "delta_low", "delta_high")]
    return None if any(v is None or not np.isfinite(v) for v in values) else [float(v) for v in values if v is not None]


def side_names(tables: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Return the names of the sides; that of learned masks is the method, if all tables have the same one."""
    learned = [table[table["side"] == "free"] for table in tables]
    of_rows = [rows["method"] if "method" in rows else pd.Series(ONE_METHOD, rows.index) for rows in learned]
    methods = {str(method) for column in of_rows for method in column.unique()}
    return NAMES | ({"free": _readable(methods.pop())} if len(methods) == 1 else {})


def _readable(method: str) -> str:
    """Return a method's name with hyphens for underscores; FILE:Class stays as it is."""
    return method if ":" in method else method.replace("_", "-")


def _of_widths(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the shortest length, or none if there are several lengths but only one width."""
    lengths = table["length"]
    return table[lengths == lengths.min()] if table["hidden"].nunique() > 1 or lengths.nunique() == 1 else table[:0]


def _of_lengths(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the largest width."""
    widest: pd.DataFrame = table[table["hidden"] == table["hidden"].max()]
    return widest


CURVES = (
    Curve(
        name="error_vs_width",
        columns=ERROR_COLUMNS,
        x="hidden",
        y="error_mean",
        labels=(X_LABELS["hidden"], MEAN_ERROR_LABEL),
        by=("length", "d_in"),
        panel="side",
        titles=side_names,
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
        titles=side_names,
        rows=_of_lengths,
        log="xy",
        least=2,
    ),
)


def _over_sources(rows: pd.DataFrame, x: str, column: str) -> pd.DataFrame:
    """Compute mean, std, median, low (10 %) and high (90 %) of a column at each value of x, in the order of x."""
    groups = rows.groupby(x)[column]
    return pd.DataFrame(
        {
            "mean": groups.mean(),
            "std": groups.std().fillna(0.0),  # std is NaN for a single source
            "median": groups.median(),
            "low": groups.quantile(0.1),
            "high": groups.quantile(0.9),
        }
    )


def _draw_errors(axes: Axes, rows: pd.DataFrame, x: str, look: Look) -> None:
    """Draw median, mean and spread over the sources, and the median certificate."""
    errors = _over_sources(rows, x, "error_mean")
    draw_band(axes, errors["low"], errors["high"], look)
    draw_line(axes, errors["median"], look, MEDIAN)
    draw_line(axes, errors["mean"], look, MEAN)
    draw_line(axes, _over_sources(rows, x, "certificate")["median"], look, CERTIFICATE)


def _by_side(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    return ((side, table[table["side"] == side]) for side in SIDES if (table["side"] == side).any())


def _at_every_length(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the sources that were measured at every length."""
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


FIGURES = (
    Entry(
        "error_vs_width",
        ERROR_COLUMNS,
        with_fits(error_against_width),
        lambda table: bool(table["hidden"].nunique() > 1 or table["length"].nunique() == 1),
    ),
    Entry("error_vs_length", ERROR_COLUMNS, plain(error_against_length), lambda table: table["length"].nunique() > 1),
)
