"""Sweeps: what is planned, refused, named, made, retried and gathered."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
from command_lines import launched
from helpers import EXPERIMENTS
from hypothesis import given
from hypothesis import strategies as st
from sweeping import TOY, leftovers, needs_ray, of_toy, run_folders, sweep, sweep_here, timeless, wait_for

from slth.experiments import lab, plot
from slth.experiments import sweep as script
from slth.experiments.lab import storage, values
from slth.experiments.sweeps import child, client, code, conduct, engine, gather, loop, page, plan
from slth.experiments.sweeps.client import Server, ServerLost, execute
from slth.experiments.sweeps.store import Store

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


def asked(**given):
    """What a sweep's config asks for."""
    return script.Config(**{"experiment": "approx_error", **given}).sweep


# ---------------------------------------------------------------- which runs


def test_the_first_key_of_a_grid_changes_slowest_and_later_ones_win():
    points = plan.unfold({"seed": 7, "d": 1}, [{"heads": 2}, {"d": 3}], {"hidden": [4, 8], "seed": 1})
    assert points == [
        {"seed": 1, "d": 1, "heads": 2, "hidden": 4},
        {"seed": 1, "d": 1, "heads": 2, "hidden": 8},
        {"seed": 1, "d": 3, "hidden": 4},
        {"seed": 1, "d": 3, "hidden": 8},
    ]


def test_no_grid_and_no_list_is_one_run():
    assert plan.unfold({"seed": 3}, [], {}) == [{"seed": 3}]


@given(st.dictionaries(st.text(), VALUES), VALUES)
def test_a_run_is_named_by_its_values_whatever_their_order(changed, value):
    names = {plan.identity("a", dict(order), "1") for order in (changed.items(), reversed(changed.items()))}
    assert len(names) == 1
    assert len(names.pop()) == 16
    other = {**changed, "one more": value}
    assert plan.identity("a", other, "1") != plan.identity("a", changed, "1")


def test_experiment_and_code_are_part_of_the_name():
    names = {plan.identity(*given) for given in (("a", {}, "1"), ("b", {}, "1"), ("a", {}, "2"))}
    assert len(names) == 3


def test_changed_code_is_another_version(tmp_path):
    path = tmp_path / "toy.py"
    versions = []
    for text in (TOY, TOY + "# changed\n", TOY):
        path.write_text(text)
        versions.append(code.version(path))
    assert versions[0] == versions[2] != versions[1]


HELPERS = {
    "beside": ("import helper\n", "helper.py"),
    "in a function": ("def main():\n    from helper import a\n", "helper.py"),
    "of a helper": ("import first\n", "helper.py"),
    "in a package": ("import package\n", "package/deep/module.py"),
    "without __init__": ("from namespace import part\n", "namespace/part.py"),
    "linked": ("import linked\n", "elsewhere/real.py"),
    "linked package": ("import linked_package\n", "elsewhere/package/module.py"),
    "on the path": ("import distant\n", "lib/distant.py"),
    "by a literal": ("import importlib\nimportlib.import_module('helper')\n", "helper.py"),
    "by a name": ("import importlib\nimportlib.import_module('hel' + 'per')\n", "helper.py"),
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder, with what a script may import, and what it does not."""
    others = {"first.py": "import helper\n", "package/__init__.py": "", "package/deep/__init__.py": ""}
    others |= {"elsewhere/package/__init__.py": "", "stranger.py": "", "notes.txt": ""}
    for name, text in {**others, **{name: "a = 1\n" for _, name in HELPERS.values()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "linked.py").symlink_to(tmp_path / "elsewhere" / "real.py")
    (tmp_path / "linked_package").symlink_to(tmp_path / "elsewhere" / "package")
    for folder in (tmp_path / "lib", tmp_path):
        monkeypatch.syspath_prepend(folder)
    return tmp_path


@pytest.mark.parametrize("kind", HELPERS)
def test_a_changed_helper_is_another_version(kind, project):
    imports, name = HELPERS[kind]
    (project / "toy.py").write_text(imports)
    before = code.version(project / "toy.py")
    (project / "stranger.py").write_text("b = 2\n") if kind != "by a name" else None
    (project / "notes.txt").write_text("other\n")
    assert code.version(project / "toy.py") == before
    (project / name).write_text("a = 2\n")
    assert code.version(project / "toy.py") != before


def test_what_has_been_imported_is_part_of_the_version(project):
    (project / "toy.py").write_text("")
    versions = {code.version(project / "toy.py", imported) for imported in ((), ("helper",), ("json", "pytest", "lab"))}
    assert len(versions) == 2


def test_the_version_does_not_depend_on_where_the_files_lie(project, tmp_path_factory, monkeypatch):
    (project / "toy.py").write_text("import helper, package\n")
    before = code.version(project / "toy.py")
    moved = shutil.copytree(project, tmp_path_factory.mktemp("moved") / "to", symlinks=True)
    monkeypatch.setattr(sys, "path", [str(moved), *(path for path in sys.path if not path.startswith(str(project)))])
    assert code.version(moved / "toy.py") == before


def test_the_version_covers_the_sources_and_not_the_sweeps_own(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    names = {name for name, _ in code._sources(path, ())}
    assert names >= {
        "slth/masking/masks.py",
        "slth/kernels/select/reference.py",
        "slth/experiments/lab/__init__.py",
        "script",
    }
    assert not {name for name in names if "sweep" in name}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"experiment": "approximate"}, "experiment='approximate': must be one of approx_error,"),
        ({"experiment": None}, "experiment=None: must be one of"),
        ({"grid": 3}, "grid=3: must be given key by key"),
        ({"grid": {"hidden": []}}, r"grid.hidden=\[\]: must be a value"),
        ({"runs": [3]}, r"runs=\[3\]: must be a list of configs"),
        ({"named": [3]}, r"named=\[3\]: must be the name"),
        ({"cpus": 0}, "cpus=0: must be an int >= 1"),
        ({"gpus": 1.5}, "gpus=1.5: must be a share"),
        ({"gpus": -1}, "gpus=-1: must be a finite number >= 0"),
        ({"retries": -1}, "retries=-1: must be an int >= 0"),
        ({"workers": 0}, "workers=0: must be an int >= 1"),
        ({"address": 3}, "address=3: must be host:port"),
        ({"sql": "runs.db"}, "sql='runs.db': must be a database's URL"),
        ({"folder": 3}, "folder=3: must be a folder"),
        ({"file": "none.yaml"}, "file='none.yaml': must be a YAML file"),
        ({"base": {"seed": {1}}}, "must be numbers, text, lists and None"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(lab.BadConfig, match=message):
        asked(**given)


def test_names_and_values_of_a_command_line():
    checked = asked(named="[smoke,learned]", grid={"method": "[construction,edge_popup]", "lr": 0.1})
    assert checked.named == ["smoke", "learned"]
    assert checked.points == [{"method": "construction", "lr": 0.1}, {"method": "edge_popup", "lr": 0.1}]


def test_each_grid_has_a_folder_of_its_own_and_the_same_grid_the_same():
    grids = [{"hidden": [4, 8], "seed": [0, 1]}, {"hidden": [8, 4], "seed": [0, 1]}, {"hidden": [4, 8]}]
    folders = [asked(grid=grid).folder for grid in [*grids, grids[0]]]
    assert folders[0] == folders[3]
    assert len(set(folders)) == 3
    assert all(folder.parent == storage.RUNS / "sweeps" for folder in folders)
    assert all(re.fullmatch("approx_error-[0-9a-f]{8}", folder.name) for folder in folders)
    assert asked(named="smoke").folder != asked().folder


def test_a_file_gives_what_the_command_line_leaves_open(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("experiment: constant\nretries: 5\ncpus: 2\nruns:\n- {d: 2}\n- {d: 4}\ngrid: {seed: [0, 1]}\n")
    checked = asked(file=str(path), experiment=None, cpus=3)
    assert (checked.script.stem, checked.retries, checked.cpus) == ("constant", 5, 3)
    assert checked.points == [{"d": d, "seed": seed} for d in (2, 4) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(["retries=2"], (2, 2, "h:1")), (["cpus=1", "address=None"], (5, 1, None)), ([], (5, 2, "h:1"))],
)
def test_a_default_given_on_the_command_line_wins_over_the_file(given, expected, tmp_path, monkeypatch):
    path = tmp_path / "sweep.yaml"
    path.write_text("experiment: constant\nretries: 5\ncpus: 2\naddress: 'h:1'\n")
    seen = []
    monkeypatch.setattr(conduct, "conduct", seen.append)
    assert launched("sweep", tmp_path, "with", f"file={path}", *given).returncode == 0
    assert [(one.retries, one.cpus, one.address) for one in seen] == [expected]


def test_a_seed_that_no_run_would_see_is_refused(tmp_path):
    refusal = r"seed=5: must be given for the runs, as base.seed=5 or grid.seed=[0,1]"
    done = launched("sweep", tmp_path, "with", "experiment=constant", "seed=5")
    assert (done.returncode, done.stderr) == (1, refusal + "\n")
    path = tmp_path / "sweep.yaml"
    path.write_text("experiment: constant\nseed: 5\n")
    with pytest.raises(lab.BadConfig, match=re.escape(refusal)):
        asked(file=str(path))


def test_a_file_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("grids: {seed: [0, 1]}\n")
    with pytest.raises(lab.BadConfig, match="a YAML file with the keys address, base"):
        asked(file=str(path))


# ---------------------------------------------------------------- the server that forks


@pytest.fixture
def server(tmp_path):
    """A server of the small experiment, which ends with the test."""
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    server = Server(f"test{os.getpid()}", str(path), 1)
    with server.connect() as stay:
        stay.sendall(b'{"do": "stay"}\n')
        yield server
    wait_for(lambda: not server.path.exists(), seconds=20)


def planned(server, points):
    return server.ask({"do": "plan", "cwd": os.getcwd(), "named": [], "points": points})[0]


def test_the_server_plans_and_refuses(server):
    answer = planned(server, [{"hidden": 4}, {"hidden": 8}, {"hidden": 8, "seed": 0}])
    assert [run["changed"] for run in answer["runs"]] == [{}, {"hidden": 8}]  # the third is the second
    assert answer["runs"][1]["config"]["end"] == "well"
    refused = planned(server, [{}, {"hidden": 0}])["refused"]
    assert refused == "run 2 of 2 (hidden=0): hidden=0: must be an int >= 1"
    assert planned(server, [{"hiden": 4}])["refused"].startswith(
        "run 1 of 1 (hiden=4): hiden=4: unknown key, did you mean hidden?"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_server_that_has_imported_torch_has_no_threads():
    server = Server(f"torch{os.getpid()}", str(EXPERIMENTS / "approx_error.py"), 1)
    with server.connect() as stay:
        stay.sendall(b'{"do": "stay"}\n')
        assert len(planned(server, [{}])["runs"]) == 1  # it has imported all by now
        commands = {path.parent: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
        (process,) = [place for place, command in commands.items() if server.token.encode() in command]
        assert "torch" in (process / "maps").read_text()
        assert len(list((process / "task").iterdir())) == 1
    wait_for(lambda: not server.path.exists(), seconds=20)


def test_a_server_that_ends_leaves_the_socket_of_the_next(server):
    server.forget(inode=server.path.stat().st_ino + 1)
    assert server.path.exists()


@pytest.fixture
def short(monkeypatch):
    """A folder of temporary files with a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "gettempdir", lambda: folder)
        yield Path(folder)


def test_a_socket_lies_in_a_short_folder(short, monkeypatch):
    assert client.own_folder().parent == short
    for name in ("a" * 60, "ü"):
        other = short / name
        other.mkdir()
        monkeypatch.setattr(tempfile, "gettempdir", lambda other=other: str(other))
        monkeypatch.setattr(client, "FALLBACKS", ("/nowhere", str(short)))
        assert client.own_folder().parent == short
        assert len(str(Server("0" * 12, "toy.py", 1).path)) < client.SOCKET_BYTES
        monkeypatch.setattr(client, "FALLBACKS", ("/nowhere",))
        with pytest.raises(OSError, match=f"TMPDIR={other}: must be a folder of at most [0-9]+ ASCII letters"):
            client.own_folder()


def test_rays_sockets_lie_in_a_short_folder_where_the_user_chose_none(short, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert engine._sessions() == str(short / "ray")
    monkeypatch.setenv("RAY_TMPDIR", "/elsewhere")
    assert engine._sessions() is None


@pytest.mark.parametrize("given", ["relative", "/nowhere/at/all"])
def test_a_sweep_names_its_temporary_folder_in_full(given, tmp_path, monkeypatch):
    (tmp_path / "relative").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", given)
    monkeypatch.setattr(tempfile, "tempdir", None)
    conduct._settle_temporary()
    assert os.path.isdir(os.environ["TMPDIR"])
    assert os.path.isabs(os.environ["TMPDIR"])
    assert (os.environ["TMPDIR"] == str(tmp_path / "relative")) == (given == "relative")


@needs_ray
def test_a_sweep_with_a_long_temporary_folder(tmp_path, monkeypatch):
    long = tmp_path / ("a" * 60) / ("b" * 60)
    long.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(long))
    done = sweep(tmp_path, "workers=1", "folder=out")
    assert done.returncode == 0, done.stderr
    assert len(run_folders(tmp_path / "out")) == 1


def test_a_folder_of_sockets_that_others_may_enter_is_refused(short):
    (short / f"slth-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(ServerLost, match="is no folder of this user alone"):
        Server("refused", "toy.py", 1).connect()


def test_a_run_is_forked_from_the_server_and_ends_with_the_connection_that_asked_for_it(server, tmp_path):
    place, notes = tmp_path / "place", tmp_path / "notes"
    place.mkdir()
    notes.mkdir()
    run = {"id": "a", "updates": {"wait": 60, "notes": str(notes)}, "place": str(place)}
    version = planned(server, [{}])["version"]
    request = {"do": "run", "cwd": str(tmp_path), "named": [], "version": version, "environment": {}, "sql": None}
    request |= run
    request["environment"] = {"CUDA_VISIBLE_DEVICES": ""}
    with server.connect() as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        wait_for(lambda: list(notes.iterdir()))
        pid = int(next(notes.iterdir()).name.split("-")[-1])
        os.kill(pid, 0)
        if sys.platform == "linux":
            parent = Path(f"/proc/{pid}/stat").read_text().split()[3]
            assert Path(f"/proc/{parent}/cmdline").read_text().split("\0")[2].endswith("server.py")
    wait_for(lambda: not alive(pid), seconds=20)
    assert json.loads((place / "a" / "run.json").read_text())["status"] == "RUNNING"


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_other_code_on_a_node_is_no_failure_of_the_run(server, tmp_path):
    outcome = execute(server, {"do": "run", "version": "other", "place": str(tmp_path), "gpus": 0})
    assert outcome["lost"].startswith(f"{socket.gethostname()} has other code: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "toy.py"]


def test_a_node_that_does_not_see_the_folder_says_so(server, tmp_path):
    version = planned(server, [{}])["version"]
    outcome = execute(server, {"do": "run", "version": version, "place": str(tmp_path / "elsewhere"), "gpus": 0})
    assert outcome["status"] == 1
    assert f"No such file or directory: '{tmp_path / 'elsewhere' / 'log.txt'}'" in outcome["lost"]
    assert socket.gethostname() in outcome["lost"]


def test_a_script_that_cannot_be_imported_is_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("from slth.experiments import lab\nraise RuntimeError('no such thing')\n")
    server = Server(f"broken{os.getpid()}", str(path), 1)
    with pytest.raises(ServerLost, match="RuntimeError: no such thing"):
        server.ask({"do": "plan"})
    server.forget()


# ---------------------------------------------------------------- the folder


def test_a_sweep_clears_away_what_the_dead_left_and_nothing_else(tmp_path):
    dead = (
        "import os, sys; from pathlib import Path; from slth.experiments.sweeps.store import Store;"
        "store = Store(Path(sys.argv[1])); store.place_for('b', 0); os.kill(os.getpid(), 9)"
    )
    living = Store(tmp_path)
    place = living.place_for("a", 0)
    killed = subprocess.run([sys.executable, "-c", dead, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert len(leftovers(tmp_path)) == 4
    other = Store(tmp_path)
    assert sorted(leftovers(tmp_path)) == sorted([place.name, f"{living.token}.lock", f"{other.token}.lock"])
    other.close()
    living.close()
    assert leftovers(tmp_path) == []


def test_what_is_gathered_replaces_all_that_was_gathered_before_and_nothing_else(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"mine")
    with contextlib.closing(Store(tmp_path)) as store:
        assert not store.publish({"results.csv": b"1", "a.png": b"1", "b.png": b"1"}, ["0a", "0b"])
        assert not store.publish({"results.csv": b"2", "b.png": b"2"}, ["0a", "0b", "0c"])
        assert store.publish({"results.csv": b"3", "b.png": b"3"}, ["0d"])
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".csv", ".png")}
    assert files == {"results.csv": b"3", "b.png": b"3", "mine.png": b"mine"}
    assert leftovers(tmp_path) == []


def test_a_corrupt_run_that_several_sweeps_meet_is_moved_once(tmp_path):
    (tmp_path / "a").mkdir()
    stores = [Store(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        remarks = list(pool.map(lambda store: store.examine("a"), stores))
    assert sum(remark is not None for remark in remarks) == 1
    assert len(list((tmp_path / ".corrupt").iterdir())) == 1
    for store in stores:
        store.close()


def test_a_run_that_nobody_waits_for_does_not_make_its_folder_anew(tmp_path):
    with pytest.raises(lab.Refused, match="gone: gone"):
        child.require_place(tmp_path / "gone")
    child.require_place(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_found_behind_other_errors(number):
    try:
        try:
            raise OSError(number, "no room")
        except OSError as error:
            raise lab.Refused("cannot write") from error
    except lab.Refused as refused:
        end = SystemExit("cannot write")
        end.__context__ = refused
    assert child.full_disk(end).errno == number
    assert child.full_disk(OSError(errno.ENOENT, "no such file")) is None


# ---------------------------------------------------------------- what the loop makes of a cluster


class Scripted:
    """A cluster whose room is told in advance, and whose runs end at once, each with the outcome."""

    def __init__(self, rooms, outcome):
        self.rooms, self.outcome_of_all, self.submitted = list(rooms), outcome, []

    def capacity(self):
        return self.rooms.pop(0) if len(self.rooms) > 1 else self.rooms[0]

    def submit(self, request):
        self.submitted.append(request["id"])
        return len(self.submitted)

    def finished(self, tickets, timeout_s):
        return tickets

    def outcome(self, ticket):
        return self.outcome_of_all


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE_S", 0.05)
    monkeypatch.setattr(loop, "TICK_S", 0.01)


def drive(cluster, folder, runs):
    with contextlib.closing(Store(folder)) as store:
        return loop.drive(cluster, store, runs, {}, retries=1)


def test_without_a_node_nothing_is_submitted_and_the_sweep_ends(impatient, tmp_path, capsys):
    cluster = Scripted([0], {"status": 1})
    with pytest.raises(lab.Refused, match="no node that a run fits on for 0 s; what is finished stands"):
        drive(cluster, tmp_path, runs_of(seed=[0, 1]))
    assert cluster.submitted == []
    assert capsys.readouterr().err.count("no node is left") == 1


def test_a_node_that_comes_in_time_is_used(impatient, tmp_path, capsys):
    cluster = Scripted([0, 2], {"status": 1})
    assert len(drive(cluster, tmp_path, runs_of(seed=[0, 1]))) == 2
    assert len(cluster.submitted) == 4  # each once more
    assert "no node is left" in capsys.readouterr().err


def test_where_there_is_no_terminal_a_line_tells_how_far_it_is(impatient, monkeypatch, tmp_path, capsys):
    drive(Scripted([1], {"status": 1}), tmp_path, runs_of(seed=[0, 1]))
    assert capsys.readouterr().out == ""  # not before a minute is over
    monkeypatch.setattr(loop, "NEWS_S", 0.0)
    drive(Scripted([1], {"status": 1}), tmp_path, runs_of(seed=[0, 1]))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "runs: 1 waiting, 1 running, 0 failed"
    assert told[-1] == "runs: 0 waiting, 1 running, 1 failed"


def test_a_full_disk_ends_the_sweep_at_once(tmp_path):
    cluster = Scripted([1], {"status": 1, "full": "a node: no space left"})
    with pytest.raises(OSError, match="a node: no space left"):
        drive(cluster, tmp_path, runs_of(seed=[0, 1]))
    assert len(cluster.submitted) == 1
    assert leftovers(tmp_path) == []


def test_a_cluster_that_is_gone_is_one_line(monkeypatch):
    class Gone:
        def __getattr__(self, name):
            raise ConnectionError("the head does not\nanswer")

    lost = engine.Cluster.__new__(engine.Cluster)
    lost._ray, lost._name = Gone(), "it"
    monkeypatch.setattr(engine, "HEAD_S", 0.0)
    monkeypatch.setattr(engine.time, "sleep", lambda seconds: None)
    for ask in (lost.capacity, lambda: lost.finished([], 1.0), lambda: lost.outcome(None)):
        with pytest.raises(lab.Refused, match=r"^it was lost \(ConnectionError: the head does not answer\); what"):
            ask()


class TwoNodes:
    """Of Ray's, what a cluster of two nodes needs; `tasks` are the options with which they were submitted."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self):
        self.tasks, self.outcomes = [], {}

    def nodes(self):
        return [{"NodeID": node, "Alive": True, "Resources": {"CPU": 2}} for node in ("good", "bad")]

    def get(self, ticket):
        return self.outcomes[ticket]

    def remote(self, work):
        def with_options(**given):
            return SimpleNamespace(
                options=lambda **more: with_options(**given, **more), remote=lambda *args: self.tasks.append(given)
            )

        return SimpleNamespace(options=with_options)


def test_a_node_that_is_not_fit_for_runs_is_avoided_after_two(monkeypatch, capsys):
    monkeypatch.setattr(engine.Cluster, "_await_head", lambda self: None)
    ray = TwoNodes()
    cluster = engine.Cluster(ray, "it", Server("none", "toy.py", 1), 1, 0, None)
    ray.outcomes = {"well": {"status": 0, "node": "bad"}, "no": {"lost": "other code", "node": "bad"}}
    for ticket in ("no", "well", "no"):
        cluster.outcome(ticket)
    assert cluster.capacity() == 4  # not twice on end
    assert cluster.outcome("no") == {"lost": "other code"}
    assert cluster.capacity() == 2
    cluster.submit({})
    assert ray.tasks[-1]["label_selector"] == {"ray.io/node-id": "!in(bad)"}
    assert capsys.readouterr().err == "a node is avoided where another has room: other code\n"
    ray.outcomes = {"no": {"lost": "no folder", "node": "good"}}
    for _ in range(2):
        cluster.outcome("no")
    assert cluster.capacity() == 4  # a bad node is better than none
    cluster.submit({})
    assert "label_selector" not in ray.tasks[-1]


@pytest.mark.parametrize("failures", [1, 2])
def test_ray_has_a_second_try_to_start(failures):
    calls = []

    def init(*given, **options):
        calls.append("init")
        if len(calls) <= 2 * failures - 1:
            raise RuntimeError("The current node timed out during startup.")

    ray = SimpleNamespace(init=init, shutdown=lambda: calls.append("shutdown"))
    line = (
        "Ray did not start .* twice: The current node timed out .*; the machine may be busy: run the same command again"
    )
    with pytest.raises(lab.Refused, match=line) if failures == 2 else contextlib.nullcontext():
        engine._start(ray, 1)
    assert calls == ["init", "shutdown", "init"]


def test_many_failures_are_three_and_where_the_rest_stand():
    runs = runs_of(seed=list(range(5)))
    line = conduct._failures(Path("out"), runs, {run.id: "why" for run in runs})
    assert line.startswith("5 of 5 runs failed; run 0000000000000000 (method=construction, seed=0): why; run ")
    assert line.endswith("; and 2 more; logs: out/.failed, all runs: out/index.html")
    assert line.count("why") == 3


# ---------------------------------------------------------------- whole sweeps


GRID = ("grid.hidden=[8,4]", "grid.seed=[0,1]")


@pytest.fixture(scope="module")
def swept(nodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    return folder, sweep(folder, *GRID, "folder=out", f"address={nodes.address}")


@needs_ray
def test_a_sweep_makes_every_run_and_gathers_in_the_order_of_the_grid(swept):
    folder, done = swept
    assert (done.returncode, done.stderr) == (0, "")
    told = ["4 runs, 0 of them finished: out", "results: out/results.csv", "page: out/index.html"]
    assert done.stdout.splitlines() == told
    table = timeless(folder / "out" / "results.csv")
    assert table[0] == ["run_id", "config.hidden", "seed", "hidden", "draw", "error"]
    assert [row[1:5] for row in table[1::3]] == [[h, s, h, "0"] for h in "84" for s in "01"]
    assert table[2][5] == repr(0.1 / 8 + 1 / 3)
    runs = timeless(folder / "out" / "runs.csv")
    assert runs[0] == ["run_id", "hidden", "seed", "status", "config"]
    assert [row[3] for row in runs[1:]] == ["COMPLETED"] * 4
    assert json.loads(runs[2][4]) == {"hidden": 8, "seed": 1}
    assert leftovers(folder / "out") == []


@needs_ray
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


@needs_ray
def test_the_page_needs_nothing_else(swept):
    page = (swept[0] / "out" / "index.html").read_text()
    assert "4 of 4 runs are completed" in page
    assert all(f'<a href="{run.name}/">' in page for run in run_folders(swept[0] / "out"))
    assert "http" not in page
    assert "<script" not in page


@needs_ray
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


@needs_ray
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


@pytest.mark.parametrize("address", ["garbage", "host:", ":1", "host:one"])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(lab.Refused, match="must be host:port of a cluster"):
        engine._require_open(address)


@needs_ray
@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.0 400 Bad request\r\n", b"", None], ids=["another", "hangs up", "silent"]
)
def test_an_address_where_something_else_listens_is_refused_before_ray_tries_it(greeting, monkeypatch):
    monkeypatch.setattr(engine, "REACH_S", 0.5)
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
            engine._require_open(address)
        done.set()
        other.join()


def test_without_ray_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = launched("sweep", tmp_path, *of_toy(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "a sweep needs Ray, which is not installed: pip install 'slth[cluster]'\n"


# ---------------------------------------------------------------- tables and figures


def test_time_columns_have_names_of_their_own():
    assert [gather.is_time(name) for name in ("took_s", "seconds", "seconds_mean", "errors", "s", "_seconds")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_cells_are_text_as_it_is_and_all_else_json():
    assert [gather.text(value) for value in (None, "a,b", 0.1, True, [1, 2])] == ["", "a,b", "0.1", "true", "[1, 2]"]


def runs_of(**axes):
    configs = plan.unfold({"method": "construction"}, [], axes)
    return [plan.Run(f"{n:016x}", config, config, config) for n, config in enumerate(configs)]


def errors_of(runs):
    """A table as approx_error's, with the widths of its curve as rows."""
    rows = [
        {"run_id": run.id, "hidden": hidden, "length": 4, "source": source, "side": "input", "d_in": 2}
        for run in runs
        for hidden in (4, 8)
        for source in range(3)
    ]
    table = pandas.DataFrame(rows)
    error = 2.0 ** -table["hidden"] * (1 + table["source"])
    return table.assign(error_mean=error, certificate=3 * error)


def test_seeds_and_the_tables_own_columns_are_drawn_together():
    runs = runs_of(seed=[0, 1, 2], hidden=[4, 8])
    assert list(gather.figures(runs, errors_of(runs))) == ["error_vs_width"]


def test_other_keys_are_series():
    runs = runs_of(keep=[0.3, 0.5], seed=[0, 1])
    measured = errors_of(runs).assign(keep=0.25)  # a column of the same name may hold what was measured
    for table in (errors_of(runs), measured):
        (figure,) = gather.figures(runs, table).values()
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels[:-1] == ["keep=0.3 (mean of 2 seeds)", "keep=0.5 (mean of 2 seeds)"]


def test_a_sweep_of_one_run_has_the_figures_of_the_run():
    runs = runs_of(seed=[3])
    (figure,) = gather.figures(runs, errors_of(runs)).values()
    assert "3 sources" in figure.axes[0].get_title()


def test_a_page_shows_what_is_text_as_text():
    row = {"run_id": "0", "notes": "<b>&", "status": "FAILED"}
    html = page.page("a<b", list(row), [row], {"0": "<i>"}, {"one.svg": b"<svg/>"}).decode()
    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert "data:image/svg+xml;base64,PHN2Zy8+" in html


def test_a_sweeps_folder_stands_for_its_finished_runs(tmp_path):
    (tmp_path / "runs.csv").write_text("run_id,status\n00b,COMPLETED\n00c,FAILED\n00a,COMPLETED\n")
    assert plot.places(str(tmp_path)) == [tmp_path / "00b", tmp_path / "00a"]
    assert plot.places([str(tmp_path / "00a")]) == [tmp_path / "00a"]
    (tmp_path / "runs.csv").write_text("run_id,status\n00c,FAILED\n")
    with pytest.raises(lab.BadConfig, match="must be a sweep with finished runs"):
        plot.places(str(tmp_path))
    (tmp_path / "runs.csv").write_text("")
    with pytest.raises(lab.BadConfig, match=r"its runs.csv cannot be read"):
        plot.places(str(tmp_path))


def test_a_list_of_names_is_split_and_all_else_left_alone():
    assert values.unbracketed("[a, 1,0.5 ,None]") == ["a", 1, 0.5, None]
    assert [values.unbracketed(value) for value in ("a,b", 3, [1], None)] == ["a,b", 3, [1], None]
