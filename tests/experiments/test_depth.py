"""Figure 6: the errors of transformers of several blocks, and one decay rate for all of them."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from command_lines import launched
from figure_tables import legend_of
from helpers import EXPERIMENTS
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

from slth import plots
from slth.construct import certify, pruned, transformer
from slth.experiments import approx_error, lab
from slth.experiments.lab import storage
from slth.experiments.studies.approximation import depth as study
from slth.experiments.studies.approximation import measure as approximation

pytestmark = pytest.mark.usefixtures("blank_figures")

SCRIPT = EXPERIMENTS / "approx_error.py"
CONFIG = {"hidden": [8, 12, 16], "depth": [1, 3], "sources": 3, "samples": 5}


def study_of(**changed):
    return approx_error.Config(**CONFIG | changed).study


def measured(**changed):
    of = study_of(**changed)
    return study.measure(of, study.make_target(of))[0]


# ---------------------------------------------------------------- the config


def test_what_is_none_is_what_a_transformer_needs():
    of = study_of(depth=2, d_in=4, hidden=[9, 8])
    assert (of.depths, of.d_in, of.d_out, of.target, of.sides, of.hidden) == ([2], 4, 4, "random", ["input"], [8, 9])
    assert study_of(depth=[3, 1], side="auto").depths == [1, 3]
    assert study_of(hidden=64).hidden == [4, 12, 20, 28, 32, 40, 48, 56, 64]  # from two units a coordinate on
    alone = study_of(depth=None)
    assert (alone.d_out, alone.target, alone.sides, alone.hidden) == (1, "trained", ["input", "output"], [8, 12, 16])


@one_case
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 0}, "depth=0: must be an int >= 1"),
        ({"depth": []}, r"depth=\[\]: must be an int >= 1 or a list of them, not empty"),
        ({"depth": [2, 2]}, r"depth=\[2, 2\]: .* none twice"),
        ({"depth": True}, "depth=True: must be an int"),
        ({"depth": "deep"}, "depth='deep': must be an int"),
        ({"hidden": [8, 3]}, "hidden=3: must be >= 4, 2 hidden units for each coordinate"),
        ({"hidden": 3}, "hidden=3: must be >= 4"),
        ({"d_in": 3, "hidden": [5]}, "hidden=5: must be >= 6"),
        ({"d_out": 1}, "d_out=1: must be d_in=2"),
        ({"target": "trained"}, "target='trained': must be one of random"),
        ({"side": "output"}, "side='output': must be one of input, auto"),
        ({"method": "edge_popup"}, "method='edge_popup': must be one of construction"),
        ({"side": "both"}, "side='both': must be one of input, auto"),
    ],
)
def test_bad_values_are_named(changed, message):
    with pytest.raises(lab.BadConfig, match=message):
        study_of(**changed)


# ---------------------------------------------------------------- measurements


def test_targets_are_as_the_theorem_assumes_and_depths_are_nested():
    for norm, wanted in ((None, 1.0), (2.5, 2.5)):
        deep = study.make_target(study_of(depth=3, target_norm=norm))
        shallow = study.make_target(study_of(depth=1, target_norm=norm))
        for name, weight in deep.named_parameters():
            assert torch.linalg.matrix_norm(weight, ord=2).allclose(torch.tensor(wanted).double())
            assert "blocks.0" not in name or weight.equal(shallow.get_parameter(name))
        assert deep.blocks[0].attention.hidden_qk == 8
        assert [tuple(layer.shape) for layer in deep.blocks[2].feed_forward.layers] == [(2, 2)]
    sources = [study.make_source(study_of(depth=d), 12, number) for d, number in ((3, 0), (1, 0), (3, 1))]
    assert sources[0].blocks[0].attention.query.equal(sources[1].blocks[0].attention.query)
    assert not sources[0].blocks[0].attention.query.equal(sources[2].blocks[0].attention.query)
    assert [tuple(layer.shape) for layer in sources[0].blocks[2].feed_forward.layers] == [(2, 12), (12, 2)]


def test_rows_are_those_of_whole_transformers():
    """Each depth built, pruned, run and certified on its own, without blocks that are shared."""
    of = study_of(hidden=[16], sources=2)
    table = study.measure(of, study.make_target(of))[0]
    assert list(table[["depth", "source"]].itertuples(index=False, name=None)) == [(1, 0), (1, 1), (3, 0), (3, 1)]
    x = approximation.test_inputs(of)[0]
    for row in table.itertuples():
        alone = study_of(hidden=[16], depth=row.depth)
        target, source = study.make_target(alone), study.make_source(alone, 16, row.source)
        ticket = transformer(target, source)
        error = torch.linalg.vector_norm(pruned(source, ticket.masks).double()(x) - target(x), dim=-1).amax(-1)
        bounds = certify(target, ticket, x)
        assert row.error_mean == pytest.approx(error.mean().item(), rel=1e-12)
        assert row.error_max == pytest.approx(error.max().item(), rel=1e-12)
        assert row.certificate == pytest.approx(bounds.blocks[-1], rel=1e-12)
        assert row.certificate_recursion == pytest.approx(bounds.recursion[-1], rel=1e-12)
        assert (row.unreachable, row.candidates) == (ticket.unreachable, ticket.candidates)
        assert row.unreachable_share == ticket.unreachable / ticket.entries
        assert (row.hidden, row.length, row.side) == (16, 4, "input")
        assert (row.candidates_attention, row.candidates_feed_forward) == (8, 4)


def test_errors_are_certified_and_rows_do_not_depend_on_what_else_is_measured():
    table = measured(lengths=[3, 6], sources=[3, 1], samples=[4, 2], depth=[1, 2, 3])
    assert len(table) == 3 * 3 * (3 + 1)
    assert (table["error_max"] <= table["certificate"]).all()
    assert (table["error_max"] <= table["certificate_recursion"]).all()
    assert (table["error_mean"] <= table["error_max"]).all()
    assert (table["error_mean"] > 0).all()
    alone = measured(lengths=3, sources=2, samples=4, depth=2, hidden=[12])
    same = table[(table["depth"] == 2) & (table["length"] == 3) & (table["hidden"] == 12) & (table["source"] < 2)]
    pd.testing.assert_frame_equal(alone, same.reset_index(drop=True), check_exact=True)


# ---------------------------------------------------------------- the fit


def decays(gammas, deltas, hidden=(16, 24, 32, 48, 72)):
    n = np.array(hidden, float)
    columns = {depth: g * np.exp(-d * n) for depth, (g, d) in enumerate(zip(gammas, deltas, strict=True), 1)}
    return pd.DataFrame(columns, index=pd.Index(hidden, name="hidden"))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=4), st.floats(0.001, 0.5))
def test_one_rate_and_its_factors_are_found(gammas, delta):
    fits = study.fit_depths(decays(gammas, [delta] * len(gammas)))
    assert list(fits) == [str(depth) for depth in range(1, len(gammas) + 1)]
    for gamma, fit in zip(gammas, fits.values(), strict=True):
        assert fit["gamma"] == pytest.approx(gamma, rel=1e-6)
        assert fit["delta_low"] - 1e-9 <= fit["delta"] <= fit["delta_high"] + 1e-9
        assert [fit["delta"], fit["alone"]["delta"]] == pytest.approx([delta, delta], rel=1e-6)
        assert fit["r2"] == pytest.approx(1, abs=1e-9)
        assert fit["alone"]["gamma"] == pytest.approx(gamma, rel=1e-6)


def test_it_is_the_least_squares_of_all_depths_together():
    """Against one linear system: a column for the rate, and one for each depth's factor."""
    noise = np.random.default_rng(0).normal(size=(5, 3))
    errors = decays([0.5, 2.0, 7.0], [0.05, 0.06, 0.08]) * np.exp(0.3 * noise)
    n, logs = errors.index.to_numpy(float), np.log(errors.to_numpy())
    system = np.concatenate([np.concatenate((-n[:, None], np.eye(3)[[k] * 5]), axis=1) for k in range(3)])
    solution, *_ = np.linalg.lstsq(system, logs.T.reshape(-1), rcond=None)
    residuals = (logs.T.reshape(-1) - system @ solution).reshape(3, 5)
    fits = study.fit_depths(errors)
    for k, fit in enumerate(fits.values()):
        assert fit["delta"] == pytest.approx(solution[0], rel=1e-10)
        assert math.log(fit["gamma"]) == pytest.approx(solution[1 + k], rel=1e-10)
        total = ((logs[:, k] - logs[:, k].mean()) ** 2).sum()
        assert fit["r2"] == pytest.approx(1 - (residuals[k] ** 2).sum() / total, rel=1e-10)
        assert fit["r2"] < fit["alone"]["r2"] == pytest.approx(np.corrcoef(n, logs[:, k])[0, 1] ** 2, rel=1e-10)
        assert fit["alone"]["delta"] == pytest.approx(-np.polyfit(n, logs[:, k], 1)[0], rel=1e-10)


def test_the_interval_covers_the_rate_though_depths_share_their_noise():
    """95 % of 200 fits: taking the depths for independent would make it half as long, and cover far less."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        shared = 0.3 * rng.normal(size=(5, 1))
        fit = study.fit_depths(decays([1.0, 2.0, 3.0, 4.0], [0.06] * 4) * np.exp(shared))["1"]
        covered += fit["delta_low"] <= 0.06 <= fit["delta_high"]
    assert 0.92 < covered / 200 < 0.98


def test_rates_that_differ_have_a_low_r2():
    fits = study.fit_depths(decays([1.0, 1.0], [0.02, 0.2]))
    assert fits["1"]["delta"] == pytest.approx(0.11)
    assert fits["1"]["r2"] < 0.5 < fits["1"]["alone"]["r2"]


def test_too_little_to_fit():
    assert study.fit_depths(decays([1.0], [0.1], hidden=(16, 24))) is None
    errors = decays([1.0, 1.0], [0.1, 0.1])
    errors.iloc[2, 1] = 0.0
    assert study.fit_depths(errors) is None


# ---------------------------------------------------------------- summary and figure


def table_of(hidden=(8, 16, 24, 32, 72, 80, 82), depths=(1, 2), delta=0.06):
    """A synthetic table at d_in = 2: errors that decay as one, the recursion infinite at depth 2."""
    rows = [
        {
            "hidden": n,
            "depth": depth,
            "length": length,
            "source": source,
            "side": "input",
            "error_mean": depth * math.exp(-delta * n) * (1 + (source - 1) / 2),
            "error_max": 2 * depth * math.exp(-delta * n),
            "certificate": 5 * depth * math.exp(-delta * n),
            "certificate_recursion": math.inf if depth > 1 else 20 * math.exp(-delta * n),
            "unreachable": 0,
            "unreachable_share": 0.0,
            "candidates": n // 4,
            "candidates_attention": n // 2,
            "candidates_feed_forward": n // 4,
        }
        for n in hidden
        for depth in depths
        for length in (4, 8)
        for source in range(3)
    ]
    return pd.DataFrame(rows)


def test_summary_fits_what_is_resolved_and_counts_violations():
    table = table_of()
    summary = study.summarise(table)
    assert summary["fitted_hidden"] == [16, 24, 32, 72, 80]  # 4 candidates in a half, 40 in attention
    assert summary["delta"] == pytest.approx(0.06)
    assert summary["r2_least"] == pytest.approx(1)
    assert [fit["gamma"] for fit in summary["fits"].values()] == pytest.approx([1, 2])
    assert len(summary["widths"]) == 7 * 2 * 2
    assert summary["certificate_violations"] == summary["recursion_violations"] == 0
    table.loc[:4, "certificate"] = table.loc[:4, "error_max"] * 0.99
    table.loc[5, "certificate"] = math.nan
    table.loc[:1, "certificate_recursion"] = 0.0
    summary = study.summarise(table)
    assert (summary["certificate_violations"], summary["recursion_violations"]) == (6, 2)
    assert not summary["certificate_finite"]
    json.dumps(storage.plain(summary), allow_nan=False)


@pytest.mark.parametrize("hidden", [(8,), (16, 24), (100, 125)])
def test_summary_and_figure_without_a_fit(hidden):
    table = table_of(hidden)
    summary = study.summarise(table)
    assert summary["fits"] is summary["fits_median"] is summary["delta"] is summary["r2_least"] is None
    for figure in plots.figures(table, summary).values():
        figure.draw_without_rendering()


def test_the_figure():
    table = table_of()
    fits = json.loads(json.dumps(storage.plain(study.summarise(table)["fits"])))  # as a stored run has them
    assert list(plots.figures(table, {"fits": fits})) == ["error_vs_depth"]
    left, right = plots.error_against_depth(table, fits)
    texts = legend_of(plots.figure_of(left))
    labels = [text for text in texts if " block" in text[:9]]
    assert [label[:8] for label in labels] == ["1 block:", "2 blocks"]
    assert all("$R^2$ = 1.000" in label and "e^{-0.06" in label for label in labels)
    shown = table[(table["length"] == 4) & (table["depth"] == 2)].groupby("hidden")["error_mean"].mean()
    points = [line.get_ydata() for line in left.lines if line.get_marker() == "s"]
    assert np.allclose(points[0], shown)
    assert left.get_yscale() == right.get_yscale() == "log"
    assert any("over 40 candidates" in text and "100 to 225" in text for text in texts)
    start = left.patches[0].get_x() if left.patches else None
    assert start == pytest.approx(80)
    assert right.get_ylim()[1] < 100  # no room is made for infinities


def test_the_figure_names_a_missing_column():
    with pytest.raises(ValueError, match="lacks the columns certificate_recursion;"):
        plots.error_against_depth(table_of().drop(columns="certificate_recursion"))


# ---------------------------------------------------------------- as a program


def test_a_run(tmp_path):
    arguments = ["smoke", "depth=[1,2]", "hidden=[16,20,24]", "sources=3", "samples=4", "-F", str(tmp_path / "runs")]
    done = launched("approx_error", tmp_path, "with", *arguments)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "1"
    table, summary, config = lab.load_run(folder)
    assert set(table["depth"]) == {1, 2}
    assert (table["error_max"] <= table["certificate"]).all()
    assert summary["fits"]["2"]["r2"] <= 1
    assert {"delta", "delta_low", "delta_high", "r2_least", "seconds", "alpha"} <= summary.keys()
    assert config["depth"] == [1, 2]
    assert {path.name for path in folder.glob("error_*")} == {
        f"error_vs_depth.{kind}" for kind in ("pdf", "png", "svg")
    }
    assert list(plots.figures(table, summary)) == ["error_vs_depth"]


def test_the_program_checks_what_it_is_asked_for():
    assert type(study_of()) is study.Study
    assert type(study_of(depth=None)) is approximation.Study
    with pytest.raises(lab.BadConfig, match="depth=0"):
        study_of(depth=0)
    named = approx_error.ex.named_configs["paper_depth"]()
    assert (named["depth"], named["hidden"][0], named["hidden"][-1]) == ([1, 2, 3, 4], 16, 72)
