"""Figures of several runs: seeds are aggregated, whatever else varies is a series."""

import numpy as np
import pandas as pd
import pytest
from figure_tables import (
    WIDTHS,
    ends_of,
    legend_of,
    lines_of,
    make_constant,
    make_hidden,
    make_mixing,
    make_pruning,
    make_qk_scale,
    make_speed,
    make_table,
)
from scipy import stats

from slth import plots


def series_of(axes):
    """Lines by what is said of them, without the number of seeds."""
    return {line.get_label().partition(" (")[0]: line for line in lines_of(axes) if line.get_label()[0] != "_"}


def said_of(figure):
    """What is said at line ends or in the legend."""
    said = [*ends_of(figure.axes[0]), *legend_of(figure)]
    return "\n".join(text.replace("\n", " ") for text in said)


def across(name, *configs, **given):
    """A figure of several runs with such configs, each with errors of its own."""
    runs = [(config, make_table(factor=1 + n, sources=3, **given)) for n, config in enumerate(configs)]
    return plots.across_runs(runs)[name]


# what is drawn of runs: figure, (config, table)s, and by the panel's place and the series the x and y of its line
SEVERAL = {
    "approx_error": (
        "error_vs_width",
        [({"seed": seed, "keep": keep}, make_table(factor=keep + seed)) for keep in (1.0, 10.0) for seed in (0, 1)],
        {
            (panel, f"keep={keep:g}"): (WIDTHS, (keep + 0.5) * 5.5 * 2.0 ** (-np.array(WIDTHS) / 2) + 0.02)
            for keep in (1.0, 10.0)
            for panel in (0, 1)
        },
    ),
    "gpt2_prune": (
        "loss",
        [
            ({"seed": seed, "method": method}, make_pruning(level + seed))
            for method, level in (("edge_popup", 1.0), ("biprop", 5.0))
            for seed in (0, 1, 2)
        ],
        {
            (panel, f"method={method}"): ((10, 20), (level + 2.0, level + 3.0))
            for method, level in (("edge_popup", 1.0), ("biprop", 5.0))
            for panel in (0, 1)
        },
    ),
    "qk_scale": (
        "loss_vs_qk_scale",
        [({"seed": seed, "seeds": 2}, make_qk_scale(seed)) for seed in (0, 2)],
        {(0, f"base_std={std:g}"): ((1.0, 2.0), (std + 2.5, std + 3.5)) for std in (0.02, 0.1)},
    ),
    "hidden_lm": (
        "error_vs_block",
        [({"seed": seed}, make_hidden((8, 16), 2).assign(error=float(seed))) for seed in (1, 3)],
        {(0, f"candidates={n}"): ((1, 2), (2.0, 2.0)) for n in (8, 16)},
    ),
    "constant": (
        "constant",
        [({"seed": seed, "effort": 10}, make_constant(10 + seed)) for seed in (0, 1)],
        {(0, "mean of 2 seeds"): (np.log([40 / 3, 40]), (10.5, 10.5))},
    ),
    "mixing": (
        "loss_vs_keep",
        [({"seed": seed}, make_mixing(seed)) for seed in (0, 2)],
        {(0, f"variant={name}"): ((0.3, 0.5), (1.8, 2.0)) for name in ("mha", "mea")},
    ),
    "speed": (
        "speed",
        [({"seed": seed}, make_speed(1.0 + seed)) for seed in (0, 1)],
        {(0, "size=small"): ((1.5,), (0,)), (0, "size=large"): ((3.0,), (1,))},
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_runs_that_differ_in_their_seed_are_one_line_and_all_else_is_a_series(kind):
    name, runs, expected = SEVERAL[kind]
    figure = plots.across_runs(runs)[name]
    assert len(figure.axes) == 1 + max(panel for panel, _ in expected)
    for (panel, series), (x, y) in expected.items():
        line = series_of(figure.axes[panel])[series]
        assert line.get_xdata() == pytest.approx(x)
        assert line.get_ydata() == pytest.approx(y)
    for panel, axes in enumerate(figure.axes):
        assert {(panel, series) for series in series_of(axes)} == {key for key in expected if key[0] == panel}


def test_the_interval_is_students_over_seeds():
    runs = [({"seed": seed}, make_pruning(level)) for seed, level in enumerate((1.0, 2.0, 6.0))]
    figure = plots.across_runs(runs)["loss"]
    low, high = stats.t.interval(0.95, 2, 4.0, stats.sem([2.0, 3.0, 7.0]))
    (band,) = figure.axes[0].collections
    y = band.get_paths()[0].vertices[band.get_paths()[0].vertices[:, 0] == 10, 1]
    assert (y.min(), y.max()) == pytest.approx((low, high))
    assert said_of(figure) == "mean of 3 seeds\nband: 95 % interval (Student)"


def test_the_median_comes_with_the_middle_half_of_the_seeds():
    runs = [({"seed": seed}, make_pruning(level)) for seed, level in enumerate((1.0, 2.0, 6.0))]
    figure = plots.across_runs(runs, center="median")["loss"]
    (line,) = series_of(figure.axes[0]).values()
    (band,) = figure.axes[0].collections
    y = band.get_paths()[0].vertices[band.get_paths()[0].vertices[:, 0] == 10, 1]
    assert line.get_ydata().tolist() == [3.0, 4.0]
    assert (y.min(), y.max()) == (2.5, 5.0)
    assert said_of(figure) == "median of 3 seeds\nband: middle half of the seeds"
    with pytest.raises(ValueError, match="center='mode': must be one of mean, median"):
        plots.across_runs(runs, center="mode")


def test_learned_masks_are_called_by_the_method_of_the_runs():
    tables = [make_table(sides=("free",)) for _ in range(2)]
    for methods, title in ((("biprop", "biprop"), "biprop"), (("biprop", "iterand"), "learned masks")):
        runs = [
            ({"seed": 0, "keep": n, "method": {"name": m}}, t)
            for n, (m, t) in enumerate(zip(methods, tables, strict=True))
        ]
        assert plots.across_runs(runs)["error_vs_width"].axes[0].get_title() == title


def test_how_many_seeds_there_are_is_said():
    runs = [({"seed": s, "keep": k}, make_pruning(1.0 + s)) for k, seeds in ((0.3, 3), (0.5, 1)) for s in range(seeds)]
    said = "keep=0.3 (mean of 3 seeds)\nkeep=0.5 (1 seed)\nband: 95 % interval (Student)"
    assert said_of(plots.across_runs(runs)["loss"]) == said
    apart = plots.across_runs([run for run in runs if run[0]["seed"] == 0])["loss"]
    assert "no interval" in apart.get_suptitle()
    assert not any(len(path.vertices) for band in apart.axes[0].collections for path in band.get_paths())


def test_a_value_on_the_axis_or_in_a_column_names_no_series():
    grid = [({"seed": 0, "hidden": [n]}, make_table(widths=(n,))) for n in (4, 8)]
    line = series_of(plots.across_runs(grid)["error_vs_width"].axes[0])["1 seed"]
    assert line.get_xdata().tolist() == [4, 8]
    lengths = [({"seed": 0, "lengths": n}, make_table(lengths=(n,))) for n in (4, 8)]
    assert said_of(plots.across_runs(lengths)["error_vs_width"]) == "length=4 (1 seed)\nlength=8 (1 seed)"


def test_the_same_seed_in_two_runs_counts_once():
    curves = [({"seed": 0, "hidden": n}, make_table(widths=range(2, n + 1, 2))) for n in (4, 8)]
    assert said_of(plots.across_runs(curves)["error_vs_width"]) == "1 seed"


ALL, TWO = "hidden=[4,8,12,16]", "hidden=[4,12]"


@pytest.mark.parametrize(
    ("given", "series"),
    [  # of each run: its seed, widths and sides; the series, and their widths in the panels
        ([(0, (4, 8, 12, 16), 2), (5, (4, 12), 1)], {f"seed=0, {ALL}": (4, 4), f"seed=5, {TWO}": (0, 2)}),
        ([(0, (4, 8), 2), (1, (4, 8), 1)], {"mean of 1 to 2 seeds": (2, 2)}),
        ([(0, (4, 8), 2), (1, (4,), 2), (1, (8,), 2)], {"mean of 2 seeds": (2, 2)}),
        (
            [(0, (4, 12), 2), (1, (4,), 2), (2, (4, 12), 2), (3, (12,), 2)],
            {f"seed=0,2, {TWO}": (2, 2), "seed=1, hidden=[4]": (1, 1), "seed=3, hidden=[12]": (1, 1)},
        ),
        (
            [(s, range(1, 10 + s), 2) for s in (0, 1)],
            {f"seed={s}, hidden=[1,2,...,{9 + s}]": (9 + s,) * 2 for s in (0, 1)},
        ),
    ],
    ids=["both", "sides", "in two runs", "failed", "long"],
)
def test_a_line_joins_means_over_the_same_seeds_alone(given, series):
    runs = [
        ({"seed": seed, "hidden": list(widths), "side": sides}, make_table(widths, sides=("input", "output")[-sides:]))
        for seed, widths, sides in given
    ]
    figure = plots.across_runs(runs)["error_vs_width"]
    drawn = [{name: len(line.get_xdata()) for name, line in series_of(axes).items()} for axes in figure.axes]
    assert drawn == [{name: n[panel] for name, n in series.items() if n[panel]} for panel in (0, 1)]


def test_the_interval_at_a_single_width_is_a_bar_with_caps():
    runs = [({"seed": s, "keep": k}, make_table(w, factor=k + s)) for k, w in ((1, (4,)), (9, (4, 8))) for s in (0, 1)]
    figure = plots.across_runs(runs)["error_vs_width"]
    assert said_of(figure).splitlines()[2:] == [f"{mark}: 95 % interval (Student)" for mark in ("band", "bar")]
    caps = [line for line in figure.axes[0].get_lines() if line.get_marker() == "_"]
    assert [line.get_xdata().tolist() for line in caps] == [[4], [4]]


@pytest.mark.parametrize("log", [False, True])
def test_an_interval_of_two_seeds_does_not_press_the_means_flat(log):
    if log:
        figure = plots.across_runs([({"seed": s}, make_table(factor=10.0**s)) for s in (0, 1)])["error_vs_width"]
    else:
        figure = plots.across_runs([({"seed": s}, make_pruning(1.0 + s)) for s in (0, 1)])["loss"]
    (line,) = series_of(figure.axes[0]).values()
    y, limits = (np.log10(v) if log else np.array(v) for v in (line.get_ydata(), figure.axes[0].get_ylim()))
    assert np.ptp(y) > np.ptp(limits) / 7
    assert figure.get_suptitle().endswith("are cut off")


def test_tables_of_one_kind_are_drawn_together_and_single_ones_not():
    runs = [({"seed": 0}, make_pruning(1.0)), ({"seed": 1}, make_pruning(1.0)), ({"seed": 0}, make_table())]
    assert list(plots.across_runs(runs)) == ["loss"]
    assert plots.across_runs([({"seed": 0}, pd.DataFrame({"a": [1]}))] * 2) == {}


def test_many_series_are_apart_without_colour():
    figure = across("error_vs_width", *({"keep": i / 20, "seed": 0} for i in range(1, 17)))
    lines = series_of(figure.axes[0]).values()
    assert len({(str(line._dash_pattern), line.get_marker()) for line in lines}) == 16
    assert len(said_of(figure).splitlines()) == 16
