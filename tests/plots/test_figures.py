"""The figures of one run: what they show of a table, and what they leave out."""

import numpy as np
import pandas as pd
import pytest
from figure_tables import (
    FITS,
    WIDTHS,
    ends_of,
    legend_of,
    lines_of,
    make_files,
    make_hidden,
    make_losses,
    make_pruning,
    make_table,
    words,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from tables import one_case

from slth import plots
from slth.plots.errors import _over_sources


def width_legend(*table):
    return "\n".join(legend_of(plots.figure_of(plots.error_against_width(*table))))


@pytest.mark.parametrize("side", plots.SIDES)
def test_lines_hold_median_mean_and_certificate(side):
    table = make_table(sides=plots.SIDES)
    rows = table[table["side"] == side].groupby("hidden")
    _, log = plots.error_against_width(table)
    for kind, wanted in (
        (plots.MEDIAN, rows["error_mean"].median()),
        (plots.MEAN, rows["error_mean"].mean()),
        (plots.CERTIFICATE, rows["certificate"].median()),
    ):
        drawn = [line for line in lines_of(log) if line.get_color() == plots.SIDES[side].color]
        assert any(
            np.array_equal(line.get_xdata(), WIDTHS)
            and line.get_ydata() == pytest.approx(wanted.to_numpy(), rel=1e-12)
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
    text = width_legend(make_table(), FITS)
    assert r"side=input: fit $0.39\,e^{-0.11\,n}$, rate 0.093 to 0.13 (95 %)" in text
    assert r"side=output: fit $0.35\,e^{-0.2\,n}$" in text


@pytest.mark.parametrize("missing", [None, np.nan, np.inf])
def test_a_fit_without_a_value_is_left_out(missing):
    text = width_legend(make_table(), {"input": FITS["input"] | {"delta_high": missing}})
    assert "side=input: no fit" in text
    assert "mean ± standard deviation" in text


@pytest.mark.parametrize(("table", "low"), [(make_table(), -0.24), (make_table((4, 8, 12)), 0.09)])
def test_a_fit_that_says_nothing_is_not_drawn(table, low):
    fits = {"input": {"gamma": 0.39, "delta": 0.11, "delta_low": low, "delta_high": 0.36}}
    drawn = [lines_of(plots.error_against_width(table, given)[0]) for given in (None, fits)]
    assert len(drawn[0]) == len(drawn[1])
    assert "construction, side=input: no fit" in width_legend(table, fits)


@pytest.mark.parametrize(("d_in", "of_the_paper"), [(2, True), (4, False)])
def test_the_curve_of_the_paper_stands_where_its_dimension_does(d_in, of_the_paper):
    text = width_legend(make_table(d_in=d_in))
    assert ("the paper's fit" in text) is of_the_paper
    assert f"$2^{{-n/{d_in}}}$" in text


def test_a_method_of_the_users_own_is_called_by_its_place():
    table = make_table(sides=("free",)).assign(method="my_file.py:Momentum")
    assert width_legend(table).splitlines()[0] == "my_file.py:Momentum"


@pytest.mark.parametrize(("method", "name"), [(None, "edge-popup"), ("biprop", "biprop"), ("two", "learned masks")])
def test_learned_masks_are_called_by_their_method_and_stand_beside_the_construction(method, name):
    table = make_table(sides=plots.SIDES, lengths=(4, 8))
    if method:
        other = "biprop" if method == "biprop" else "iterand"
        table["method"] = np.where(table["side"] != "free", "construction", "biprop")
        table.loc[(table["side"] == "free") & (table["hidden"] == 8), "method"] = other
    width = plots.figure_of(plots.error_against_width(table))
    assert legend_of(width)[:3] == ["construction, side=input", "construction, side=output", name]
    titles = [axes.get_title() for axes in plots.error_against_length(table)]
    assert titles[2].replace("\n", " ") == f"{name}, the same 10 sources at every length"


def test_the_width_is_shown_at_the_shortest_length():
    longer = make_table(lengths=(64,), factor=100.0)
    _, log = plots.error_against_width(pd.concat([longer, make_table(lengths=(4,))]))
    assert "$T$ = 4" in log.get_title()
    assert log.get_ylim()[1] < 100


def test_lengths_speak_of_the_same_sources():
    table = make_table(widths=(20,), lengths=(8, 16))
    strays = make_table(widths=(20,), lengths=(8,), factor=1e6).assign(source=lambda t: t["source"] + 10)
    axes, _ = plots.error_against_length(pd.concat([table, strays]))
    assert axes.get_title().replace("\n", " ") == "side=input, the same 10 sources at every length"
    assert axes.get_ylim()[1] < 100
    apart = pd.concat([make_table(lengths=(8,)), make_table(lengths=(16,)).assign(source=lambda t: t["source"] + 10)])
    with pytest.raises(ValueError, match="no source was measured at every length"):
        plots.error_against_length(apart)


def test_a_hidden_model_shows_error_certificate_and_norm_by_block():
    table = make_hidden((24, 8)).iloc[::-1]
    drawn = [line.get_ydata() for line in lines_of(plots.error_against_block(table)) if len(line.get_xdata()) == 4]
    for _, rows in table.sort_values("block").groupby("candidates"):
        for column in ("error", "certificate", "norm"):
            assert any(y == pytest.approx(rows[column].to_numpy(), rel=1e-12) for y in drawn), column


def test_ordered_series_go_from_dark_to_light_and_are_named_at_their_ends():
    axes = plots.error_against_block(make_hidden(range(8, 26, 2)))
    lines = [line for line in lines_of(axes) if line.get_linestyle() == "-"]
    assert len({line.get_marker() for line in lines}) == 9
    greys = [np.dot(to_rgb(line.get_color()), (0.299, 0.587, 0.114)) for line in lines]
    assert min(np.diff(greys)) > 0.03
    assert ends_of(axes) == [f"{n} candidates" for n in range(8, 26, 2)]


def test_gaps_of_zero_are_hollow_points_below_the_others():
    table = make_hidden()
    table.loc[table["candidates"] == 24, ["val_loss_ticket", "agreement"]] = 1.5, 1.0
    gaps = 0.1 * 2.0 ** -np.array([8.0, 16.0])
    for axes in plots.gap_against_candidates(table):
        measured, zeros = axes.get_lines()
        assert axes.get_yscale() == "log"
        assert measured.get_ydata() == pytest.approx(gaps, rel=1e-6)
        assert zeros.get_xdata().tolist() == [24]
        assert 0 < axes.get_ylim()[0] < zeros.get_ydata()[0] < gaps[1]
        assert zeros.get_markerfacecolor() == "white"
    for axes in plots.gap_against_candidates(table[table["candidates"] == 24]):
        (zeros,) = axes.get_lines()
        assert zeros.get_xydata().tolist() == [[24, 0]]
        assert axes.get_ylim()[0] < 0 < axes.get_ylim()[1]


def test_blocks_are_counted_in_whole_numbers():
    axes = plots.error_against_block(make_hidden(blocks=1))
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_a_loss_below_the_targets_is_a_gap_too():
    left, _ = plots.gap_against_candidates(make_hidden().assign(val_loss_ticket=1.25))
    assert left.get_lines()[0].get_ydata() == pytest.approx([0.25] * 3)


def test_every_figure_and_curve_is_listed_once_under_its_name():
    """Those that there are; a file more in `slth/plots` is found with no other change."""
    names = {
        *("error_vs_width", "error_vs_length", "error_vs_depth", "speed", "error_vs_block", "gap_vs_candidates"),
        *("loss", "loss_vs_parameters", "loss_vs_qk_scale", "constant", "loss_vs_keep", "difference_to_mha"),
        "error_vs_width_by_variant",
    }
    listed = [entry.name for entry in plots.ENTRIES]
    assert len(listed) == len(set(listed))
    assert names <= set(listed)
    curves = [curve.name for curve in plots.CURVES]
    assert len(curves) == len(set(curves)) >= 8


def test_a_table_gets_the_figures_it_has_columns_and_rows_for():
    assert set(plots.figures(make_table())) == {"error_vs_width"}
    assert set(plots.figures(make_table(lengths=(4, 8)))) == {"error_vs_width", "error_vs_length"}
    assert set(plots.figures(make_table(widths=(20,), lengths=(4, 8)))) == {"error_vs_length"}
    assert set(plots.figures(make_hidden((24,)))) == {"error_vs_block"}
    assert set(plots.figures(make_hidden())) == {"error_vs_block", "gap_vs_candidates"}
    assert plots.figures(pd.DataFrame({"what": ["subset sum"], "ratio": [3.0]})) == {}


def test_simple_models_are_named_beside_their_lines_and_those_above_the_axis_in_the_legend():
    levels = {"val_loss_bigram": 2.5, "val_loss_random_mask": 9.0}
    (axes,) = plots.loss_against_steps(make_pruning(1.0), levels)
    assert ends_of(axes) == ["dense training", "ticket", "bigram"]
    assert legend_of(plots.figure_of(axes)) == ["above the axis: random mask 9.00"]


def test_the_bigram_model_and_the_variants_share_the_labels_place():
    axes = plots.loss_by_variant(make_losses(["mha", "mea"]))
    assert sorted(ends_of(axes)) == ["bigram", "mea", "mha"]


def test_zeros_and_infinities_do_not_spoil_a_logarithmic_axis():
    table = make_table()
    table.loc[table["hidden"] == 80, "error_mean"] = 0.0
    table.loc[table["hidden"] == 2, ["error_mean", "certificate"]] = np.inf
    table.loc[table["source"] == 3, "certificate"] = np.inf
    _, log = plots.error_against_width(table)
    bottom, top = log.get_ylim()
    assert 0 < bottom <= plots.ZERO
    assert top < 100
    assert "zeros below" in words(log.figure)


def test_a_line_has_a_gap_where_a_value_is_infinite():
    table = make_table(sides=("input",))
    table.loc[table["hidden"] == 20, "certificate"] = np.inf
    _, log = plots.error_against_width(table)
    parts = [line.get_xdata().tolist() for line in lines_of(log) if line.get_markersize() == 2.5]
    assert parts == [[2, 8], [40, 80]]


def test_a_single_width_is_a_point_inside_the_axes():
    for axes in plots.error_against_width(make_table(widths=(16,))):
        points = [line for line in lines_of(axes) if len(line.get_xdata()) == 1]
        assert points
        for point in points:
            assert point.get_marker() not in ("", "None", None)
            (x,), (y,) = point.get_data()
            assert axes.get_xlim()[0] <= x <= axes.get_xlim()[1]
            assert axes.get_ylim()[0] <= y <= axes.get_ylim()[1]


@one_case
@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (make_table().drop(columns=["d_in", "side"]), "lacks the columns d_in, side; it has hidden, length"),
        (make_table()[:0], "no rows"),
        (make_table().assign(side="left"), "side='left': must be one of input, output, free"),
    ],
)
@pytest.mark.parametrize("draw", ["error_against_width", "error_against_length"])
def test_a_table_that_cannot_be_drawn_is_refused(draw, table, complaint):
    with pytest.raises(ValueError, match=complaint):
        getattr(plots, draw)(table)


@pytest.mark.parametrize("draw", ["error_against_block", "gap_against_candidates"])
def test_a_hidden_model_that_cannot_be_drawn_is_refused(draw):
    with pytest.raises(ValueError, match="lacks the columns agreement, norm; it has candidates, block"):
        getattr(plots, draw)(make_hidden().drop(columns=["norm", "agreement"]))
    with pytest.raises(ValueError, match="no rows"):
        getattr(plots, draw)(make_hidden()[:0])


def test_files_are_points_at_their_bytes_hollow_where_weights_are_random():
    table = make_files()
    axes = plots.loss_against_bytes(table, {"val_loss_bigram": 2.4})
    points = [line for line in lines_of(axes) if len(line.get_xdata()) == 1]
    drawn = {(round(line.get_xdata()[0]), round(line.get_ydata()[0], 9)): line for line in points}  # through logarithms
    single = table[(table["run"] != "rounding") & table["bytes"].notna()].round({"val_loss": 9})
    assert drawn.keys() >= set(zip(single["bytes"], single["val_loss"], strict=True))
    for at, loss, weights in single[["bytes", "val_loss", "weights"]].to_numpy():
        assert (drawn[at, loss].get_markerfacecolor() == "white") == (weights == "random")
    assert [140_000 * bits for bits in (1, 2, 3, 4, 8)] in [[*map(round, line.get_xdata())] for line in lines_of(axes)]
    assert "bigram" in words(plots.figure_of(axes))


def test_a_table_without_files_has_no_figure_of_them():
    assert "loss_vs_bytes" not in plots.figures(make_pruning(1.0))
    files = make_files()
    assert "loss_vs_bytes" in plots.figures(files)
    assert "loss_vs_bytes" not in plots.figures(files.assign(stage="full"))
