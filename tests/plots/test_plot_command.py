"""experiments/plot.py: stored runs drawn again, and together."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from figure_tables import FITS, lines_of, make_pruning, make_table
from helpers import EXPERIMENTS
from tables import one_case

from slth import plots
from slth.disk import write_all
from slth.experiments import lab, plot
from slth.experiments.lab import scripts, storage


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
    wanted = lab.render(plots.figures(table, {"fits": FITS}))
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
def test_every_figure_looks_as_asked(monkeypatch):
    drawn = {}
    monkeypatch.setattr(lab, "render", lambda figures: drawn.update(figures) or {})
    for seed in (0, 1):
        store(Path(f"runs/{seed}"), make_pruning(1.0 + seed), seed=seed)
    plot.plot(plot.Config(runs=[0, 1], title="both", xlabel="all steps", log="xy", width="column"), None)
    assert list(drawn) == ["overlay_loss", "0_loss", "1_loss"]
    for figure in drawn.values():
        assert (figure.get_suptitle(), figure.get_size_inches()[0]) == ("both", 3.25)
        for axes in figure.axes:
            assert (axes.get_xlabel(), axes.get_xscale(), axes.get_yscale()) == ("all steps", "log", "log")


@pytest.mark.usefixtures("no_rendering")
def test_runs_that_no_figure_joins_are_drawn_one_by_one_and_a_line_says_so(capsys):
    store(Path("runs/3"), make_table())
    store(Path("runs/5"), make_pruning(1.0))
    plot.plot(plot.Config(runs=[3, 5], out="out"), None)
    said = "no overlay: no two of the 2 runs have tables that there is one figure for"
    names = ["3_error_vs_width", "5_loss"]
    assert capsys.readouterr().out.splitlines() == [said, *(f"figure: out/{name}.png" for name in names)]


@one_case
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
def test_what_cannot_be_drawn_is_refused(config, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store(Path("runs/3"), make_table() if isinstance(config["out"], str) else pd.DataFrame({"a": [1]}))
    with pytest.raises(lab.Refused) as error:
        plot.plot(plot.Config(**config), None)
    assert str(error.value).startswith(line)


@pytest.mark.usefixtures("no_rendering")
def test_runs_of_several_experiments_are_drawn_together_by_columns_that_both_have(monkeypatch):
    drawn = {}
    monkeypatch.setattr(lab, "render", lambda figures: drawn.update(figures) or {})
    for number, (name, seed) in enumerate((("first", 0), ("first", 1), ("second", 0)), 1):
        folder = store(Path(f"runs/{number}"), make_pruning(1.0 + seed), seed=seed, **{name: 1})
        (folder / "run.json").write_text(json.dumps({"status": "COMPLETED", "experiment": {"name": name}}))
    asked = {"x": "step", "y": "val_loss", "by": "stage", "center": "median", "log": "y"}
    plot.plot(plot.Config(runs=[1, 2, 3], title="all", xlabel="steps of a search", width="column", **asked), None)
    (figure,) = drawn.values()
    (axes,) = figure.axes
    assert list(drawn) == ["overlay_val_loss_vs_step"]
    labels = {line.get_label(): line.get_ydata().tolist() for line in lines_of(axes) if line.get_label()[0] != "_"}
    assert labels["stage=full, experiment=first (median of 2 seeds)"] == [2.5, 3.5]
    assert labels["stage=full, experiment=second (1 seed)"] == [2.0, 3.0]
    assert (figure.get_suptitle(), axes.get_xlabel(), axes.get_yscale()) == ("all", "steps of a search", "log")
    assert figure.get_size_inches()[0] == 3.25


@one_case
@pytest.mark.usefixtures("no_rendering")
@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"x": "steps", "y": "val_loss"}, "x='steps': must be a column of numbers in every run's table: step, "),
        ({"x": "step", "y": "run"}, "y='run': must be a column of numbers in every run's table: step, "),
        (
            {"x": "step", "y": "val_loss", "by": ["a"]},
            "by='a': must be a column in every run's table: run, stage, step",
        ),
        ({"x": "step"}, "y=None: must be a column, as x is given"),
        ({"by": ["run"]}, "by=['run']: must be left out for a single run without x and y"),
        ({"center": "median"}, "center='median': must be left out for a single run without x and y"),
        ({"width": "wide"}, "width='wide': must be one of screen, page, column"),
        ({"title": 3}, "title=3: must be text"),
        ({"x": "below", "y": "val_loss", "log": "x"}, "log='x': must be an axis with positive values"),
    ],
)
def test_what_the_table_cannot_show_is_refused_before_any_file(config, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store(Path("runs/1"), make_pruning(1.0).assign(below=-1.0))
    with pytest.raises(lab.Refused) as error:
        plot.plot(plot.Config(runs=1, out="out", **config), None)
    assert str(error.value).startswith(line)
    assert not Path("out").exists()


@one_case
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


@one_case
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


@pytest.mark.usefixtures("no_rendering")
def test_runs_that_differ_in_a_free_key_are_one_series(monkeypatch):
    """Three seeds of the mixing study on so many processes, one on another device: one line, with its interval."""
    drawn = {}
    monkeypatch.setattr(lab, "render", lambda figures: drawn.update(figures) or {})
    devices = ["cpu", "auto", "auto"]
    for seed, device in enumerate(devices):
        config = {"seed": seed, "processes": seed + 1, "device": device, "checkpoints": f"kept/{seed}"}
        folder = store(Path(f"runs/{seed}"), make_pruning(1.0 + seed), **config)
        (folder / "run.json").write_text(json.dumps({"status": "COMPLETED", "experiment": {"name": "mixing"}}))
    plot.plot(plot.Config(runs=[0, 1, 2], x="step", y="val_loss"), None)
    (figure,) = drawn.values()
    labels = [line.get_label() for line in lines_of(figure.axes[0]) if line.get_label()[0] != "_"]
    assert labels == ["mean of 3 seeds"]
    measured = {"threads", "device", "rounds"}  # by speed, and what it makes of them
    assert measured.isdisjoint(scripts.free_keys("speed"))


@pytest.mark.usefixtures("no_rendering")
def test_what_is_refused_is_not_drawn_and_leaves_no_folder(monkeypatch):
    store(Path("runs/3"), make_table())
    store(Path("runs/4"), pd.DataFrame({"a": [1]}))
    with pytest.raises(lab.Refused, match="runs=4: must be runs with a table"):
        plot.plot(plot.Config(runs=4, out="new/deep"), None)
    assert not Path("new").exists()
    monkeypatch.setattr(plots, "figures", None)  # would raise if called
    with pytest.raises(lab.Refused, match=r"out=runs/3/results\.csv: cannot write there"):
        plot.plot(plot.Config(runs=3, out="runs/3/results.csv"), None)


def test_figures_of_other_runs_go_to_another_folder():
    groups = [[3, 5], [3, 6], ["other/3", "other/5"], ["sqlite:///a/runs.db#0"], ["sqlite:///b/runs.db#0"]]
    folders = [plot.folder_of(plot.places(group)) for group in groups]
    assert len({*folders}) == len(folders)
    assert folders[0] == plot.folder_of(plot.places("[3,5]"))
    assert all(folder.parent == storage.RUNS / "plots" for folder in folders)


def test_prefixes_tell_runs_apart():
    assert plot.prefixes([Path("a/runs/3"), Path("b/runs/3")]) == ["a_runs_3_", "b_runs_3_"]
    assert plot.prefixes([Path("runs/3")]) == [""]
