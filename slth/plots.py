"""Figures from tidy tables: a table of measurements goes in, a matplotlib Figure comes out.

One row of a table is one measurement; the columns are those of an experiment's results.csv. Nothing is shown or
stored here, and pyplot's global state is not touched. Series differ in more than their colour, so that a figure can
be printed in grey.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

P = ParamSpec("P")
Fit = Mapping[str, float | None]
Kind = Mapping[str, Any]


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

GREY = "0.3"  # of formulas, and of what stands for a kind of line in a legend

# Kinds of lines, as matplotlib's properties; a series gives them its colour and marker.
MEDIAN: Kind = {"linestyle": "-"}
MEAN: Kind = {"linestyle": (0, (4, 1.5)), "markerfacecolor": "white"}
CERTIFICATE: Kind = {"linestyle": (0, (6, 2, 1, 2)), "marker": ""}
FORMULA: Kind = {"linestyle": (0, (1, 1.5)), "marker": ""}
POINTS: Kind = {"linestyle": "", "markerfacecolor": "white"}
FIT: Kind = {"linestyle": "--", "marker": ""}

ERROR_COLUMNS = frozenset({"hidden", "length", "source", "side", "d_in", "error_mean", "certificate"})
ERROR_LABEL = "approximation error\n(maximum over tokens, mean over samples)"
X_LABELS = {"hidden": "hidden dimension $n$ per head", "length": "length $T$"}

ZERO = 2.0**-60  # where a logarithmic axis shows zeros: well below what float64 resolves next to 1

STYLE: Any = {  # matplotlib types the keys themselves
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
    "legend.handlelength": 3.2,
}


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a figure function draw in STYLE and leave the caller's settings as they are."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def figures(table: pd.DataFrame, fits: Mapping[str, Fit] | None = None) -> dict[str, Figure]:
    """Every figure that the table has the columns and rows for, by the name of its file; `fits` as below."""
    drawn = {}
    if set(table.columns) >= ERROR_COLUMNS:
        widths, lengths = table["hidden"].nunique(), table["length"].nunique()
        if widths > 1 or lengths == 1:
            drawn["error_vs_width"] = error_against_width(table, fits)
        if lengths > 1:
            drawn["error_vs_length"] = error_against_length(table)
    if set(table.columns) >= DEPTH_COLUMNS:
        drawn["error_vs_depth"] = error_against_depth(table, fits)
    if set(table.columns) >= SPEED_COLUMNS:
        drawn["speed"] = speed(table)
    if set(table.columns) >= HIDDEN_COLUMNS:
        drawn["error_vs_block"] = error_against_block(table)
        if table["candidates"].nunique() > 1:
            drawn["gap_vs_candidates"] = gap_against_candidates(table)
    if set(table.columns) >= CONSTANT_COLUMNS:
        drawn["constant"] = constant(table)
    return drawn


@_styled
def error_against_width(table: pd.DataFrame, fits: Mapping[str, Fit] | None = None) -> Figure:
    """Error against the source's width, at the shortest length of the table: linear as in the paper, and logarithmic.

    Left: mean and standard deviation over the sources, the fit gamma exp(-delta n) and, at the paper's d_in = 2, the
    paper's 0.8 exp(-0.06 n). Right: median with the 10 to 90 % band, mean, median certificate, and 2^(-n/d_in), the
    resolution of the subset sums of n/d_in candidates.

    Args:
        table: one row per (hidden, length, source, side), with ERROR_COLUMNS.
        fits: for a side ("input", "output") its gamma, delta, and the 95 % interval delta_low, delta_high of delta.
            A side that is missing, or has a value that is None or not finite, gets no curve.

    Raises:
        ValueError: if the table has no rows, lacks a column, or names another side.
    """
    _require_errors(table)
    length, d_in = table["length"].min(), int(table["d_in"].iloc[0])
    table = table[table["length"] == length]
    figure, (linear, log) = _panels(2, share_y=False)
    log.set_yscale("log")
    for side, rows in _by_side(table):
        look, errors = SIDES[side], _over_sources(rows, "hidden", "error_mean")
        _line(linear, errors["mean"], look, POINTS, f"side={side}: mean ± standard deviation")
        _band(linear, errors["mean"] - errors["std"], errors["mean"] + errors["std"], look)
        _median_and_mean(log, rows, "hidden", look)
        _spread(log, rows, "hidden", look)
        _certificate(log, rows, "hidden", look)
    linear.set_ylim(0, max(linear.get_ylim()[1], 0.85 if d_in == 2 else 0))  # room for the paper's curve
    for axes, scale in ((linear, "linear, as in the paper"), (log, "logarithmic")):
        axes.set_xlim(left=0)
        axes.set(xlabel=X_LABELS["hidden"], title=f"{scale} ({_count_sources(table)}, $T$ = {length})")
    linear.set_ylabel(ERROR_LABEL)
    for side, fit in (fits or {}).items():
        _fit(linear, fit, SIDES[side].color, f"side={side}")
    if d_in == 2:
        _formula(linear, lambda n: 0.8 * np.exp(-0.06 * n), r"the paper's fit $0.8\,e^{-0.06\,n}$")
    _formula(log, lambda n: 2.0 ** (-n / d_in))
    _mark_float64(log)
    sides = [_key(f"side={side}", SIDES[side]) for side, _ in _by_side(table)]
    formula = _key(f"$2^{{-n/{d_in}}}$", kind=FORMULA)
    _legend_below(linear, linear.get_legend_handles_labels()[0], columns=1)
    _legend_below(log, [*sides, *ERROR_KEYS, SPREAD_KEY, CERTIFICATE_KEY, formula], columns=2)
    return figure


@_styled
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
    looks = _assign_looks(sorted(table["hidden"].unique()))
    figure, panels = _panels(table["side"].nunique())
    for axes, (side, on_side) in zip(panels, _by_side(table), strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for hidden, rows in on_side.groupby("hidden"):
            _median_and_mean(axes, rows, "length", looks[hidden])
            _spread(axes, rows, "length", looks[hidden])
            _certificate(axes, rows, "length", looks[hidden])
        _mark_float64(axes)
        axes.set(xlabel=X_LABELS["length"], title=f"side={side}, the same {_count_sources(on_side)} at every length")
    panels[0].set_ylabel(ERROR_LABEL)
    widths = [_key(f"$n$ = {hidden}", look) for hidden, look in looks.items()]
    keys = [*widths, *ERROR_KEYS, SPREAD_KEY, CERTIFICATE_KEY]
    figure.legend(handles=keys, loc="outside lower center", ncols=4)
    return figure


@_styled
def overlay(tables: Mapping[str, pd.DataFrame], x: str = "hidden") -> Figure:
    """Several runs on the same axes: median and mean error against x, one panel per side, one look per run.

    Args:
        tables: for the label of each run its table, with one row per (hidden, length, source, side) and ERROR_COLUMNS.
        x: "hidden", at the shortest length of each run, or "length", at the largest hidden of each.

    Raises:
        ValueError: if there are no tables, or one has no rows, lacks a column, or names another side.
    """
    if x not in X_LABELS or not tables:
        raise ValueError(f"x={x!r} of {len(tables)} tables: must be one of {', '.join(X_LABELS)}, of 1 table or more")
    shown = dict(_seen_against(x, label, table) for label, table in tables.items())
    sides = [side for side in SIDES if any((table["side"] == side).any() for table in shown.values())]
    looks = _assign_looks(shown)
    figure, panels = _panels(len(sides))
    for axes, side in zip(panels, sides, strict=True):
        axes.set_yscale("log")
        if x == "length":
            axes.set_xscale("log", base=2)
        for label, table in shown.items():
            _median_and_mean(axes, table[table["side"] == side], x, looks[label])
        _mark_float64(axes)
        axes.set(xlabel=X_LABELS[x], title=f"side={side}")
    panels[0].set_ylabel(ERROR_LABEL)
    runs = [_key(label, look) for label, look in looks.items()]
    figure.legend(handles=[*runs, *ERROR_KEYS], loc="outside lower center", ncols=2)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Parts of figures
# ---------------------------------------------------------------------------------------------------------------------


def _panels(count: int, share_y: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels side by side."""
    figure = Figure(figsize=(max(5.2 * count, 6.5), 4.8))
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=share_y)[0])


def _assign_looks(series: Iterable[Hashable]) -> dict[Any, Look]:
    return dict(zip(series, itertools.cycle(LOOKS), strict=False))


def _line(axes: Axes, values: "pd.Series[float]", look: Look, kind: Kind, label: str = "_") -> None:
    """Values over their index. A single value shows as its marker, or as a dash where the line has none."""
    properties = _properties(look, kind)
    if len(values) == 1 and not properties["marker"]:
        properties |= {"marker": "_", "markersize": 10}
    axes.plot(values.index, _drawable(axes, values), label=label, **properties)


def _properties(look: Look, kind: Kind) -> dict[str, Any]:
    return {"color": look.color, "marker": look.marker, "markersize": 4.5, "linewidth": 1.6, **kind}


def _band(axes: Axes, low: "pd.Series[float]", high: "pd.Series[float]", look: Look) -> None:
    """What lies between two lines over the same index; a bar where that is a single point."""
    x, bottom, top = low.index, _drawable(axes, low), _drawable(axes, high)
    if len(x) == 1:
        axes.vlines(x, bottom, top, color=look.color, alpha=0.35, linewidth=6)
    else:
        axes.fill_between(x, bottom, top, color=look.color, alpha=0.18, linewidth=0)


def _drawable(axes: Axes, values: "pd.Series[float]") -> "pd.Series[float]":
    """Values as the axis can show them: infinities are gaps, zeros on a logarithmic axis lie at ZERO."""
    finite = values.where(np.isfinite(values))
    return finite.clip(lower=ZERO) if axes.get_yscale() == "log" else finite


def _formula(
    axes: Axes, function: Callable[[Any], Any], label: str = "_", kind: Kind = FORMULA, color: str = GREY
) -> None:
    """A function over the whole x axis; the limits stay as the measured values set them."""
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    x = np.linspace(*limits["xlim"], 400)
    axes.plot(x, function(x), label=label, color=color, **kind)
    axes.set(**limits)


def _fit(axes: Axes, fit: Fit, color: str, name: str) -> None:
    """gamma exp(-delta n), with the interval of delta in the legend."""
    values = [fit.get(part) for part in ("gamma", "delta", "delta_low", "delta_high")]
    if any(value is None or not np.isfinite(value) for value in values):
        return
    gamma, delta, low, high = (float(value) for value in values if value is not None)
    label = rf"{name}: fit ${gamma:.2g}\,e^{{-{delta:.2g}\,n}}$, rate {low:.2g} to {high:.2g} (95 %)"
    _formula(axes, lambda n: gamma * np.exp(-delta * n), label, FIT, color)


def _mark_float64(axes: Axes) -> None:
    """Where rounding begins, if the axis reaches so far down."""
    bottom, resolution = axes.get_ylim()[0], 2.0**-52
    if bottom < resolution * 10:
        axes.axhline(resolution, color=GREY, linewidth=0.8)
        text = "float64 resolution, zeros below" if bottom <= ZERO else "float64 resolution"
        place = axes.get_yaxis_transform()
        axes.annotate(
            text, (0.01, resolution), xycoords=place, xytext=(0, 2), textcoords="offset points", fontsize=8, color=GREY
        )


def _key(label: str, look: Look | None = None, kind: Kind = MEDIAN) -> Line2D:
    """An entry of a legend: a series by its look, or a kind of line in grey."""
    return Line2D([], [], label=label, **_properties(look or Look(GREY, "o"), kind))


ERROR_KEYS = (_key("median over sources", kind=MEDIAN), _key("mean over sources", kind=MEAN))
SPREAD_KEY = Patch(color=GREY, alpha=0.25, linewidth=0, label="10 to 90 % of the sources")
CERTIFICATE_KEY = _key("certificate, median", kind=CERTIFICATE)


def _legend_below(axes: Axes, keys: Iterable[Artist], columns: int) -> None:
    axes.legend(handles=list(keys), loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=columns)


# ---------------------------------------------------------------------------------------------------------------------
# Errors over sources
# ---------------------------------------------------------------------------------------------------------------------


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
    _line(axes, errors["median"], look, MEDIAN)
    _line(axes, errors["mean"], look, MEAN)


def _spread(axes: Axes, rows: pd.DataFrame, x: str, look: Look) -> None:
    errors = _over_sources(rows, x, "error_mean")
    _band(axes, errors["low"], errors["high"], look)


def _certificate(axes: Axes, rows: pd.DataFrame, x: str, look: Look) -> None:
    _line(axes, _over_sources(rows, x, "certificate")["median"], look, CERTIFICATE)


def _by_side(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    return ((side, table[table["side"] == side]) for side in SIDES if (table["side"] == side).any())


def _seen_against(x: str, label: str, table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The rows at the shortest length (x is hidden) or the largest hidden (x is length), with that in the label."""
    _require_errors(table)
    if x == "hidden":
        length = table["length"].min()
        return f"{label}, $T$ = {length}", table[table["length"] == length]
    hidden = table["hidden"].max()
    return f"{label}, $n$ = {hidden}", table[table["hidden"] == hidden]


def _at_every_length(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the sources that were measured at every length."""
    lengths = table.groupby("source")["length"].nunique()
    table = table[table["source"].isin(lengths.index[lengths == table["length"].nunique()])]
    if table.empty:
        raise ValueError("no source was measured at every length")
    return table


def _count_sources(table: pd.DataFrame) -> str:
    count = table["source"].nunique()
    return f"{count} source{'s' if count > 1 else ''}"


def _require_errors(table: pd.DataFrame) -> None:
    _require(table, ERROR_COLUMNS)
    unknown = set(table["side"]) - set(SIDES)
    if unknown:
        raise ValueError(f"side={unknown.pop()!r}: must be one of {', '.join(SIDES)}")


def _require(table: pd.DataFrame, columns: frozenset[str]) -> None:
    missing = columns - set(table.columns)
    if missing:
        raise ValueError(f"the table lacks the columns {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    if table.empty:
        raise ValueError("the table has no rows")


# ---------------------------------------------------------------------------------------------------------------------
# Speed
# ---------------------------------------------------------------------------------------------------------------------

SPEED_TIMES = {f"{who}_s{bound}" for who in ("ours", "peer") for bound in ("", "_low", "_high")}
SPEED_COLUMNS = frozenset({"what", "size", "peer", "ratio"} | SPEED_TIMES)
IDEAL: Kind = {"marker": "|", "markersize": 17, "markeredgewidth": 2.5, "linestyle": ""}


@_styled
def speed(table: pd.DataFrame) -> Figure:
    """How much faster than its peers the package is: one panel for each `what`.

    Rows with a number of candidates: seconds against it, medians and their whole range, and beside each peer's the
    ratio to ours. Others: the ratio of each size and peer as a bar, and as a stroke the `ideal` one where it is given.

    Args:
        table: one row per (what, size, peer), with SPEED_COLUMNS, all times in seconds; the columns `candidates` and
            `ideal` may be missing or empty.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    _require(table, SPEED_COLUMNS)
    table = table.reindex(columns=[*dict.fromkeys([*table.columns, "candidates", "ideal"])])
    figure, panels = _panels(table["what"].nunique(), share_y=False)
    for axes, (what, rows) in zip(panels, table.groupby("what", sort=False), strict=True):
        draw = _seconds if rows["candidates"].notna().all() else _ratios
        draw(axes, rows)
        axes.set_title(str(what).replace("_", " "))
    return figure


def _seconds(axes: Axes, rows: pd.DataFrame) -> None:
    axes.set_yscale("log")
    _timed(axes, rows.drop_duplicates("candidates"), "ours", "ours_s", LOOKS[0])
    above, below = {"xytext": (-6, 5), "ha": "right"}, {"xytext": (6, -11)}  # where a rising line leaves room
    for look, (peer, theirs) in zip(itertools.cycle(LOOKS[1:]), rows.groupby("peer", sort=False), strict=False):
        _timed(axes, theirs, str(peer), "peer_s", look)
        place = above if look is LOOKS[1] else below
        for x, y, ratio in theirs[["candidates", "peer_s", "ratio"]].itertuples(index=False):
            axes.annotate(_times(ratio), (x, y), textcoords="offset points", fontsize=8, color=GREY, **place)
    axes.set(xlabel="candidates $n$", ylabel="seconds per problem")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.2)
    _legend_below(axes, axes.get_legend_handles_labels()[0], columns=3)


def _timed(axes: Axes, rows: pd.DataFrame, label: str, column: str, look: Look) -> None:
    x = rows["candidates"].astype(float)
    axes.vlines(x, rows[f"{column}_low"], rows[f"{column}_high"], color=look.color, linewidth=1)
    axes.plot(x, rows[column], label=label, **_properties(look, MEDIAN))


def _ratios(axes: Axes, rows: pd.DataFrame) -> None:
    axes.set_xscale("log")
    places = range(len(rows))
    axes.barh(places, rows["ratio"] - 1, left=1, color=LOOKS[0].color, height=0.4, label="measured")
    axes.plot(rows["ideal"].astype(float), places, label="ideal", **_properties(LOOKS[1], IDEAL))
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.use_sticky_edges = False
    axes.set_yticks(
        places,
        [
            f"{size}\n{_times(ratio)} as fast as {peer}"
            for size, ratio, peer in zip(rows["size"], rows["ratio"], rows["peer"], strict=True)
        ],
    )
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda ratio, _: _times(ratio))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("times as fast as the peer")
    _legend_below(axes, axes.get_legend_handles_labels()[0], columns=2)


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×"


# ---------------------------------------------------------------------------------------------------------------------
# The constant of Lemma 7
# ---------------------------------------------------------------------------------------------------------------------

CONSTANT_COLUMNS = frozenset({"d", "epsilon", "target", "n_prime", "verdict"})
TARGETS = {"uniform": "target entries uniform in $[-1, 1]$", "unit": "target entries $|w| = 1$"}
SUFFICES: Kind = {"linestyle": ""}
VERDICT_KEYS = (
    _key("smallest $n'$ shown to suffice", kind=SUFFICES),
    _key("largest $n'$ shown to fail", kind=POINTS),
)


@_styled
def constant(table: pd.DataFrame) -> Figure:
    """Candidates that an entry needs, against the logarithm of Lemma 7: a panel per kind of target, a look per width.

    Lines: C log(d^2/epsilon) with the least C that suffices in the whole panel, the least-squares line through the
    n' that suffice, and log2(d^2/epsilon), below which there are fewer sums than values to be told apart.

    Args:
        table: one row per (d, epsilon, target, n_prime), with CONSTANT_COLUMNS; `verdict` says "fails", "suffices" or
            "open" of an n_prime.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    _require(table, CONSTANT_COLUMNS)
    table = table.assign(log=np.log(table["d"] ** 2 / table["epsilon"]))
    looks = _assign_looks(sorted(table["d"].unique()))
    needed = 1 + table["n_prime"].where(table["verdict"] != "suffices", 0).max()
    figure, panels = _panels(table["target"].nunique())
    for axes, (target, rows) in zip(panels, table.groupby("target", sort=False), strict=True):
        for d, of_width in rows.groupby("d"):
            fails, suffices = _verdicts(of_width)
            axes.vlines(fails.index, fails, suffices.reindex(fails.index), color=looks[d].color, linewidth=1)
            _line(axes, fails, looks[d], POINTS)
            _line(axes, suffices, looks[d], SUFFICES)
        axes.set(xlabel=r"$\log(d^2/\epsilon)$", title=TARGETS.get(str(target), str(target)))
        axes.set(xlim=(0, 1.05 * table["log"].max()), ylim=(0, 1.25 * needed))  # room for the legend
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _constant_lines(axes, _verdicts(rows)[1])
        axes.legend(loc="upper left")
    panels[0].set_ylabel("candidates per entry $n'$")
    keys = [_key(f"$d$ = {d}", look, SUFFICES) for d, look in looks.items()]
    figure.legend(handles=[*VERDICT_KEYS, *keys], loc="outside lower center", ncols=3)
    return figure


def _verdicts(rows: pd.DataFrame) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """The largest n' that fails and the smallest that suffices, by the logarithm."""
    fails, suffices = (rows[rows["verdict"] == verdict].groupby("log")["n_prime"] for verdict in ("fails", "suffices"))
    return fails.max(), suffices.min()


def _constant_lines(axes: Axes, suffices: "pd.Series[float]") -> None:
    """Lines over the smallest n' that suffice, by the logarithm."""
    logs = suffices.index.to_numpy(float)
    if suffices.size:
        largest = float((suffices / logs).max())
        _formula(axes, lambda x: largest * x, rf"$n' = {largest:.2f}\,\log(d^2/\epsilon)$", MEDIAN)
    if suffices.size > 2:
        slope, intercept = np.polyfit(logs, suffices, 1)
        _formula(axes, lambda x: intercept + slope * x, rf"least squares: ${intercept:.1f} + {slope:.2f}\,\log$", FIT)
    _formula(axes, lambda x: x / np.log(2), r"$\log_2(d^2/\epsilon)$")


# ---------------------------------------------------------------------------------------------------------------------
# Hidden language models
# ---------------------------------------------------------------------------------------------------------------------

HIDDEN_COLUMNS = frozenset({"candidates", "block", "error", "certificate", "val_loss_target", "val_loss_ticket"})


@_styled
def error_against_block(table: pd.DataFrame) -> Figure:
    """Error and certificate after each block of a hidden language model, a line for each number of candidates.

    Args:
        table: one row per (candidates, block), with HIDDEN_COLUMNS; errors are norms, next to `norm` of the target's.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    _require(table, HIDDEN_COLUMNS)
    figure, (axes,) = _panels(1)
    axes.set_yscale("log")
    looks = _assign_looks(sorted(table["candidates"].unique()))
    for candidates, rows in table.groupby("candidates"):
        by_block = rows.set_index("block")
        _line(axes, by_block["error"], looks[candidates], MEDIAN)
        _line(axes, by_block["certificate"], looks[candidates], CERTIFICATE)
    _line(axes, table.groupby("block")["norm"].max(), Look(GREY, ""), FORMULA)
    axes.set(xlabel="after block", ylabel="largest error over tokens, $\\max_i \\|x_{S,i} - x_{T,i}\\|_2$")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    keys = [_key(f"{candidates} candidates", look) for candidates, look in looks.items()]
    kinds = [
        _key("error", kind=MEDIAN),
        _key("certificate", kind=CERTIFICATE),
        _key("norm of the target", kind=FORMULA),
    ]
    _legend_below(axes, [*keys, *kinds], 3)
    return figure


@_styled
def gap_against_candidates(table: pd.DataFrame) -> Figure:
    """Loss gap and disagreement of a hidden language model against candidates per entry.

    Args:
        table: as for :func:`error_against_block`, with `agreement` and `tokens` compared.

    Raises:
        ValueError: if the table has no rows or lacks a column.
    """
    _require(table, HIDDEN_COLUMNS | {"agreement"})
    rows = table.drop_duplicates("candidates").set_index("candidates").sort_index()
    figure, (left, right) = _panels(2, share_y=False)
    for axes, values, label in (
        (left, (rows["val_loss_ticket"] - rows["val_loss_target"]).abs(), "|loss of ticket - loss of target| (nat)"),
        (right, 1.0 - rows["agreement"], "share of next tokens that differ"),
    ):
        axes.set_yscale("log")
        floor = values[values > 0].min() / 3 if (values > 0).any() else ZERO
        _line(axes, values.clip(lower=floor), LOOKS[0], MEDIAN)
        axes.plot(values.index[values == 0], values[values == 0] + floor, **_properties(LOOKS[0], POINTS))
        axes.set(xlabel="candidates per entry", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_below(left, [_key("measured", LOOKS[0]), _key("exactly 0, drawn at the lower edge", LOOKS[0], POINTS)], 2)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Depth
# ---------------------------------------------------------------------------------------------------------------------

DEPTH_COLUMNS = frozenset(
    {"hidden", "depth", "length", "source", "error_mean", "error_max", "candidates_attention"}
    | {"certificate", "certificate_recursion"}
)
RESOLVED = 40  # candidates that a subset sum in float64 can still tell apart
RECURSION_KEY = _key("the paper's recursion, median where finite", kind=FORMULA)


@_styled
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
    _require(table, DEPTH_COLUMNS)
    length = table["length"].min()
    table = table[table["length"] == length]
    looks = _assign_looks(sorted(table["depth"].unique()))
    figure, (left, right) = _panels(2, share_y=False)
    for axes in (left, right):
        axes.set_yscale("log")
    for depth, look in looks.items():
        widths = table[table["depth"] == depth].groupby("hidden")
        _line(left, widths["error_mean"].mean(), look, POINTS, _depth_label(depth, (fits or {}).get(str(depth))))
        _line(right, widths["error_max"].median(), look, MEDIAN)
        _line(right, widths["certificate"].median(), look, CERTIFICATE)
    limits = right.get_ylim()
    for depth, look in looks.items():
        _line(right, table[table["depth"] == depth].groupby("hidden")["certificate_recursion"].median(), look, FORMULA)
    right.set_ylim(limits)
    for axes in (left, right):
        axes.set(xlim=(0, 1.35 * table["hidden"].max()), xlabel=X_LABELS["hidden"])
        _mark_unresolved(axes, table)
        _mark_float64(axes)
    for depth, look in looks.items():
        _fit(left, (fits or {}).get(str(depth), {}), look.color, "_")
    left.set(ylabel=ERROR_LABEL, title=f"mean over {_count_sources(table)} and fit, $T$ = {length}")
    right.set(ylabel="largest error over all inputs", title="largest error and certificates")
    _legend_below(left, left.get_legend_handles_labels()[0], columns=1)
    keys = [_key(_blocks(depth), look) for depth, look in looks.items()]
    _legend_below(right, [*keys, _key("median over sources"), CERTIFICATE_KEY, RECURSION_KEY], columns=2)
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
