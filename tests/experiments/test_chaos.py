"""Sweeps to which things happen: they end with the same table, byte for byte but for times, and nothing half-written.

At full size with `-m slow`; a small version of each runs always.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from sweeping import ended, leftovers, needs_ray, run_folders, start, sweep, sweep_here, timeless, wait_for

from slth.experiments import lab
from slth.weights import inits

SIZES = [6, pytest.param(24, marks=pytest.mark.slow)]


def grid(runs, wait=0.2):
    return f"grid.seed={list(range(runs))}", f"base.wait={wait}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The table of a sweep to which nothing happens, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")
    made = {}

    def table(*arguments):
        if arguments not in made:
            done = sweep_here(folder, *arguments, f"folder=out{len(made)}")
            assert (done.returncode, done.stderr) == (0, "")
            made[arguments] = timeless(folder / f"out{len(made)}" / "results.csv")
        return made[arguments]

    return table


def require_whole(folder, table, runs):
    """All runs are there, whole and none twice, the table is the undisturbed one, and nothing else is left."""
    assert timeless(folder / "results.csv") == table
    assert len({row[0] for row in table[1:]}) == len(run_folders(folder)) == runs
    assert len(table) == 1 + 3 * runs  # three rows a run
    for run in run_folders(folder):
        lab.load_run(run)
    assert leftovers(folder) == []


@needs_ray
@pytest.mark.parametrize("runs", SIZES)
def test_a_node_dies(runs, nodes, undisturbed, tmp_path):
    gates, notes, first = tmp_path / "gates", tmp_path / "notes", runs // 3
    gates.mkdir()
    notes.mkdir()

    def open_gates(seeds):
        for seed in seeds:
            (gates / str(seed)).touch()

    def held():
        return [note for note in notes.iterdir() if int(note.name.split("-")[1]) >= first]

    arguments = (*grid(runs), f"base.gates={gates}", f"base.notes={notes}")
    open_gates(range(first))
    try:
        with start(tmp_path, *arguments, "folder=out", f"address={nodes.address}") as process:
            wait_for(lambda: len(held()) == 2)  # one on each node, for each has one processor
            assert len(run_folders(tmp_path / "out")) == first
            nodes.kill_one()
            wait_for(lambda: not all(alive(note.name.split("-")[-1]) for note in held()))
            open_gates(range(first, runs))
            done = ended(process)
    finally:
        nodes.add_one()
    assert (done.returncode, done.stderr) == (0, "")
    assert "results: out/results.csv" in done.stdout
    assert len(list(notes.iterdir())) > runs  # what went on where the node died was begun again
    require_whole(tmp_path / "out", undisturbed(*arguments), runs)


KILLS = [(1, True), pytest.param((20, False), marks=pytest.mark.slow)]


@needs_ray
@pytest.mark.parametrize("kills", KILLS, ids=["once on a cluster", "20 times here"])
def test_the_sweep_itself_is_killed_and_started_again(kills, nodes, undisturbed, tmp_path):
    number, joined = kills
    runs = 6 if joined else 80
    notes = tmp_path / "notes"
    notes.mkdir()
    arguments = (*grid(runs, wait=0.5), f"base.notes={notes}")
    address = [f"address={nodes.address}"] if joined else []
    moments = inits.uniform((number,), 5.0, seed=0, name="moments").double() + 5.0  # seconds, start-up counted
    cut = 0
    for moment in moments.tolist():
        with start(tmp_path, *arguments, "folder=out", *address) as process:
            if joined:
                wait_for(lambda: len(list(notes.iterdir())) >= 3)  # one run at least has ended
            else:
                time.sleep(moment)
            process.kill()
        cut += process.returncode == -9
        for run in run_folders(tmp_path / "out") if (tmp_path / "out").exists() else []:
            lab.load_run(run)  # whatever stands under a name is whole, at any moment
    assert cut >= max(1, number // 2)  # the others had ended before
    done = sweep(tmp_path, *arguments, "folder=out", *address)
    assert (done.returncode, done.stderr) == (0, "")
    require_whole(tmp_path / "out", undisturbed(*arguments), runs)
    wait_for(lambda: not any(alive(note.name.split("-")[-1]) for note in notes.iterdir()), seconds=30)


def alive(pid):
    """Whether the process is a run still: other processes may have its number by now."""
    try:
        return "server.py" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_a_sweep_is_interrupted_and_its_runs_and_server_are_killed(undisturbed, tmp_path):
    notes, gates = tmp_path / "notes", tmp_path / "gates"
    notes.mkdir()
    gates.mkdir()
    (gates / "0").touch()  # no other run ends before its gate is open
    arguments = (*grid(3, wait=0), f"base.notes={notes}", f"base.gates={gates}")

    def begun(seed):
        return sorted(int(note.name.split("-")[2]) for note in notes.iterdir() if note.name.split("-")[1] == seed)

    with start(tmp_path, *arguments, "folder=out", "workers=2") as process:
        wait_for(lambda: begun("1") and begun("2"))
        os.kill(begun("1")[0], signal.SIGKILL)  # a run that crashes is tried again
        wait_for(lambda: len(begun("1")) == 2)
        process.send_signal(signal.SIGINT)
        done = ended(process)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted")
    wait_for(lambda: not any(alive(pid) for pid in begun("1") + begun("2")))
    assert len(run_folders(tmp_path / "out")) == 1
    with start(tmp_path, *arguments, "folder=out", "workers=2") as process:
        wait_for(lambda: len(begun("1")) == 3 and len(begun("2")) == 2)
        servers = {parent_of(begun(seed)[-1]) for seed in "12"}
        os.kill(*servers, signal.SIGKILL)  # another is started, and the runs are made again
        wait_for(lambda: len(begun("1")) == 4 and len(begun("2")) == 3)
        process.terminate()
        done = ended(process)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (143, "interrupted by SIGTERM")
    wait_for(lambda: not any(alive(pid) for pid in begun("1") + begun("2")))
    assert len(begun("0")) == 1
    for seed in "12":
        (gates / seed).touch()
    assert sweep_here(tmp_path, *arguments, "folder=out").returncode == 0
    require_whole(tmp_path / "out", undisturbed(*arguments), 3)


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().split()[3])


@pytest.mark.parametrize("runs", SIZES)
def test_two_sweeps_in_one_folder(runs, undisturbed, tmp_path):
    arguments = grid(runs)
    with (
        start(tmp_path, *arguments, "folder=out") as one,
        start(tmp_path, *arguments, "folder=out") as other,
    ):
        ends = [ended(process) for process in (one, other)]
    assert [(done.returncode, done.stderr) for done in ends] == [(0, "")] * 2
    require_whole(tmp_path / "out", undisturbed(*arguments), runs)


# ---------------------------------------------------------------- disks


@contextmanager
def disk(folder, size):
    """A file system of its own in memory, mounted there."""
    folder.mkdir()
    made = mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*arguments):
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)


def contents(folder):
    return {path: path.read_bytes() for run in run_folders(folder) for path in run.iterdir()}


@pytest.mark.parametrize("runs", SIZES)
def test_the_disk_is_full(runs, tmp_path):
    out = tmp_path / "out"
    notes = tmp_path / "notes"
    notes.mkdir()
    full_size = (f"base.block={3_000_000 // runs}", f"base.notes={notes}")
    arguments = (*grid(runs, wait=0), *full_size, "folder=out")
    with disk(out, "2m"):
        full = sweep_here(tmp_path, *arguments)
        assert full.returncode == 1
        assert "No space left on device" in full.stderr
        assert len(full.stderr.splitlines()) == 1
        begun = [note.name.split("-")[1] for note in notes.iterdir()]
        assert len(begun) == len(set(begun))  # nothing is tried again on a full disk
        finished = contents(out)
        assert 0 < len(run_folders(out)) < runs
        assert mount("-o", "remount,size=32m", str(out)).returncode == 0
        done = sweep_here(tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(run_folders(out)) == runs
        assert finished.items() <= contents(out).items()
        require_whole(out, timeless(out / "results.csv"), runs)


def test_the_folder_is_read_only(tmp_path):
    out = tmp_path / "out"
    with disk(out, "8m"):
        assert sweep_here(tmp_path, *grid(2), "folder=out").returncode == 0
        finished = contents(out)
        assert mount("-o", "remount,ro", str(out)).returncode == 0
        refused = sweep_here(tmp_path, *grid(3), "folder=out")
        assert refused.returncode == 1
        assert (
            refused.stderr == "folder=out: cannot write there (Read-only file system); choose another with folder=DIR\n"
        )
        assert mount("-o", "remount,rw", str(out)).returncode == 0
        assert sweep_here(tmp_path, *grid(3), "folder=out").returncode == 0
        assert len(run_folders(out)) == 3
        assert finished.items() <= contents(out).items()
