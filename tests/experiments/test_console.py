"""Output that cannot be written fails nothing."""

import io
import sys

import pytest

from slth import console


class Full(io.RawIOBase):
    """A file on a full disk."""

    def writable(self):
        return True

    def write(self, data):
        raise OSError(28, "No space left on device")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [closed, lambda: io.TextIOWrapper(Full(), write_through=True)], ids=["closed", "full"])
def test_what_cannot_be_written_is_dropped(make):
    stream = console.Forgiving(make())
    print("a line", file=stream, flush=True)
    stream.writelines(["two", "more"])
    assert stream.write("four") == 4


def test_letters_that_an_encoding_lacks_are_escaped():
    raw = io.BytesIO()
    stream = console.Forgiving(io.TextIOWrapper(raw, "latin-1", newline=""))
    print("dépôt 数 \udcff", file=stream, flush=True)
    assert raw.getvalue() == b"d\xe9p\xf4t \\u6570 \\udcff\n"


def test_streams_that_are_missing_are_replaced_once(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    console.forgive()
    first = sys.stdout, sys.stderr
    console.forgive()
    assert (sys.stdout, sys.stderr) == first
    print("nowhere")
    print("here", file=sys.stderr)
    assert sys.stderr.getvalue() == "here\n"
    sys.stdout.close()
