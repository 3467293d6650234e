"""A sweep's folder, and what its loop makes of a cluster."""

import contextlib
import errno
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweeping import leftovers, runs_of

from slth.experiments import lab
from slth.experiments.sweeps import child, conduct, loop, machine
from slth.experiments.sweeps import cluster as on_ray
from slth.experiments.sweeps.client import Server, ServerLost
from slth.experiments.sweeps.store import Store

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


def test_a_run_that_another_sweep_has_made_meanwhile_is_not_begun(tmp_path):
    cluster, runs = Scripted([1], {"status": 1}), runs_of(seed=[0, 1])
    (tmp_path / runs[0].id).mkdir()
    assert drive(cluster, tmp_path, runs).keys() == {runs[1].id}
    assert set(cluster.submitted) == {runs[1].id}


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

    lost = on_ray.Cluster.__new__(on_ray.Cluster)
    lost._ray, lost._name = Gone(), "it"
    monkeypatch.setattr(on_ray, "HEAD_S", 0.0)
    monkeypatch.setattr(on_ray.time, "sleep", lambda seconds: None)
    for ask in (lost.capacity, lambda: lost.finished([], 1.0), lambda: lost.outcome(None)):
        with pytest.raises(lab.Refused, match=r"^it was lost \(ConnectionError: the head does not answer\); what"):
            ask()


def test_a_machine_has_as_many_slots_as_gpus_and_processors_allow(monkeypatch):
    monkeypatch.setattr(machine, "processors", lambda: 4)
    monkeypatch.setattr(machine, "_gpus", lambda: ["3", "5"])

    def slots(cpus, gpus, workers=None):
        with machine.machine(Server("none", "toy.py", cpus), cpus, gpus, workers) as here:
            return [devices for _, devices in here._free]

    assert slots(2, 0) == ["", ""]
    assert slots(2, 0, workers=3) == ["", "", ""]
    assert slots(1, 0.5) == ["3", "5", "3", "5"]
    assert slots(1, 0.4, workers=3) == ["3", "5", "3"]
    assert slots(1, 1) == ["3", "5"]
    assert slots(1, 2) == ["3,5"]
    with pytest.raises(lab.Refused, match="cpus=1 gpus=3: this machine has 4 processors and 2 GPUs, too few for one"):
        slots(1, 3)
    with pytest.raises(lab.Refused, match="cpus=5 gpus=0: this machine has 4 processors, too few for one run"):
        slots(5, 0)


def test_a_run_whose_server_cannot_be_reached_is_lost_and_its_slot_free(monkeypatch):
    def refuse(self, request, devices):
        raise ServerLost("no server")

    monkeypatch.setattr(Server, "send", refuse)
    with machine.machine(Server("none", "toy.py", 1), 1, 0, workers=1) as here:
        for _ in range(2):
            ticket = here.submit({})
            assert here.finished([ticket], 0.0) == [ticket]
            assert here.outcome(ticket) == {"lost": "no server"}


@pytest.mark.parametrize(
    ("axes", "shares"),
    [
        ({"seed": [0, 1]}, False),
        ({"seed": [0, 2], "seeds": [1, 2]}, False),
        ({"keep": [0.3, 0.5], "seed": [0, 1]}, True),
    ],
)
def test_runs_that_differ_only_in_their_seeds_share_nothing(axes, shares, tmp_path, monkeypatch):
    monkeypatch.setattr(conduct, "_engine", lambda server, sweep: contextlib.nullcontext())
    monkeypatch.setattr(conduct, "drive", lambda engine, store, runs, request, retries: request)
    sweep = SimpleNamespace(named=[], sql=None, retries=0)
    with contextlib.closing(Store(tmp_path)) as store:
        request = conduct._start_runs(store, None, sweep, runs_of(**axes), "version")
        assert request["shared"] == (str(store.shared) if shares else None)


class Unreliable:
    """A server that cannot be reached, or that ends before it has answered, or that has a run's exit status."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def send(self, request, devices):
        if self.answers[0] == "unreachable":
            raise ServerLost(self.answers.pop(0))
        return object()

    def outcome(self, connection):
        answer = self.answers.pop(0)
        return {"lost": answer} if isinstance(answer, str) else {"status": answer}


def outcomes(here, number):
    return [here.outcome(here.submit({})) for _ in range(number)]


def test_a_machine_whose_server_is_lost_again_and_again_ends_the_sweep():
    answers = ["unreachable"] * 4 + [1] + ["unreachable"] * 5
    here = machine.Machine(Unreliable(*answers), ["", ""])
    assert outcomes(here, 9)[4] == {"status": 1}
    with pytest.raises(lab.Refused, match=r"^unreachable; finished runs stay, and the same command continues"):
        outcomes(here, 1)


def test_a_server_that_ends_is_lost_once_for_all_its_runs():
    here = machine.Machine(Unreliable(*["ended"] * 15), [""] * 3)
    assert len(outcomes(here, 14)) == 14  # four servers with three runs each, and two runs
    with pytest.raises(lab.Refused, match=r"^ended; finished runs stay"):
        outcomes(here, 1)


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
    monkeypatch.setattr(on_ray.Cluster, "_await_head", lambda self: None)
    ray = TwoNodes()
    cluster = on_ray.Cluster(ray, "it", Server("none", "toy.py", 1), 1, 0, None)
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
        on_ray._start(ray, 1)
    assert calls == ["init", "shutdown", "init"]


def test_many_failures_are_three_and_where_the_rest_stand():
    runs = runs_of(seed=list(range(5)))
    line = conduct._failures(Path("out"), runs, {run.id: "why" for run in runs})
    assert line.startswith("5 of 5 runs failed; run 0000000000000000 (method=construction, seed=0): why; run ")
    assert line.endswith("; and 2 more; logs: out/.failed, all runs: out/index.html")
    assert line.count("why") == 3
