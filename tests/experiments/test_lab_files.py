"""What a run leaves, and how it is read again."""

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tables import one_case

from slth.disk import write_all
from slth.experiments import lab
from slth.experiments.lab import border, command_line, storage
from slth.experiments.lab.refusals import brief

# ---------------------------------------------------------------- files


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_the_text_of_a_float_is_exact(values):
    text = storage._csv(pd.DataFrame({"source": range(len(values)), "error": values})).decode()
    back = [float(row["error"]) for row in csv.DictReader(text.split("\n"))]
    assert np.array(back).tobytes() == np.array(values).tobytes()
    assert text.endswith("\n")
    assert "\r" not in text


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.floats().map(np.float64)


@settings(max_examples=50)
@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_plain_values_survive_json_and_stay_as_they_are(value):
    plain = storage.plain(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert storage.plain(plain) == plain


def test_plain_takes_arrays_and_refuses_what_json_has_no_form_for():
    assert storage.plain({"a": np.array([1.0, np.inf]), "n": np.int64(3), "ok": np.True_}) == {
        "a": [1.0, None],
        "n": 3,
        "ok": True,
    }
    with pytest.raises(TypeError, match="not object"):
        storage.plain({"a": object()})


def test_a_figure_gives_the_same_bytes_twice():
    def draw():
        figure = Figure()
        figure.subplots().plot([1, 3, 2], label="a")
        figure.legend()
        return figure

    first, second = lab.render({"a": draw()}), lab.render({"a": draw()})
    assert first == second
    assert set(first) == {"a.png", "a.svg", "a.pdf"}


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    write_all(tmp_path, {"a.txt": b"old"})
    with pytest.raises(TypeError):
        write_all(tmp_path, {"a.txt": "not bytes"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"old"}


def test_without_a_run_folder_the_files_go_to_the_observers():
    seen = {}
    run = SimpleNamespace(
        observers=[object()], add_artifact=lambda path, name: seen.setdefault(name, Path(path).read_bytes())
    )
    assert lab.save(run, pd.DataFrame({"a": [1]}), {"b": 2}, {}) is None
    assert seen == {"results.csv": b"a\n1\n", "summary.json": b'{\n  "b": 2\n}\n'}


def test_the_sql_observer_is_spared_the_summary():
    observer = border.SqlObserver.create_from(engine=None, session=None)
    observer.run, observer.save = SimpleNamespace(), lambda: None
    run = SimpleNamespace(result={"gamma": np.float64(0.5)}, observers=[observer])
    command_line.store_plain_result(run)
    assert run.result == {"gamma": 0.5}
    observer.completed_event(stop_time=None, result=run.result)
    assert (observer.run.result, observer.run.status) == (None, "COMPLETED")


# ---------------------------------------------------------------- reading


def store(folder: Path, name: str = "", content: bytes | None = None) -> Path:
    """A run's folder in which the file `name` has this content, or is missing."""
    files: dict[str, bytes | None] = {
        "results.csv": b"hidden,error\n4,0.5\n",
        "summary.json": b"{}",
        "config.json": b'{"__doc__": "text"}',
        "run.json": b'{"status": "COMPLETED"}',
    }
    if name:
        files[name] = content
    folder.mkdir()
    write_all(folder, {name: content for name, content in files.items() if content is not None})
    return folder


@one_case
@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("results.csv", None, r"results.csv cannot be read \(No such file"),
        ("results.csv", b"", r"results.csv cannot be read \(No columns"),
        ("results.csv", b'a,b\n"1', r"results.csv cannot be read"),
        ("summary.json", None, r"summary.json cannot be read"),
        ("summary.json", b"{", r"summary.json cannot be read"),
        ("summary.json", b"\xff", r"summary.json cannot be read"),
        ("config.json", b"[]", r"config.json cannot be read \(no JSON object\)"),
        ("run.json", None, r"run.json cannot be read"),
        ("run.json", b'{"status": "FAILED"}', r"a completed run; this one is FAILED"),
        ("run.json", b"{}", r"a completed run; this one is None"),
    ],
)
def test_a_run_that_cannot_be_read_is_named(tmp_path, name, content, complaint):
    run = store(tmp_path / "7", name, content)
    with pytest.raises(lab.BadConfig, match=complaint) as error:
        lab.load_run(run)
    assert str(error.value).startswith(f"runs={brief(str(run))}: must be a")
    assert "\n" not in str(error.value)


def test_a_run_that_was_cut_is_called_so_before_its_missing_results(tmp_path):
    run = store(tmp_path / "7", "run.json", b'{"status": "INTERRUPTED"}')
    (run / "results.csv").unlink()
    with pytest.raises(lab.BadConfig, match=r"a completed run; this one is INTERRUPTED and has no results$"):
        lab.load_run(run)


def test_a_whole_run_is_read(tmp_path):
    results, summary, config = lab.load_run(store(tmp_path / "7"))
    assert results.to_dict("list") == {"hidden": [4], "error": [0.5]}
    assert (summary, config) == ({}, {})


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    lab.require_writable(tmp_path / "a" / "b", "out", "")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_progress_is_quiet_without_a_terminal(capsys):
    assert list(lab.progress(range(3), "count")) == [0, 1, 2]
    with lab.progress(None, "count", total=2) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_config_that_is_no_dataclass_is_refused():
    class Lost(lab.Options):
        n: int = lab.integer(3, help="x")

    for make in (Lost, lambda: lab.experiment("lost", Lost)):
        with pytest.raises(ValueError, match="Lost: must be a frozen dataclass"):
            make()
