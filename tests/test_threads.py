import os
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

from slth.processors import processors
from slth.threads import cores, in_parallel, one_torch_thread


def test_at_least_one_core():
    assert cores() >= 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_a_containers_quota_counts(files, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("slth.processors.CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert processors() == expected


@given(st.integers(0, 300), st.sampled_from([None, 1, 2, 3, 7]))
def test_every_item_is_worked_on_once(count, threads):
    parts = []
    in_parallel(parts.append, count, threads)
    items = sorted(i for part in parts for i in range(count)[part])
    assert items == list(range(count))


def test_one_thread_works_in_one_piece_where_it_is_called():
    calls = []
    in_parallel(lambda part: calls.append((part, threading.current_thread())), 100, 1)
    assert calls == [(slice(0, 100), threading.current_thread())]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_work_at_the_same_time_and_are_no_more_than_asked_for(threads):
    together = threading.Barrier(threads, timeout=60)  # passes only where that many are at work at once
    names = set()

    def work(part):
        names.add(threading.current_thread().name)
        together.wait()

    in_parallel(work, 8 * threads, threads)
    assert len(names) == threads


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_thread_is_raised(threads):
    def work(part):
        if part.start <= 50 < part.stop:
            raise KeyError(50)

    with pytest.raises(KeyError, match="50"):
        in_parallel(work, 100, threads)


def test_one_torch_thread_inside_and_as_before_outside():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3

        with pytest.raises(KeyError), one_torch_thread():
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_work_may_be_shared_again_from_within():
    counts = []

    def outer(part):
        for _ in range(part.start, part.stop):
            in_parallel(lambda inner: counts.append(inner.stop - inner.start), 10, 2)

    in_parallel(outer, 30, 3)
    assert sum(counts) == 300


def test_calls_from_several_threads_do_not_wait_for_each_other_in_vain():
    counts = [[] for _ in range(6)]
    callers = [
        threading.Thread(target=in_parallel, args=(lambda part, c=c: c.append(part.stop - part.start), 100, 3))
        for c in counts
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert [sum(c) for c in counts] == [100] * 6


def test_threads_that_stay_have_the_number_of_torch_threads_of_their_caller():
    before = torch.get_num_threads()
    together = threading.Barrier(2, timeout=60)  # the helper takes part each time

    def work(part):
        seen.append(torch.get_num_threads())
        together.wait()

    try:
        for wanted in (1, 3, 2, 1):
            torch.set_num_threads(wanted)
            seen = []
            in_parallel(work, 2, 2)
            assert seen == [wanted] * 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own():
    program = """
import os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
from slth.threads import in_parallel

def check():
    together = threading.Barrier(2, timeout=60)
    in_parallel(lambda part: together.wait(), 2, 2)

check()
child = os.fork()
check()
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@one_case
@pytest.mark.parametrize(("wanted", "found"), [("1", 1), ("100000", None), ("", None), ("0", None), ("two", None)])
def test_as_many_cores_as_openmp_may_use(monkeypatch, wanted, found):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    here = cores()
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert cores() == (here if found is None else found)


ENDS_AT_ONCE = """
import torch
import slth
from slth import kernels
from slth.weights import inits
from slth.threads import in_parallel

in_parallel(lambda part: inits.normal((40, 40), 1.0, seed=part.start, name="w"), 64, 4)
model = slth.wrap(torch.nn.Linear(16, 16), weights="signed_constant", seed=0)
for impl in ("reference", "triton"):
    with kernels.use(impl):
        model(torch.ones(2, 16)).square().mean().backward()
"""


@pytest.mark.parametrize("tries", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_process_that_ends_at_once_ends_well(tries):
    """Helpers idle or just back from work, torch's threads started, a backward pass behind it: status 0, no word."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", ENDS_AT_ONCE]
    for _ in range(tries):
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
