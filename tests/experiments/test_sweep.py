"""Whole sweeps: what is made, retried, noticed and gathered."""

import json
import re
import shutil
import socket
import sys
import threading

import pytest
from sweeping import leftovers, needs_ray, run_folders, sweep, sweep_here, timeless
from tables import one_case

from slth.experiments import lab
from slth.experiments.sweeps import cluster

GRID = ("grid.hidden=[8,4]", "grid.seed=[0,1]")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    return folder, sweep(folder, *GRID, "folder=out")


def test_a_sweep_makes_every_run_and_gathers_in_the_order_of_the_grid(swept):
    folder, done = swept
    assert (done.returncode, done.stderr) == (0, "")
    told = ["results: out/results.csv", "over seeds: out/statistics.csv", "page: out/index.html"]
    assert done.stdout.splitlines() == ["4 runs, 0 of them finished: out", *told]
    table = timeless(folder / "out" / "results.csv")
    assert table[0] == ["run_id", "config.hidden", "seed", "hidden", "draw", "error"]
    assert [row[1:5] for row in table[1::3]] == [[h, s, h, "0"] for h in "84" for s in "01"]
    assert table[2][5] == repr(0.1 / 8 + 1 / 3)
    runs = timeless(folder / "out" / "runs.csv")
    assert runs[0] == ["run_id", "hidden", "seed", "status", "config"]
    assert [row[3] for row in runs[1:]] == ["COMPLETED"] * 4
    assert json.loads(runs[2][4]) == {"hidden": 8, "seed": 1}
    assert "summary.seconds,seconds,status,config" in (folder / "out" / "runs.csv").read_text()
    assert leftovers(folder / "out") == []


def test_a_sweeps_run_is_a_run_like_any_other(swept):
    folders = run_folders(swept[0] / "out")
    assert len(folders) == 4
    for folder in folders:
        results, _, config = lab.load_run(folder)
        assert results["hidden"].unique().tolist() == [config["hidden"]]
        for log in ("log.txt", "cout.txt"):
            assert f"results: {folder / 'results.csv'}" in (folder / log).read_text().splitlines()
        run = json.loads((folder / "run.json").read_text())
        assert run["meta"]["options"]["--id"] == folder.name
        assert (swept[0] / "out" / run["experiment"]["sources"][0][1]).is_file()


def test_the_page_needs_nothing_else(swept):
    page = (swept[0] / "out" / "index.html").read_text()
    assert "4 of 4 runs are completed" in page
    assert all(f'<a href="{run.name}/">' in page for run in run_folders(swept[0] / "out"))
    assert "http" not in page
    assert "<script" not in page


def test_the_same_command_makes_nothing_twice_and_a_larger_grid_the_rest(swept, tmp_path):
    folder = shutil.copytree(swept[0], tmp_path, dirs_exist_ok=True)
    before = {run: (run / "run.json").read_bytes() for run in run_folders(folder / "out")}
    tables = {name: (folder / "out" / name).read_bytes() for name in ("results.csv", "runs.csv")}
    assert sweep_here(folder, *GRID, "folder=out", "address=127.0.0.1:1").returncode == 0  # no cluster is asked for
    assert {name: (folder / "out" / name).read_bytes() for name in tables} == tables
    larger = sweep_here(folder, "grid.hidden=[8,4]", "grid.seed=[0,1,2]", "folder=out")
    assert (larger.returncode, larger.stderr) == (0, "")
    assert len(run_folders(folder / "out")) == 6
    assert {run: (run / "run.json").read_bytes() for run in before} == before


def test_what_two_grids_gather_in_one_folder_is_of_one_of_them(tmp_path):
    grids = [("grid.hidden=[8,4]",), ("grid.hidden=[4,2]", "grid.seed=[0,1]")]
    assert [sweep_here(tmp_path, *grid, "folder=out").returncode for grid in grids] == [0, 0]
    out = tmp_path / "out"
    assert len(run_folders(out)) == 5  # hidden=4, seed=0 is a run of both

    def gathered():
        tables = [timeless(out / name)[1:] for name in ("results.csv", "runs.csv")]
        linked = re.findall(r'<a href="([0-9a-f]{16})/">', (out / "index.html").read_text())
        return [list(dict.fromkeys(row[0] for row in table)) for table in tables] + [linked]

    for grid, size in zip(grids, (2, 4), strict=True):
        assert len(set(map(tuple, gathered()))) == 1
        again = sweep_here(tmp_path, *grid, "folder=out", "address=127.0.0.1:1")
        assert (again.returncode, again.stderr) == (0, "")
        assert [len(ids) for ids in gathered()] == [size] * 3
    assert "other runs had been gathered there before" in again.stdout


def test_failed_runs_are_retried_and_named_and_the_others_made(tmp_path):
    (tmp_path / "notes").mkdir()
    runs = ("grid.end=['well','crash','die']", "base.hidden=8", f"base.notes={tmp_path / 'notes'}", "retries=1")
    done = sweep_here(tmp_path, *runs, "folder=out")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("2 of 3 runs failed; run ")
    assert "ValueError: it broke at 8 (log: " in line
    assert "end=die" in line  # exit status 0, but the run is marked as running
    notes = list((tmp_path / "notes").iterdir())
    assert len(notes) == 1 + 2 + 2
    assert {note.read_text() for note in notes} == {"1 "}  # threads, and no GPU where none was asked for
    assert len(run_folders(tmp_path / "out")) == 1
    assert [row[2] for row in timeless(tmp_path / "out" / "runs.csv")[1:]] == ["COMPLETED", "FAILED", "FAILED"]
    assert "1 of 3 runs are completed, 2 failed" in (tmp_path / "out" / "index.html").read_text()
    assert "it broke" in "".join(log.read_text() for log in (tmp_path / "out" / ".failed").iterdir())


def test_a_run_that_fails_once_is_made_by_the_second_attempt(tmp_path):
    (tmp_path / "notes").mkdir()
    done = sweep_here(tmp_path, "base.end='crash once'", f"base.notes={tmp_path / 'notes'}", "folder=out")
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "out" / ".failed").iterdir()) == []


def test_a_changed_result_is_noticed_moved_aside_and_made_again(swept, tmp_path):
    shutil.copytree(swept[0], tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    table = timeless(out / "results.csv")
    ids = dict.fromkeys(row[0] for row in table[1:])
    names = ("results.csv", "run.json", "summary.json")
    results, run, summary = (out / one / name for one, name in zip(ids, names, strict=False))
    results.write_bytes(results.read_bytes().replace(b"8", b"9", 1))
    run.write_bytes(run.read_bytes()[:-40])
    summary.unlink()
    done = sweep_here(tmp_path, *GRID, "folder=out")
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for line, path in zip(lines, (results, run, summary), strict=True):
        assert path.parent.name in line
        assert path.name in line
    assert len(list((out / ".corrupt").iterdir())) == 3
    assert timeless(out / "results.csv") == table


@needs_ray
def test_a_refused_run_or_address_leaves_no_runs(tmp_path):
    done = sweep_here(tmp_path, "grid.hidden=[4,0]", "folder=out")
    assert (done.returncode, done.stderr) == (1, "run 2 of 2 (hidden=0): hidden=0: must be an int >= 1\n")
    assert not (tmp_path / "out").exists()
    done = sweep(tmp_path, "grid.hidden=[4]", "folder=out", "address=127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("address=127.0.0.1:1: no cluster answers there (")
    assert len(done.stderr.splitlines()) == 1
    assert run_folders(tmp_path / "out") == []


def test_a_sweep_of_the_defaults_is_one_run_and_done_when_it_is_there(tmp_path):
    done = sweep_here(tmp_path, "folder=out")
    assert done.returncode == 0, done.stderr
    assert len(run_folders(tmp_path / "out")) == 1
    again = sweep_here(tmp_path, "folder=out")
    assert again.stdout.splitlines()[0] == "1 runs, 1 of them finished: out"


@one_case
@pytest.mark.parametrize("address", ["garbage", "host:", ":1", "host:one"])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(lab.Refused, match="must be host:port of a cluster"):
        cluster._require_open(address)


@needs_ray
@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.0 400 Bad request\r\n", b"", None], ids=["another", "hangs up", "silent"]
)
def test_an_address_where_something_else_listens_is_refused_before_ray_tries_it(greeting, monkeypatch):
    monkeypatch.setattr(cluster, "REACH_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with listener.accept()[0] as connection:
                if greeting is None:
                    connection.recv(1000)
                    done.wait()
                elif greeting:
                    connection.recv(1000)
                    connection.sendall(greeting)

        done = threading.Event()
        other = threading.Thread(target=answer, daemon=True)
        other.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(lab.Refused, match="no cluster answers there"):
            cluster._require_open(address)
        done.set()
        other.join()


def test_only_a_cluster_needs_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = sweep_here(tmp_path, "folder=out")
    assert (done.returncode, done.stderr) == (0, "")
    done = sweep_here(tmp_path, "engine=ray", "base.hidden=8")
    assert done.returncode == 1
    assert done.stderr == "engine=ray and address need Ray, which is not installed: pip install 'slth[cluster]'\n"
    done = sweep_here(tmp_path, "engine=processes", "address=127.0.0.1:1")
    assert done.stderr == "engine='processes': must be ray, or left out, with address\n"
