"""The numbers of a sweep's runs over seeds: names, statistics, and figures of what varies."""

import math

import pytest
from legible import require_legible

from slth import plots
from slth.experiments.sweeps import gather, numbers
from slth.experiments.sweeps.numbers import Summarised, numbers_of

MEASURED = {(0.1, 0): 4.0, (0.1, 1): 6.0, (0.5, 0): 1.0, (0.5, 1): 2.0, (0.5, 2): 3.0}


def of_keep(**more):
    """Runs of two keeps: at one the loss is 4 and 6, at the other 1, 2 and 3."""
    return [
        Summarised({"keep": keep, "seed": seed, "steps": 5, **more}, {"loss": loss, "bytes": 100})
        for (keep, seed), loss in MEASURED.items()
    ]


def test_a_summarys_numbers_have_dotted_names_and_lists_none():
    summary = {"loss": 1.5, "fits": {"input": {"slope": 2}}, "seconds": 3.0, "losses": [1.0, 2.0], "ok": True, "a": "1"}
    assert numbers_of(summary | {"none": None}, ["seconds"]) == {
        "loss": 1.5,
        "fits.input.slope": 2,
        "summary.seconds": 3.0,
    }
    assert [*numbers_of({f"n{i}": i for i in range(300)}, [])] == [f"n{i}" for i in range(numbers.MOST)]
    assert [name for name in numbers_of(summary, ["seconds"]) if gather.is_time(name)] == ["summary.seconds"]


def test_statistics_are_over_seeds_with_students_interval():
    table = numbers.statistics(of_keep()).set_index(["keep", "number"])
    assert table.loc[("0.1", "loss")].to_list()[:4] == [2, 0, 5.0, pytest.approx(math.sqrt(2))]
    three = table.loc[("0.5", "loss")]
    assert three[["runs", "mean", "std"]].to_list() == [3, 2.0, 1.0]
    half = 4.302652729911275 / math.sqrt(3)  # t of 0.975 with two degrees of freedom, over the root of n
    assert three[["low", "high"]].to_list() == pytest.approx([2 - half, 2 + half])
    assert table.loc[("0.5", "bytes"), "std"] == 0.0
    (alone,) = numbers.statistics(of_keep()[:1]).query("number == 'loss'").to_dict("records")
    assert (alone["runs"], alone["mean"]) == (1, 4.0)
    assert math.isnan(alone["std"])
    assert math.isnan(alone["low"])


def test_what_is_not_measured_in_a_run_does_not_count():
    runs = [*of_keep(), Summarised({"keep": 0.1, "seed": 2, "steps": 5}, {"bytes": 100})]
    table = numbers.statistics(runs).set_index(["keep", "number"])
    assert table["runs"].to_dict() == {("0.1", "loss"): 2, ("0.1", "bytes"): 3, ("0.5", "loss"): 3, ("0.5", "bytes"): 3}
    assert table["missing"].to_dict() == {key: int(key == ("0.1", "loss")) for key in table.index}
    assert numbers.varied(runs) == ["loss"]


def test_a_key_of_numbers_is_an_axis_and_others_are_series():
    runs = [run for method in ("edge_popup", "iterand") for run in of_keep(method=method) if run.config["seed"] < 2]
    (axes,) = numbers.figures(runs, ["loss"])["loss_vs_keep"].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("keep", "loss")
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[5.0, 1.5]] * 2
    labels = [text.get_text().replace("\n", " ") for text in axes.texts]
    assert labels == [f"method={name} (mean of 2 seeds)" for name in ("edge_popup", "iterand")]
    require_legible(plots.figure_of(axes))


def test_words_are_points_below_each_other():
    runs = [run for method in ("edge_popup", "iterand") for run in of_keep(method=method) if run.config["keep"] == 0.5]
    (figure,) = numbers.figures(runs, ["loss"]).values()
    (axes,) = figure.axes
    names = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert names == [f"method={name} (mean of 3 seeds)" for name in ("edge_popup", "iterand")]
    assert axes.get_xlabel() == "loss"
    require_legible(figure)


def test_seeds_alone_are_no_figure():
    assert numbers.figures(of_keep()[2:], ["loss"]) == {}


@pytest.mark.parametrize("keeps", [(0.01, 0.1), (1, 16)])
def test_a_wide_axis_is_logarithmic(keeps):
    runs = [Summarised({"keep": k, "seed": s}, {"loss": 1.0 + s}) for k in keeps for s in (0, 1)]
    (axes,) = numbers.figures(runs, ["loss"])["loss_vs_keep"].axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    require_legible(plots.figure_of(axes))


def of_seeds(seeds, firsts):
    """Runs with `seeds` seeds each, from these on; a run's loss is its first seed more."""
    return [Summarised({"seed": first, "seeds": seeds}, {"loss": float(seeds + first)}) for first in firsts]


@pytest.mark.parametrize(("firsts", "overlap"), [((0, 1, 2), True), ((0, 3, 6), False), ((6, 0, 5), True)])
def test_runs_that_share_seeds_have_a_mean_alone(firsts, overlap):
    runs = of_seeds(3, firsts)
    (row,) = numbers.statistics(runs).to_dict("records")
    assert (row["runs"], row["missing"]) == (3, 0)
    assert row["mean"] == pytest.approx(3 + sum(firsts) / 3)
    assert [math.isnan(row[name]) for name in ("std", "low", "high")] == [overlap] * 3
    assert numbers.overlapping(runs) == overlap
    keeps = [Summarised({"keep": k, **run.config}, run.numbers) for run in runs for k in (0.1, 0.3)]
    assert [*numbers.figures(keeps, ["loss"])] == ([] if overlap else ["loss_vs_keep"])


def test_runs_with_other_numbers_of_seeds_are_not_pooled():
    runs = of_seeds(2, [0, 4]) + of_seeds(4, [0, 4])
    table = numbers.statistics(runs).set_index("seeds")
    assert table["mean"].to_dict() == {"2": 4.0, "4": 6.0}
    assert not numbers.overlapping(runs)
    (axes,) = numbers.figures(runs, ["loss"])["loss_vs_seeds"].axes
    assert axes.lines[0].get_ydata().tolist() == [4.0, 6.0]
    keeps = [Summarised({"keep": k, **run.config}, run.numbers) for run in runs for k in (0.1, 0.3, 0.5)]
    (axes,) = numbers.figures(keeps, ["loss"])["loss_vs_keep"].axes
    labels = [text.get_text().replace("\n", " ") for text in axes.texts]
    assert labels == ["seeds=2 (mean of 2 seeds)", "seeds=4 (mean of 2 seeds)"]


def test_a_number_that_no_run_of_a_group_has_is_missing_there():
    runs = [Summarised({"keep": k, "seed": s}, {"loss": 1.0} if k else {}) for k in (0, 1) for s in (0, 1)]
    table = numbers.statistics(runs).set_index("keep")
    assert table[["runs", "missing"]].to_numpy().tolist() == [[0, 2], [2, 0]]
    assert math.isnan(table.loc["0", "mean"])
