"""The figures: what they show of a table, what they leave out, and that they can be read."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from helpers import EXPERIMENTS
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from scipy import stats

from slth import plots
from slth.disk import write_all
from slth.experiments import lab, plot
from slth.experiments.lab import storage
from slth.plots.errors import _over_sources

FITS = {
    "input": {"gamma": 0.39, "delta": 0.11, "delta_low": 0.093, "delta_high": 0.127},
    "output": {"gamma": 0.35, "delta": 0.2, "delta_low": 0.18, "delta_high": 0.23},
}
WIDTHS = (2, 8, 20, 40, 80)


def make_table(widths=WIDTHS, lengths=(4,), sources=10, d_in=2, sides=("input", "output"), factor=1.0) -> pd.DataFrame:
    """Errors that fall as 2^(-n/d_in), with a few sources out of reach."""
    index = pd.MultiIndex.from_product(
        [widths, lengths, range(sources), sides], names=["hidden", "length", "source", "side"]
    )
    table = index.to_frame(index=False).assign(d_in=d_in)
    error = factor * 2.0 ** (-table["hidden"] / d_in) * (1 + table["source"]) + 0.2 * (table["source"] == 7)
    return table.assign(error_mean=error, certificate=3 * error)


def make_hidden(candidates=(8, 16, 24), blocks=4) -> pd.DataFrame:
    """A language model's ticket whose error halves with each candidate and doubles with each block."""
    table = pd.MultiIndex.from_product([candidates, range(1, blocks + 1)], names=["candidates", "block"])
    table = table.to_frame(index=False)
    error = 2.0 ** (table["block"] - table["candidates"])
    gap = 0.1 * 2.0 ** -table["candidates"]
    table = table.assign(error=error, certificate=40 * error, norm=8.0 + table["block"])
    return table.assign(val_loss_target=1.5, val_loss_ticket=1.5 + gap, agreement=1 - gap)


def across(name, *configs, **given):
    """A figure of several runs with such configs, each with errors of its own."""
    runs = [(config, make_table(factor=1 + n, sources=3, **given)) for n, config in enumerate(configs)]
    return plots.across_runs(runs)[name]


def texts(figure) -> str:
    """Everything that is written in the legends."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return "\n".join(text.get_text() for legend in legends for text in legend.get_texts())


def all_figures():
    lengths = (8, 64, 512)
    return {
        "width": plots.error_against_width(make_table(), FITS),
        "one width": plots.error_against_width(make_table(widths=(1024,), d_in=64, sources=3)),
        "one source": plots.error_against_width(make_table(widths=(8,), sources=1)),
        "many widths": plots.error_against_length(make_table(widths=range(2, 20, 2), lengths=lengths)),
        "many series": across("error_vs_width", *({"keep": i / 20, "lr": 0.03, "seed": 0} for i in range(1, 17))),
        "long names": across("error_vs_width", *({"seed": 0, "target_" * 30: i} for i in range(3))),
        "points": across("error_vs_width", *({"seed": i % 3, "keep": i // 3} for i in range(9)), widths=(8,)),
        "block": plots.error_against_block(make_hidden(range(8, 26, 2))),
        "one block": plots.error_against_block(make_hidden((24,), blocks=1).assign(error=0.0)),
        "gap": plots.gap_against_candidates(make_hidden()),
        "no gap": plots.gap_against_candidates(make_hidden((20, 24)).assign(val_loss_ticket=1.5, agreement=1.0)),
    }


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize("side", plots.SIDES)
def test_lines_hold_median_mean_and_certificate(side):
    table = make_table(sides=plots.SIDES)
    rows = table[table["side"] == side].groupby("hidden")
    log = plots.error_against_width(table).axes[1]
    for kind, wanted in (
        (plots.MEDIAN, rows["error_mean"].median()),
        (plots.MEAN, rows["error_mean"].mean()),
        (plots.CERTIFICATE, rows["certificate"].median()),
    ):
        drawn = [line for line in log.get_lines() if line.get_color() == plots.SIDES[side].color]
        assert any(
            np.array_equal(line.get_xdata(), WIDTHS)
            and np.array_equal(line.get_ydata(), wanted)
            and line.get_linestyle() == ("-" if kind is plots.MEDIAN else "--")
            for line in drawn
        )


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30))
@settings(max_examples=30)
def test_statistics_over_sources(errors):
    table = pd.DataFrame({"hidden": 4, "error_mean": errors})
    found = _over_sources(table, "hidden", "error_mean").loc[4]
    assert found["low"] <= found["median"] <= found["high"]
    assert found["mean"] == pytest.approx(np.mean(errors))
    assert found["std"] == pytest.approx(np.std(errors, ddof=1) if len(errors) > 1 else 0.0, abs=1e-6)


def test_fits_stand_in_the_legend_with_their_interval():
    text = texts(plots.error_against_width(make_table(), FITS))
    assert r"side=input: fit $0.39\,e^{-0.11\,n}$, rate 0.093 to 0.13 (95 %)" in text
    assert r"side=output: fit $0.35\,e^{-0.2\,n}$" in text


@pytest.mark.parametrize("missing", [None, np.nan, np.inf])
def test_a_fit_without_a_value_is_left_out(missing):
    text = texts(plots.error_against_width(make_table(), {"input": FITS["input"] | {"delta_high": missing}}))
    assert "fit $0.39" not in text
    assert "mean ± standard deviation" in text


def test_the_curve_of_the_paper_stands_where_its_dimension_does():
    assert "the paper's fit" in texts(plots.error_against_width(make_table(d_in=2)))
    assert "the paper's fit" not in texts(plots.error_against_width(make_table(d_in=4)))
    assert "$2^{-n/4}$" in texts(plots.error_against_width(make_table(d_in=4)))


def test_a_learned_mask_is_called_edge_popup_and_stands_beside_the_construction():
    table = make_table(sides=plots.SIDES, lengths=(4, 8))
    legends = [axes.get_legend() for axes in plots.error_against_width(table, FITS).axes]
    named = [[text.get_text().partition(":")[0] for text in legend.get_texts()] for legend in legends]
    assert named[0][:3] == named[1][:3] == ["construction, side=input", "construction, side=output", "edge-popup"]
    assert len({handle.get_marker() for handle in legends[1].legend_handles[:3]}) == 3
    titles = [axes.get_title() for axes in plots.error_against_length(table).axes]
    assert titles[2] == "edge-popup, the same 10 sources at every length"


def test_the_width_is_shown_at_the_shortest_length():
    longer = make_table(lengths=(64,), factor=100.0)
    figure = plots.error_against_width(pd.concat([longer, make_table(lengths=(4,))]))
    assert "$T$ = 4" in figure.axes[1].get_title()
    assert figure.axes[1].get_ylim()[1] < 100


def test_lengths_speak_of_the_same_sources():
    table = make_table(widths=(20,), lengths=(8, 16))
    strays = make_table(widths=(20,), lengths=(8,), factor=1e6).assign(source=lambda t: t["source"] + 10)
    figure = plots.error_against_length(pd.concat([table, strays]))
    assert figure.axes[0].get_title() == "side=input, the same 10 sources at every length"
    assert figure.axes[0].get_ylim()[1] < 100
    apart = pd.concat([make_table(lengths=(8,)), make_table(lengths=(16,)).assign(source=lambda t: t["source"] + 10)])
    with pytest.raises(ValueError, match="no source was measured at every length"):
        plots.error_against_length(apart)


def test_a_hidden_model_shows_error_certificate_and_norm_by_block():
    table = make_hidden((24, 8)).iloc[::-1]
    (axes,) = plots.error_against_block(table).axes
    drawn = {tuple(line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata()) == 4}
    for _, rows in table.sort_values("block").groupby("candidates"):
        assert {tuple(rows["error"]), tuple(rows["certificate"]), tuple(rows["norm"])} <= drawn


def test_many_candidates_all_look_different():
    table = make_hidden(range(8, 26, 2))
    (axes,) = plots.error_against_block(table).axes
    lines = {line.get_ydata()[0]: line for line in axes.get_lines()}
    of_errors = [lines[error] for error in table.loc[table["block"] == 1, "error"]]
    assert len({line.get_marker() for line in of_errors}) == 9
    greys = [np.dot(to_rgb(line.get_color()), (0.299, 0.587, 0.114)) for line in of_errors]
    assert min(np.diff(greys)) > 0.03


def test_gaps_of_zero_are_hollow_points_below_the_others():
    table = make_hidden()
    table.loc[table["candidates"] == 24, ["val_loss_ticket", "agreement"]] = 1.5, 1.0
    gaps = 0.1 * 2.0 ** -np.array([8.0, 16.0])
    for axes in plots.gap_against_candidates(table).axes:
        measured, zeros = axes.get_lines()
        assert axes.get_yscale() == "log"
        assert measured.get_ydata()[:2] == pytest.approx(gaps, rel=1e-6)
        assert zeros.get_xdata().tolist() == [24]
        assert 0 < axes.get_ylim()[0] < zeros.get_ydata()[0] < gaps[1]
        assert zeros.get_markerfacecolor() == "white"
    for axes in plots.gap_against_candidates(table[table["candidates"] == 24]).axes:
        assert axes.get_lines()[1].get_data() == ([24], [0])
        assert axes.get_ylim()[0] < 0 < axes.get_ylim()[1]


def test_blocks_are_counted_in_whole_numbers():
    (axes,) = plots.error_against_block(make_hidden(blocks=1)).axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_a_loss_below_the_targets_is_a_gap_too():
    table = make_hidden().assign(val_loss_ticket=1.25)
    assert plots.gap_against_candidates(table).axes[0].get_lines()[0].get_ydata().tolist() == [0.25] * 3


@pytest.mark.parametrize("draw", [plots.error_against_block, plots.gap_against_candidates])
def test_a_hidden_model_that_cannot_be_drawn_is_refused(draw):
    with pytest.raises(ValueError, match="lacks the columns agreement, norm; it has candidates, block"):
        draw(make_hidden().drop(columns=["norm", "agreement"]))
    with pytest.raises(ValueError, match="no rows"):
        draw(make_hidden()[:0])


def test_a_table_gets_the_figures_it_has_columns_and_rows_for():
    assert set(plots.figures(make_table())) == {"error_vs_width"}
    assert set(plots.figures(make_table(lengths=(4, 8)))) == {"error_vs_width", "error_vs_length"}
    assert set(plots.figures(make_table(widths=(20,), lengths=(4, 8)))) == {"error_vs_length"}
    assert set(plots.figures(make_hidden((24,)))) == {"error_vs_block"}
    assert set(plots.figures(make_hidden())) == {"error_vs_block", "gap_vs_candidates"}
    assert plots.figures(pd.DataFrame({"what": ["subset sum"], "ratio": [3.0]})) == {}


# ---------------------------------------------------------------- several runs


def make_pruning(level):
    """The losses of a dense network and a ticket, with the steps of a pilot that are not shown."""
    table = pd.MultiIndex.from_product(
        [("dense", "ticket"), ("grid", "full"), (10, 20)], names=["run", "stage", "step"]
    )
    table = table.to_frame(index=False).assign(size="tiny", qk_scale=1.0, nonzero=1000)
    return table.assign(val_loss=level + table["step"] / 10 + (table["stage"] == "grid") * 100)


def make_qk_scale(first):
    table = pd.MultiIndex.from_product([(0.02, 0.1), (1.0, 2.0), (first, first + 1)])
    table = table.set_names(["base_std", "qk_scale", "seed"]).to_frame(index=False)
    loss = table["base_std"] + table["qk_scale"] + table["seed"]
    return table.assign(run="ticket", val_loss=loss, logit_std_at_init=1.0, theory_scale=2.0)


def make_constant(n_prime):
    table = pd.DataFrame({"d": 2, "epsilon": [0.1, 0.3], "target": "unit", "n_prime": n_prime, "verdict": "suffices"})
    return pd.concat([table, table.assign(n_prime=1, verdict="fails"), table.assign(n_prime=99)])


def make_mixing(first):
    table = pd.MultiIndex.from_product([("mha", "mea"), (0.3, 0.5), (first, first + 1)])
    table = table.set_names(["variant", "keep", "seed"]).to_frame(index=False).assign(what="loss", hidden=8, length=64)
    table = table.assign(val_loss=table["keep"] + table["seed"], val_loss_dense=1.0, below_bigram=0.1, conclusive=True)
    return table.assign(difference=table["seed"], difference_low=-1.0, difference_high=1.0)


def make_speed(ratio):
    rows = {"what": "masks", "size": ["small", "large"], "peer": "topk", "ratio": [ratio, 2 * ratio]}
    times = [f"{who}_s{bound}" for who in ("ours", "peer") for bound in ("", "_low", "_high")]
    return pd.DataFrame(rows | dict.fromkeys(times, 1.0))


def lines_of(axes):
    return {line.get_label().partition(" (")[0]: line for line in axes.get_lines() if line.get_label()[0] != "_"}


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
        line = lines_of(figure.axes[panel])[series]
        assert line.get_xdata() == pytest.approx(x)
        assert line.get_ydata() == pytest.approx(y)
    for panel, axes in enumerate(figure.axes):
        assert {(panel, series) for series in lines_of(axes)} == {key for key in expected if key[0] == panel}


def test_the_interval_is_students_over_seeds():
    runs = [({"seed": seed}, make_pruning(level)) for seed, level in enumerate((1.0, 2.0, 6.0))]
    figure = plots.across_runs(runs)["loss"]
    low, high = stats.t.interval(0.95, 2, 4.0, stats.sem([2.0, 3.0, 7.0]))
    (band,) = figure.axes[0].collections
    y = band.get_paths()[0].vertices[band.get_paths()[0].vertices[:, 0] == 10, 1]
    assert (y.min(), y.max()) == pytest.approx((low, high))
    assert texts(figure) == "mean of 3 seeds\nband: 95 % interval (Student)"


def test_how_many_seeds_there_are_is_said():
    runs = [({"seed": s, "keep": k}, make_pruning(1.0 + s)) for k, seeds in ((0.3, 3), (0.5, 1)) for s in range(seeds)]
    said = "keep=0.3 (mean of 3 seeds)\nkeep=0.5 (1 seed)\nband: 95 % interval (Student)"
    assert texts(plots.across_runs(runs)["loss"]) == said
    apart = plots.across_runs([run for run in runs if run[0]["seed"] == 0])["loss"]
    assert "no interval" in apart.get_suptitle()
    assert not any(len(path.vertices) for band in apart.axes[0].collections for path in band.get_paths())


def test_a_value_on_the_axis_or_in_a_column_names_no_series():
    grid = [({"seed": 0, "hidden": [n]}, make_table(widths=(n,))) for n in (4, 8)]
    line = lines_of(plots.across_runs(grid)["error_vs_width"].axes[0])["1 seed"]
    assert line.get_xdata().tolist() == [4, 8]
    lengths = [({"seed": 0, "lengths": n}, make_table(lengths=(n,))) for n in (4, 8)]
    assert texts(plots.across_runs(lengths)["error_vs_width"]) == "length=4 (1 seed)\nlength=8 (1 seed)"


def test_the_same_seed_in_two_runs_counts_once():
    curves = [({"seed": 0, "hidden": n}, make_table(widths=range(2, n + 1, 2))) for n in (4, 8)]
    assert texts(plots.across_runs(curves)["error_vs_width"]) == "1 seed"


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
    drawn = [{name: len(line.get_xdata()) for name, line in lines_of(axes).items()} for axes in figure.axes]
    assert drawn == [{name: n[panel] for name, n in series.items() if n[panel]} for panel in (0, 1)]


def test_the_interval_at_a_single_width_is_a_bar_with_caps():
    runs = [({"seed": s, "keep": k}, make_table(w, factor=k + s)) for k, w in ((1, (4,)), (9, (4, 8))) for s in (0, 1)]
    figure = plots.across_runs(runs)["error_vs_width"]
    assert texts(figure).splitlines()[2:] == [f"{mark}: 95 % interval (Student)" for mark in ("band", "bar")]
    caps = [line for line in figure.axes[0].get_lines() if line.get_marker() == "_"]
    assert [line.get_xdata().tolist() for line in caps] == [[4], [4]]


@pytest.mark.parametrize("log", [False, True])
def test_an_interval_of_two_seeds_does_not_press_the_means_flat(log):
    if log:
        figure = plots.across_runs([({"seed": s}, make_table(factor=10.0**s)) for s in (0, 1)])["error_vs_width"]
    else:
        figure = plots.across_runs([({"seed": s}, make_pruning(1.0 + s)) for s in (0, 1)])["loss"]
    (line,) = lines_of(figure.axes[0]).values()
    y, limits = (np.log10(v) if log else np.array(v) for v in (line.get_ydata(), figure.axes[0].get_ylim()))
    assert np.ptp(y) > np.ptp(limits) / 7
    assert figure.get_suptitle().endswith("are cut off")


def test_tables_of_one_kind_are_drawn_together_and_single_ones_not():
    runs = [({"seed": 0}, make_pruning(1.0)), ({"seed": 1}, make_pruning(1.0)), ({"seed": 0}, make_table())]
    assert list(plots.across_runs(runs)) == ["loss"]
    assert plots.across_runs([({"seed": 0}, pd.DataFrame({"a": [1]}))] * 2) == {}


def test_many_series_are_apart_without_colour():
    figure = all_figures()["many series"]
    lines = lines_of(figure.axes[0]).values()
    assert len({(str(line._dash_pattern), line.get_marker()) for line in lines}) == 16
    assert len(texts(figure).splitlines()) == 16


# ---------------------------------------------------------------- that it can be read


@pytest.fixture(scope="module")
def drawn():
    """Every kind of figure, drawn; warnings are errors."""
    figures = all_figures()
    for figure in figures.values():
        FigureCanvasAgg(figure).draw()
    return figures


def test_nothing_is_cut_off(drawn):
    for name, figure in drawn.items():
        inside, page = figure.get_tightbbox(), figure.bbox_inches
        assert inside.x0 >= page.x0 - 0.02, name
        assert inside.y0 >= page.y0 - 0.02, name
        assert inside.x1 <= page.x1 + 0.02, name
        assert inside.y1 <= page.y1 + 0.02, name


def test_axes_are_labelled(drawn):
    for name, figure in drawn.items():
        wanted = "loss of ticket" if "gap" in name else "approximation error"
        assert wanted in figure.axes[0].get_ylabel() + figure.axes[-1].get_xlabel(), name
        assert all(axes.get_title() for axes in figure.axes), name
        assert all(axes.get_xlabel() for axes in figure.axes) or name == "points", name
        assert texts(figure) or name == "points", name


def test_a_picture_is_small():
    table = pd.concat([make_table(widths=range(2, 102, 2), factor=factor) for factor in (1.0, 10.0)])
    assert len(lab.render({"width": plots.error_against_width(table, FITS)})["width.png"]) < 150_000


def test_a_single_width_is_a_point_inside_the_axes():
    for axes in plots.error_against_width(make_table(widths=(16,))).axes:
        points = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
        assert points
        for point in points:
            assert point.get_marker() not in ("", "None", None)
            (x,), (y,) = point.get_data()
            assert axes.get_xlim()[0] <= x <= axes.get_xlim()[1]
            assert axes.get_ylim()[0] <= y <= axes.get_ylim()[1]


def test_zeros_and_infinities_do_not_spoil_a_logarithmic_axis():
    table = make_table()
    table.loc[table["hidden"] == 80, "error_mean"] = 0.0
    table.loc[table["hidden"] == 2, ["error_mean", "certificate"]] = np.inf
    table.loc[table["source"] == 3, "certificate"] = np.inf
    figure = plots.error_against_width(table)
    FigureCanvasAgg(figure).draw()
    bottom, top = figure.axes[1].get_ylim()
    assert 0 < bottom <= plots.ZERO
    assert top < 100
    assert any("zeros below" in text.get_text() for text in figure.axes[1].texts)


def test_series_differ_in_more_than_colour():
    for first, second in zip(plots.LOOKS, plots.LOOKS[1:], strict=False):
        grey = [np.dot(to_rgb(look.color), (0.299, 0.587, 0.114)) for look in (first, second)]
        assert abs(grey[0] - grey[1]) > 0.15
    assert len({look.marker for look in plots.LOOKS}) == len(plots.LOOKS)


def test_the_settings_of_the_caller_stay():
    before = dict(matplotlib.rcParams)
    plots.error_against_width(make_table())
    assert dict(matplotlib.rcParams) == before


def test_neither_pyplot_nor_torch_is_loaded():
    code = "import sys; from slth import plots; sys.exit(str({'torch', 'matplotlib.pyplot'} & {*sys.modules} or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (make_table().drop(columns=["d_in", "side"]), "lacks the columns d_in, side; it has hidden, length"),
        (make_table()[:0], "no rows"),
        (make_table().assign(side="left"), "side='left': must be one of input, output, free"),
    ],
)
@pytest.mark.parametrize("draw", [plots.error_against_width, plots.error_against_length])
def test_a_table_that_cannot_be_drawn_is_refused(draw, table, complaint):
    with pytest.raises(ValueError, match=complaint):
        draw(table)


# ---------------------------------------------------------------- experiments/plot.py


def store(folder: Path, table: pd.DataFrame, **config) -> Path:
    folder.mkdir(parents=True)
    parts = {"summary.json": {"fits": FITS}, "config.json": config, "run.json": {"status": "COMPLETED"}}
    files = {name: json.dumps(part).encode() for name, part in parts.items()}
    write_all(folder, {"results.csv": storage._csv(table), **files})
    return folder


def test_one_run_is_redrawn_in_its_own_folder(tmp_path):
    table = make_table()
    run = store(tmp_path / "runs" / "3", table)
    command = [sys.executable, str(EXPERIMENTS / "plot.py"), "with", "runs=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "figure: runs/3/error_vs_width.png\n"
    wanted = lab.render(plots.figures(table, FITS))
    assert {path.name: path.read_bytes() for path in run.glob("error*")} == wanted
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["3"]


@pytest.fixture
def no_rendering(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "render", lambda figures: {f"{name}.png": b"" for name in figures})


@pytest.mark.usefixtures("no_rendering")
def test_several_runs_are_laid_over_each_other(capsys):
    store(Path("runs/3"), make_table(lengths=(4, 8)), target_norm=None)
    store(Path("runs/5"), make_table(factor=3.0), target_norm=3.0)
    plot.plot(plot.Config(runs="[runs/3,runs/5]"), None)
    own = ["3_error_vs_width", "3_error_vs_length", "5_error_vs_width"]
    names = ["overlay_error_vs_width", "overlay_error_vs_length", *own]
    (out,) = Path("runs/plots").iterdir()
    assert capsys.readouterr().out.splitlines() == [f"figure: {out}/{name}.png" for name in names]
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in names}


@pytest.mark.usefixtures("no_rendering")
def test_runs_that_no_figure_joins_are_drawn_one_by_one_and_a_line_says_so(capsys):
    store(Path("runs/3"), make_table())
    store(Path("runs/5"), make_pruning(1.0))
    plot.plot(plot.Config(runs=[3, 5], out="out"), None)
    said = "no overlay: no two of the 2 runs have tables that there is one figure for"
    names = ["3_error_vs_width", "5_loss"]
    assert capsys.readouterr().out.splitlines() == [said, *(f"figure: out/{name}.png" for name in names)]


@pytest.mark.usefixtures("no_rendering")
@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"runs": 3, "out": None}, "runs=3: must be runs with a table that there is a figure for"),
        ({"runs": 3, "out": 4}, "out=4: must be a folder"),
        ({"runs": 3, "out": "runs/3/results.csv"}, "out=runs/3/results.csv: cannot write there"),
        ({"runs": 4, "out": None}, "runs='runs/4': must be a run's folder; its results.csv cannot be read"),
    ],
)
def test_what_cannot_be_drawn_is_refused(config, line):
    store(Path("runs/3"), pd.DataFrame({"a": [1]}))
    with pytest.raises(lab.Refused) as error:
        plot.plot(plot.Config(**config), None)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("given_runs", "folders"),
    [
        ("runs/3", ["runs/3"]),
        (3, ["runs/3"]),
        ("[runs/3, other/5]", ["runs/3", "other/5"]),
        ([3, "5", "other/5"], ["runs/3", "runs/5", "other/5"]),
    ],
)
def test_runs_are_named_by_folder_or_number(given_runs, folders):
    assert [str(folder) for folder in plot.places(given_runs)] == folders


@pytest.mark.parametrize(
    "given_runs", [None, [], "", "[]", True, 1.5, [3, 3], [3, "runs/3"], ["runs/3", "runs/../runs/3"]]
)
def test_runs_that_name_nothing_are_refused(given_runs):
    with pytest.raises(lab.BadConfig, match=r"^runs="):
        plot.places(given_runs)


def test_runs_by_number_or_id_lie_in_the_folder_that_is_named(tmp_path, monkeypatch):
    (tmp_path / "tried").mkdir()
    assert plot.places([3, "tried", "other/5"], tmp_path) == [tmp_path / "3", tmp_path / "tried", Path("other/5")]
    missing = r"/3': must be a run's folder; .*no such folder.; -F DIR, or folder=DIR, says where runs lie"
    with pytest.raises(lab.BadConfig, match=missing):
        plot.Config(runs=3, folder=str(tmp_path))
    monkeypatch.setattr(plot, "named_folder", [])
    plot.note_folder({"--file_storage": "elsewhere"})
    with pytest.raises(lab.BadConfig, match=r"^runs='elsewhere/3'"):
        plot.Config(runs=3)


def test_runs_of_one_config_are_told_apart_by_their_place():
    first, second, third = Path("runs/3"), Path("runs/5"), Path("runs/6")
    configs = {first: {"seed": 0}, second: {"seed": 0}, third: {"seed": 1}}
    assert plot.told_apart(configs) == [{"seed": 0, "runs": "runs/3"}, {"seed": 0, "runs": "runs/5"}, {"seed": 1}]


def test_figures_of_other_runs_go_to_another_folder():
    groups = [[3, 5], [3, 6], ["other/3", "other/5"], ["sqlite:///a/runs.db#0"], ["sqlite:///b/runs.db#0"]]
    folders = [plot.folder_of(plot.places(group)) for group in groups]
    assert len({*folders}) == len(folders)
    assert folders[0] == plot.folder_of(plot.places("[3,5]"))
    assert all(folder.parent == storage.RUNS / "plots" for folder in folders)


def test_prefixes_tell_runs_apart():
    assert plot.prefixes([Path("a/runs/3"), Path("b/runs/3")]) == ["a_runs_3_", "b_runs_3_"]
    assert plot.prefixes([Path("runs/3")]) == [""]
