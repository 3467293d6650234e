"""The lock on what the runs of a sweep share, which another process holds."""

import fcntl
import signal
import subprocess
import sys

import pytest

from slth.experiments.lab import sharing

HOLDER = """
import sys
from pathlib import Path
from slth.experiments.lab import sharing

sharing.FOLDER = Path(sys.argv[1])
with sharing.shared({"steps": 5}):
    print("locked", flush=True)
    sys.stdin.readline()
    raise FloatingPointError("loss of step 3: inf")
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """A process that has the lock."""
    monkeypatch.setattr(sharing, "FOLDER", tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            (path,) = tmp_path.glob("*.lock")
            with open(path, "ab") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield process
        finally:
            process.kill()


def test_a_run_that_is_killed_frees_the_lock(holder):
    holder.send_signal(signal.SIGKILL)
    with sharing.shared({"steps": 5}) as file:
        assert not file.exists()
    assert holder.wait(60) == -signal.SIGKILL


def test_training_that_diverges_is_not_repeated(holder):
    print(file=holder.stdin, flush=True)
    with pytest.raises(FloatingPointError, match=r"^loss of step 3: inf$"), sharing.shared({"steps": 5}):
        pytest.fail("another run has trained it")
    with sharing.shared({"steps": 6}) as file:
        assert not file.exists()
