"""Every figure can be read: no text is cut off or lies on another, and series differ without colour."""

import subprocess
import sys
from itertools import pairwise, product

import matplotlib
import numpy as np
import pandas as pd
import pytest
from figure_tables import (
    FITS,
    make_constant,
    make_depth,
    make_files,
    make_hidden,
    make_losses,
    make_pruning,
    make_qk_scale,
    make_table,
    make_times,
)
from hypothesis import given
from hypothesis import strategies as st
from legible import require_legible
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from tables import one_case

from slth import plots
from slth.experiments import lab
from slth.plots.callers import SMALLEST
from slth.plots.fitting import tidy_ticks
from slth.plots.looks import CERTIFICATE, COLORS, MEAN, MEDIAN, POINTS, properties
from slth.plots.texts import balance, fold, spread, width_of

LONG = "weights whose name is so long that it needs more than one line"
EIGHT = [f"variant_{n}" for n in range(8)]


def pruning_sizes():
    """Tickets of two scales in networks of two sizes."""
    parts = [
        make_pruning(level).assign(size=size, qk_scale=scale, nonzero=nonzero)
        for level, (size, nonzero) in enumerate((("tiny", 1000), ("small*0.25", 9000)))
        for scale in (1.0, "theory")
    ]
    return pd.concat(parts)


def several(count, key="keep", **table):
    return [({"seed": 0, key: n}, make_table(factor=1 + n, sources=3, **table)) for n in range(count)]


def overlay(runs, name="error_vs_width", layout=None):
    return plots.across_runs(runs, layout=layout)[name]


def all_axes(function, *arguments):
    return lambda layout: plots.figure_of(function(*arguments, layout=layout))


def make_undecided():
    """Differences at one keep of one seed, which have no interval."""
    table = make_losses(["mha", "mea"], keeps=(0.5,)).query("seed == 0")
    return table.assign(conclusive=False, difference_low=-np.inf, difference_high=np.inf)


LEVELS = {
    "val_loss_unigram": 3.0,
    "val_loss_bigram": 2.99,
    "val_loss_random_mask": 99.0,
    "val_loss_shuffled_mask": 88.0,
}
FIGURES = {
    "width": all_axes(plots.error_against_width, make_table(sides=plots.SIDES), FITS),
    "one width": all_axes(plots.error_against_width, make_table(widths=(1024,), d_in=64, sources=3)),
    "length": all_axes(plots.error_against_length, make_table(widths=(8, 20), lengths=(8, 64, 512))),
    "eight widths": all_axes(plots.error_against_length, make_table(widths=range(2, 18, 2), lengths=(8, 64, 512))),
    "depth": all_axes(plots.error_against_depth, make_depth(), {"1": FITS["input"] | {"r2": 0.9}}),
    "eight depths": all_axes(plots.error_against_depth, make_depth(range(1, 9))),
    "block": all_axes(plots.error_against_block, make_hidden()),
    "eight candidates": all_axes(plots.error_against_block, make_hidden(range(8, 24, 2))),
    "one block": all_axes(plots.error_against_block, make_hidden((24,), blocks=1).assign(error=0.0)),
    "gap": all_axes(plots.gap_against_candidates, make_hidden()),
    "no gap": all_axes(plots.gap_against_candidates, make_hidden((20, 24)).assign(val_loss_ticket=1.5, agreement=1.0)),
    "steps": all_axes(plots.loss_against_steps, make_pruning(1.0), LEVELS),
    "sizes over steps": all_axes(plots.loss_against_steps, pruning_sizes(), LEVELS),
    "parameters": all_axes(plots.loss_against_parameters, pruning_sizes(), LEVELS),
    "bytes": all_axes(plots.loss_against_bytes, make_files(), LEVELS),
    "scale": all_axes(plots.loss_against_qk_scale, make_qk_scale(0)),
    "constant": all_axes(plots.constant, pd.concat([make_constant(10).assign(d=d) for d in range(2, 10)])),
    "speed": all_axes(plots.speed, make_times(["scipy.milp", "torch.sort"])),
    "eight peers": all_axes(plots.speed, make_times([f"library.function_{n}" for n in range(8)], sizes=(1,))),
    "losses": all_axes(plots.loss_by_variant, make_losses(["mha", "mea"]).assign(conclusive=False)),
    "eight losses": all_axes(plots.loss_by_variant, make_losses(EIGHT)),
    "differences": all_axes(plots.difference_to_mha, make_losses(["mha", *EIGHT], keeps=(0.3, 0.5, 0.9))),
    "one seed": all_axes(plots.difference_to_mha, make_undecided()),
    "errors": all_axes(plots.error_by_variant, make_losses(EIGHT)),
    "long variants": all_axes(plots.error_by_variant, make_losses([LONG, "mha"])),
    "two runs": lambda layout: overlay(several(2), layout=layout),
    "sixteen runs": lambda layout: overlay(several(16), layout=layout),
    "long names": lambda layout: overlay(several(3, "target_" * 30), layout=layout),
    "points": lambda layout: overlay(several(8, widths=(8,)), layout=layout),
    "long points": lambda layout: overlay(several(3, LONG, widths=(8,)), layout=layout),
    "lengths": lambda layout: overlay(several(8, lengths=(8, 64)), "error_vs_length", layout),
    "titled": lambda layout: overlay(
        several(2), layout=plots.Layout(layout.width, title=LONG * 3, xlabel=LONG * 2, ylabel=LONG * 2)
    ),
}


MILDER = {"one width", "length", "depth", "block", "no gap", "steps", "speed", "losses", "errors"}
MILDER |= {"two runs", "points", "lengths"}  # than others that the same function draws
USUAL = [(name, "column") for name in FIGURES if name not in MILDER] + [("width", "screen"), ("titled", "screen")]


@pytest.mark.parametrize(
    ("name", "width"),
    [
        pytest.param(*case, marks=() if case in USUAL else pytest.mark.slow)
        for case in product(FIGURES, ("screen", "column", "page"))
    ],
)
def test_no_text_is_cut_off_or_lies_on_another(name, width):
    figure = FIGURES[name](plots.Layout(width))
    require_legible(figure)
    inches = {"column": 3.25, "page": 6.75}.get(width)
    assert inches is None or figure.get_size_inches()[0] == inches
    assert figure.axes[-1].get_xlabel()
    assert all(axes.get_window_extent().height > 0.8 * figure.dpi for axes in figure.axes if "point" not in name)


# ---------------------------------------------------------------- a caller's axes


WIDTH = next(curve for curve in plots.CURVES if curve.name == "error_vs_width")
ONE_PANEL = {"block", "parameters", "losses", "bytes"}
MAKERS = {
    "width": (plots.error_against_width, make_table()),
    "length": (plots.error_against_length, make_table(lengths=(8, 64))),
    "depth": (plots.error_against_depth, make_depth()),
    "block": (plots.error_against_block, make_hidden()),
    "gap": (plots.gap_against_candidates, make_hidden()),
    "steps": (plots.loss_against_steps, pruning_sizes()),
    "parameters": (plots.loss_against_parameters, pruning_sizes()),
    "bytes": (plots.loss_against_bytes, make_files()),
    "scale": (plots.loss_against_qk_scale, make_qk_scale(0)),
    "constant": (plots.constant, make_constant(10)),
    "speed": (plots.speed, make_times(["scipy.milp"])),
    "losses": (plots.loss_by_variant, make_losses(["mha", "mea"])),
    "differences": (plots.difference_to_mha, make_losses(["mha", "mea"])),
    "errors": (plots.error_by_variant, make_losses(["mha", "mea"])),
    "overlay": (lambda runs, **given: plots.overlay(runs, WIDTH, **given), several(2)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_figure_is_drawn_in_the_callers_axes_which_it_returns(name):
    draw, table = MAKERS[name]
    count = 1 if name in ONE_PANEL else len(draw(table))  # of a figure of its own
    figure = Figure(figsize=(4 * count + 1, 4))
    grid = list(figure.subplots(1, count + 1, squeeze=False)[0])
    if name in ONE_PANEL:
        assert draw(table, ax=grid[0]) is grid[0]
    else:
        assert draw(table, axes=grid[:count]) == grid[:count]
        with pytest.raises(ValueError, match=f"axes: {count + 1} of them: must be {count}, one for each panel"):
            draw(table, axes=grid)
    assert tuple(figure.get_size_inches()) == (4 * count + 1, 4)
    assert all(axes.has_data() for axes in grid[:count])
    assert not grid[count].has_data()
    grid[count].axis("off")
    require_legible(figure)
    for axes in filter(Axes.get_legend, grid):
        legend, frame = axes.get_legend().get_window_extent(), axes.bbox
        assert min(legend.x0 - frame.x0, legend.y0 - frame.y0, frame.x1 - legend.x1, frame.y1 - legend.y1) > -1


def test_names_of_rows_are_smaller_in_low_axes_and_never_too_small():
    def sizes(height):
        figure = Figure(figsize=(9, height))
        axes = plots.difference_to_mha(make_losses(EIGHT), axes=list(figure.subplots(1, 2)))
        return {text.get_fontsize() for one in axes for text in one.yaxis.get_majorticklabels() if text.get_text()}

    (tall,), (low,), (lowest,) = sizes(6.0), sizes(2.8), sizes(2.0)
    assert tall > low > lowest == SMALLEST


def test_axes_without_a_grid_stay_where_the_caller_put_them():
    figure = Figure(figsize=(5, 4))
    places = [(0.0, 0.15, 0.4, 0.7), (0.6, 0.15, 0.4, 0.7)]  # labels of the first are cut off
    axes = plots.error_against_width(make_table(), axes=[figure.add_axes(place) for place in places])
    assert all(one.has_data() for one in axes)
    figure.draw_without_rendering()
    assert [one.get_position().bounds for one in axes] == [pytest.approx(place) for place in places]


def test_minor_ticks_lose_their_labels_where_these_overlap():
    axes = Figure(figsize=(1.6, 3)).subplots()
    axes.set(xscale="log", xlim=(1.5, 80))
    tidy_ticks(axes)
    assert not any(text.get_text() for text in axes.get_xminorticklabels())
    assert [text.get_text() for text in axes.get_xmajorticklabels() if text.get_text()]
    axes = Figure(figsize=(4, 3)).subplots()
    axes.set(xscale="log", xlim=(2, 9))
    tidy_ticks(axes)
    assert {text.get_text() for text in axes.get_xminorticklabels()} >= {"2", "3", "4", "6"}


def test_a_width_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="width='wide': must be one of screen, page, column"):
        plots.Layout("wide")


def test_scales_are_as_asked_where_values_allow_it():
    def scales(function, table, log):
        axes = function(table, layout=plots.Layout("column", log=log))
        return [(one.get_xscale(), one.get_yscale()) for one in (axes if isinstance(axes, list) else [axes])]

    lines, names = make_table(), make_losses(["mha", "mea"])
    assert scales(plots.error_against_length, lines, "xy") == [("log", "log")] * 2
    assert scales(plots.error_against_length, lines, "") == [("linear", "linear")] * 2
    assert scales(plots.error_against_width, lines, "x") == [("log", "linear"), ("log", "log")]  # linear beside log
    assert scales(plots.loss_by_variant, names, "xy") == [("linear", "log")]  # keeps stand in a row
    assert scales(plots.difference_to_mha, names.assign(difference=-1.0), "xy") == [("linear", "linear")] * 2
    with pytest.raises(ValueError, match="log='z': must be None or one of"):
        plots.Layout(log="z")


# ---------------------------------------------------------------- looks


@one_case
@pytest.mark.parametrize("count", [2, 6, 8, 12, 84])
def test_no_two_series_share_a_look_in_grey(count):
    looks = plots.looks_of(range(count)).values()
    assert len({(look.marker, str(look.dashes)) for look in looks}) == count
    assert len({look.color for look in looks}) == count


@one_case
@pytest.mark.parametrize("kind", [MEDIAN, MEAN, CERTIFICATE, POINTS])
def test_series_of_one_kind_of_line_are_told_apart_in_grey(kind):
    lines = [properties(look, kind) for look in plots.looks_of(range(18)).values()]
    assert len({(str(line["marker"]), str(line["linestyle"])) for line in lines}) == 18


def test_neighbours_differ_in_lightness():
    grey = [np.dot(to_rgb(color), (0.299, 0.587, 0.114)) for color in COLORS]
    assert min(abs(np.diff(grey))) > 0.15


# ---------------------------------------------------------------- texts


LETTERS = st.text(st.characters(codec="ascii", exclude_characters="$\\_^{}", exclude_categories=["C"]), max_size=60)


@given(LETTERS, st.floats(20, 200))
def test_folded_lines_are_no_wider_than_asked_and_lose_no_letter(text, width):
    folded = fold(text, width, 8)
    assert width_of(folded, 8) <= max(width, 9.0)
    assert "".join(folded.split()) == "".join(text.split())


def test_labels_are_folded_into_even_lines():
    text = "squared error, as a share of the target's"
    assert fold(text, width_of(text, 8) - 1, 8).splitlines()[1] == "target's"
    assert balance(text, width_of(text, 8) - 1, 8).splitlines() == ["squared error, as a", "share of the target's"]
    assert balance(text, width_of(text, 8) + 1, 8) == text


def test_a_formula_is_not_folded():
    assert fold("many $n = 4 x$ words", 26, 8).splitlines() == ["many", "$n = 4 x$", "words"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.2)), min_size=1, max_size=12))
def test_spread_labels_are_apart_in_order_and_within_the_axes_where_they_fit(labels):
    wanted, heights = zip(*labels, strict=True)
    places = spread(wanted, heights)
    order = sorted(range(len(labels)), key=lambda i: places[i])
    for below, above in pairwise(order):
        assert places[above] - places[below] >= (heights[below] + heights[above]) / 2 - 1e-9
        assert wanted[below] <= wanted[above]
    assert places[order[0]] >= heights[order[0]] / 2 - 1e-9
    if sum(heights) <= 1:
        assert places[order[-1]] <= 1 - heights[order[-1]] / 2 + 1e-9


def test_labels_that_are_apart_stay_where_they_belong():
    assert spread([0.9, 0.2, 0.5], [0.1, 0.1, 0.1]) == pytest.approx([0.9, 0.2, 0.5])


# ---------------------------------------------------------------- the caller's settings


def test_the_settings_of_the_caller_stay():
    before = dict(matplotlib.rcParams)
    plots.error_against_block(make_hidden())
    assert dict(matplotlib.rcParams) == before


def test_the_libraries_are_imported_when_a_figure_is_drawn_and_torch_never():
    code = """
import sys
from slth import plots
heavy = {"torch", "seaborn", "matplotlib", "pandas"}
print(sorted(heavy & {*sys.modules}))
plots.figures
print(sorted(heavy & {*sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['matplotlib', 'pandas', 'seaborn']"]


def test_no_file_of_a_figure_comes_with_a_warning(caplog):
    lab.render({name: FIGURES[name](plots.Layout("column")) for name in ("one seed", "titled")})
    assert caplog.records == []


def test_files_of_a_figure_are_the_same_every_time_and_small():
    first, second = (lab.render({"a": plots.figure_of(plots.error_against_block(make_hidden()))}) for _ in range(2))
    assert first == second
    assert {name: content[:4] for name, content in first.items()} == {
        "a.png": b"\x89PNG",
        "a.svg": b"<?xm",
        "a.pdf": b"%PDF",
    }
    assert max(map(len, first.values())) < 150_000
