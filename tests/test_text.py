"""Text for language models: corpora, characters as tokens, the split, and windows."""

import hashlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slth.tasks import text as task

# ---------------------------------------------------------------- corpora


@pytest.fixture(scope="module")
def stdlib():
    return task.corpus("stdlib")


def test_the_standard_library_is_the_same_each_time(stdlib):
    again = task.corpus("stdlib")
    assert again == stdlib
    assert stdlib.name == "stdlib"
    assert stdlib.digest == hashlib.sha256(stdlib.text.encode()).hexdigest()
    assert 5e6 < len(stdlib.text) < 30e6
    for module in ("argparse", "dataclasses"):
        source = task.Path(__import__(module).__file__).read_bytes().decode()
        assert source in stdlib.text
    assert stdlib.text.index("class ArgumentParser") < stdlib.text.index("class FrozenInstanceError")  # sorted


def test_library_sources_leave_out_tests_and_packages(tmp_path, monkeypatch):
    files = {
        "b.py": b"b",
        "a.py": b"a",
        "email/x.py": b"x",
        "email/test/y.py": b"no",
        "test/z.py": b"no",
        "idle/idle_test/z.py": b"no",
        "site-packages/p.py": b"no",
        "latin.py": b"\xe9",  # not UTF-8
        "notes.txt": b"no",
        "test.py": b"t",  # a file of that name is no folder of tests
    }
    for name, data in files.items():
        path = tmp_path / "test" / name  # the library itself may lie in such a folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.setattr(task.sysconfig, "get_path", {"stdlib": str(tmp_path / "test")}.__getitem__)
    assert task.corpus("stdlib").text == "a\nb\nx\nt"


@given(st.text().filter(str.strip))
def test_a_file_is_read_as_it_is(tmp_path_factory, text):
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate is no text
        return
    path = tmp_path_factory.getbasetemp() / "text of any kind.txt"
    path.write_bytes(data)
    found = task.corpus(f"path:{path}")
    assert (found.text, found.digest) == (text, hashlib.sha256(data).hexdigest())
    assert found.name == f"path:{path}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty: must hold text"),
        (b" \n\t\n", "is empty: must hold text"),
        (b"fine so far \xff", r"is not UTF-8 \(byte 12\)"),
        (None, "cannot be read: No such file"),
    ],
)
def test_bad_files_are_named(tmp_path, data, message):
    path = tmp_path / "text"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=f"corpus 'path:.*text' {message}"):
        task.corpus(f"path:{path}")


def test_folders_and_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        task.corpus(f"path:{tmp_path}")
    for name in ("", "wikitext", "STDLIB", str(tmp_path)):
        with pytest.raises(ValueError, match="must be stdlib or path:FILE"):
            task.corpus(name)


# ---------------------------------------------------------------- characters


@given(st.text(max_size=60), st.text(max_size=60), st.integers(1, 40))
def test_characters_there_and_back(text, other, size):
    characters = task.Characters(text, size)
    known = set(characters.characters[:-1])
    assert len(characters) == len(characters.characters) == min(size, len(set(text)) + 1)
    assert characters.characters[-1] == task.OTHER
    for given_text in (text, other):
        tokens = characters.encode(given_text)
        assert tokens.dtype == torch.int64
        assert tokens.shape == (len(given_text),)
        assert characters.decode(tokens) == "".join(c if c in known else task.OTHER for c in given_text)
    counts = {c: text.count(c) for c in set(text)}
    left_out = [n for c, n in counts.items() if c not in known]
    assert not left_out or not known or max(left_out) <= min(counts[c] for c in known)


def test_the_most_common_characters_and_the_lower_among_equals():
    characters = task.Characters("zzzbbaac\N{GRINNING FACE}", 4)
    assert characters.characters == ["a", "b", "z", task.OTHER]
    assert characters.encode("zac\N{GRINNING FACE}b\0").tolist() == [2, 0, 3, 3, 1, 3]
    assert characters.decode(torch.tensor([2, 0, 3])) == "za" + task.OTHER


# ---------------------------------------------------------------- split


@given(st.integers(0, 3000))
def test_the_split_deals_every_token_once(n):
    training, validation = task.split(torch.arange(n))
    assert torch.cat((training, validation)).sort().values.equal(torch.arange(n))
    for part in (training, validation):
        assert (part.diff() > 0).all()
    if n >= 20:
        assert n // 20 <= len(validation) <= n / 19
        assert len(validation) < len(training)


def test_the_split_of_a_long_text_is_by_pieces_of_65536():
    n, piece = 45 * 65536 + 100, 65536
    training, validation = task.split(torch.arange(n))
    assert validation.equal(torch.cat((torch.arange(19 * piece, 20 * piece), torch.arange(39 * piece, 40 * piece))))
    assert len(training) + len(validation) == n


# ---------------------------------------------------------------- windows


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 9), st.integers(0, 99))
def test_batches_are_windows_that_depend_on_their_names_alone(n, length, count, step):
    tokens = torch.arange(n)
    if n < length:
        with pytest.raises(ValueError, match=f"text of {n} tokens: must be at least {length}, one window"):
            task.batch(tokens, count, length, seed=0, step=step, name="a")
        return
    rows = task.batch(tokens, count, length, seed=0, step=step, name="a")
    assert rows.shape == (count, length)
    assert (rows.diff(dim=1) == 1).all()
    assert rows.min() >= 0
    assert rows.max() < n
    assert rows.equal(task.batch(tokens, count, length, seed=0, step=step, name="a"))
    more = task.batch(tokens, count + 3, length, seed=0, step=step, name="a")
    assert more[:count].equal(rows)


def test_batches_differ_and_reach_every_place():
    tokens = torch.arange(50)
    names = itertools.product((0, 1), (0, 1), ("a", "b"))
    drawn = {tuple(task.batch(tokens, 8, 4, seed=s, step=t, name=n)[:, 0].tolist()) for s, t, n in names}
    assert len(drawn) == 8
    starts = task.batch(tokens, 2000, 4, seed=0, step=0, name="a")[:, 0]
    assert starts.unique().tolist() == list(range(47))


@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 40))
def test_windows_do_not_overlap_and_are_spread(n, length, most):
    tokens = torch.arange(n)
    if n < length:
        with pytest.raises(ValueError, match=f"text of {n} tokens: must be at least {length}, one window"):
            task.windows(tokens, length, most)
        return
    rows = task.windows(tokens, length, most)
    assert rows.shape == (min(most, n // length), length)
    assert (rows.diff(dim=1) == 1).all()
    steps = rows[:, 0].diff()
    assert (steps >= length).all()
    assert len(steps.unique()) <= 1
