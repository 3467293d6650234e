"""A search that is killed, at any moment, ends as if it had not been."""

import importlib
import itertools
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import call_in_a_process
from looping import SAVE_EVERY, Noisy, fit, loader
from regression import METHODS, state, wrapped

from slth import Ticket, files, search
from slth.search import IteRand
from slth.threads import one_torch_thread


def searched(folder, name):
    """A whole search with all kinds of dice, its checkpoint in the folder: what it found, as bytes."""
    method = METHODS[name]
    model = wrapped(dropout=0.2)
    method = replace(method, every=4) if isinstance(method, IteRand) else method
    fit(model, loader(), method=method, checkpoint=folder / "c", save_every=SAVE_EVERY)
    return b"".join(tensor.numpy().tobytes() for tensor in state(model).values()) + Ticket.of(model).to_bytes()


def killed_at_batch(number):
    """Die as a batch is made."""
    original, calls = Noisy.__getitem__, itertools.count()
    Noisy.__getitem__ = lambda self, index: die() if next(calls) == number else original(self, index)


def killed_at_write(number, before):
    """Die in a checkpoint's write: as half of it is written, as all of it is, or as it has just taken its place."""
    original, calls = (os.replace if before == "replaced" else os.fsync), itertools.count()

    def call(*args):
        mine = next(calls) // (1 if before == "replaced" else 2) == number  # the folder is synchronised, too
        if before == "replaced":
            original(*args)
        elif mine and before == "torn":
            os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
        if mine:
            die()
        original(*args) if before != "replaced" else None

    setattr(os, "replace" if before == "replaced" else "fsync", call)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = {
    "first batch": (lambda: killed_at_batch(0), 0),
    "some batch": (lambda: killed_at_batch(203), 10),
    "last batch": (lambda: killed_at_batch(355), 20),
    "first write, torn": (lambda: killed_at_write(0, "torn"), 0),
    "first write, written": (lambda: killed_at_write(0, "written"), 0),
    "first write, replaced": (lambda: killed_at_write(0, "replaced"), 0),
    "third write, torn": (lambda: killed_at_write(2, "torn"), 5),
    "third write, written": (lambda: killed_at_write(2, "written"), 5),
    "last write, replaced": (lambda: killed_at_write(5, "replaced"), 24),
}


def in_child(work, *args):
    """Do work in a process of its own, a copy of this one: its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*args)
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child):
    """The exit code of a child, -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def find(folder, name):
    (folder / "found").write_bytes(searched(folder, name))


def search_and_die(folder, name, moment):
    MOMENTS[moment][0]()
    searched(folder, name)


def kill_searches(folder):
    """Every kind of search, killed at some moments and run again in processes of their own, ends as if it had not."""
    moments = itertools.cycle(MOMENTS)
    for name in search.METHODS:
        whole = folder / name
        whole.mkdir()
        assert ended(in_child(find, whole, name)) == 0
        for moment in itertools.islice(moments, 2):
            parts = folder / f"{name}, {moment}"
            parts.mkdir()
            assert ended(in_child(search_and_die, parts, name, moment)) == -signal.SIGKILL, parts
            left = {file.name for file in parts.iterdir()}
            assert len(left - {"c"}) == ("torn" in moment or "written" in moment), parts
            step = step_of(parts / "c") if "c" in left else 0
            assert step == MOMENTS[moment][1], parts
            assert ended(in_child(find, parts, name)) == 0
            same(whole, parts)


def step_of(path):
    return json.loads(files.read(path, "checkpoint", [1])[1]["rest"])["step"]


def kill_at_any_time(folder, name="iterand"):
    """One search killed again and again, later and later, until it gets to its end."""
    whole, parts = folder / "whole", folder / "parts"
    for path in (whole, parts):
        path.mkdir()
    assert ended(in_child(find, whole, name)) == 0
    delay, kills = 0.02, 0
    while True:
        child = in_child(find, parts, name)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        if ended(child) == 0:
            break
        delay, kills = 1.4 * delay, kills + 1
    assert kills > 1
    same(whole, parts)


def same(whole, parts):
    assert (parts / "found").read_bytes() == (whole / "found").read_bytes(), parts
    assert (parts / "c").read_bytes() == (whole / "c").read_bytes(), parts
    assert sorted(file.name for file in parts.iterdir()) == ["c", "found"], parts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_a_killed_search_ends_as_if_it_had_not_been(tmp_path):
    assert call_in_a_process(__file__, "as_a_process", str(tmp_path)) == ""


def as_a_process(folder):
    importlib.import_module("torch._dynamo")  # every optimiser does: once, before processes are forked
    with one_torch_thread():
        kill_searches(Path(folder))
        kill_at_any_time(Path(folder))
