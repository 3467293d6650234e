"""Text for language models: corpora, vocabularies, the split, windows, and what counting alone predicts."""

import hashlib
import itertools
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from slth.tasks import corpora, ngrams, vocabularies
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
        source = Path(__import__(module).__file__).read_bytes().decode()
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
    monkeypatch.setattr(corpora.sysconfig, "get_path", {"stdlib": str(tmp_path / "test")}.__getitem__)
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
        with pytest.raises(ValueError, match="must be stdlib, installed, wikitext-103 or path:FILE"):
            task.corpus(name)


@given(st.binary(max_size=20) | st.text(max_size=9).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_data_is_checked_in_pieces_as_it_would_be_at_once(data):
    try:
        wanted = None if data.decode().strip() else "is empty: must hold text"
    except UnicodeDecodeError as error:
        wanted = rf"is not UTF-8 \(byte {error.start}\): must be"
    for piece in (1, 2, 3, 7, 100):
        with mock.patch.object(corpora, "_PIECE", piece):
            if wanted is None:
                corpora._check("x", data)
            else:
                with pytest.raises(ValueError, match=f"corpus 'x' {wanted}"):
                    corpora._check("x", data)


# ---------------------------------------------------------------- installed packages


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages: install(name, version, needs, files)."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, version, needs, files):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines]) + "\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        for path, data in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)

    return install


def test_installed_packages_are_all_that_is_needed(site):
    own = ["zeta", "Al.pha[fast]>=1", "gone", "dev; extra == 'dev'", "other; sys_platform == 'none'"]
    site("slth", "9", own, {"slth/own.py": b"no"})
    site("zeta", "2.0", ["slth"], {"zeta/z.py": b"z", "zeta/a.py": b"za", "zeta/data.txt": b"no"})
    site("al_pha", "1.5", ["speed; extra == 'fast'", "slow; extra == 'slow'", "zeta"], {"alpha.py": b"al"})
    speed = {"speed/s.py": b"s", "speed/tests/t.py": b"no", "speed/l.py": b"\xe9", "../bin/run.py": b"no"}
    site("speed", "3", [], speed)
    site("stubs", "1", [], {"stubs/x.pyi": b"no"})
    for name in ("dev", "other", "slow"):
        site(name, "1", [], {f"{name}.py": b"no"})
    found = task.corpus("installed")
    assert found.text == "al\ns\nza\nz"
    assert found.packages == ("al-pha 1.5", "speed 3", "zeta 2.0")
    assert found.digest == hashlib.sha256(found.data).hexdigest()
    assert found.validation is None


def test_installed_packages_need_this_one_to_be_installed(monkeypatch):
    monkeypatch.setattr(corpora, "distribution", mock.Mock(side_effect=corpora.PackageNotFoundError))
    with pytest.raises(ValueError, match="corpus 'installed': must have slth itself installed"):
        task.corpus("installed")


@pytest.mark.slow
def test_the_installed_packages_here():
    found = task.corpus("installed")
    assert 5e7 < len(found.data) < 5e8
    names = [package.split()[0] for package in found.packages]
    assert names == sorted(names)
    assert {"torch", "numpy", "scipy", "transformers"} < set(names)
    assert not {"slth", "pytest"} & set(names)
    assert f"numpy {np.__version__}" in found.packages
    assert Path(np.__file__).read_bytes() in found.data
    assert task.corpus("installed") == found


# ---------------------------------------------------------------- WikiText


class Rows:
    """A part of a data set of `datasets`, as much of it as is read."""

    def __init__(self, *texts):
        self.texts = texts

    def iter(self, batch_size):
        assert batch_size > 0
        for start in range(0, len(self.texts), 2):
            yield {"text": list(self.texts[start : start + 2])}


def test_wikitext_keeps_its_own_parts(monkeypatch):
    parts = {"train": Rows("", " = A = \n", "caf\N{LATIN SMALL LETTER E WITH ACUTE}\n"), "validation": Rows(" b\n")}
    load = mock.Mock(return_value=parts)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    found = task.corpus("wikitext-103")
    load.assert_called_once_with("Salesforce/wikitext", "wikitext-103-raw-v1")
    training, validation = " = A = \ncaf\N{LATIN SMALL LETTER E WITH ACUTE}\n".encode(), b" b\n"
    assert (found.data, found.validation) == (training, validation)
    assert found.digest == hashlib.sha256(training + validation).hexdigest()
    tokens = task.tokens_of(found, task.Bytes())
    assert [bytes(part.tolist()) for part in tokens] == [training, validation]


def test_wikitext_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="must have the package datasets"):
        task.corpus("wikitext-103")
    load = mock.Mock(side_effect=ConnectionError("no route\nto host"))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    with pytest.raises(ValueError, match=r"cannot be loaded \(ConnectionError: no route\): must be .* a network"):
        task.corpus("wikitext-103")


# ---------------------------------------------------------------- vocabularies


TEXT = "".join(f"def f{i}(x):\n    return x + {i * i}  # caf\N{LATIN SMALL LETTER E WITH ACUTE}\n" for i in range(99))


def corpus_of(text):
    data = text.encode()
    return task.Corpus("made up", data, hashlib.sha256(data).hexdigest())


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return task.BPE.train(corpus_of(TEXT), 300, cache=tmp_path_factory.mktemp("cache"))


texts = st.text(max_size=60, alphabet=st.characters(exclude_categories=["Cs"]))


@given(texts)
def test_bytes_there_and_back(text):
    words = task.Bytes()
    tokens = words.encode(text)
    assert tokens.dtype == torch.uint8
    assert tokens.tolist() == list(text.encode())
    assert tokens.equal(words.encode(text.encode()))
    assert words.decode(tokens) == text
    assert len(words) == 256


def test_tokens_may_be_written_to():
    data = b"abc"
    tokens = task.Bytes().encode(data)
    tokens[0] = 0
    assert data == b"abc"


def test_cut_characters_decode_to_the_replacement_character(bpe):
    whole = "\N{GRINNING FACE}"
    for words in (task.Bytes(), bpe):
        tokens = words.encode(whole)
        assert len(tokens) == 4
        assert words.decode(tokens) == whole
        assert set(words.decode(tokens[:3])) == {task.OTHER}


@given(text=texts)
def test_bpe_there_and_back(bpe, text):
    for some in (text, TEXT[:50] + text):
        tokens = bpe.encode(some)
        assert tokens.dtype == torch.int16
        assert bpe.decode(tokens) == some
        assert tokens.equal(bpe.encode(some.encode()))
        assert len(tokens) <= len(some.encode())


def test_bpe_merges_what_is_common(bpe):
    assert len(bpe) == 300
    assert len(bpe.encode(" return")) == 1
    assert len(bpe.encode(TEXT)) < 0.5 * len(TEXT)
    assert len(bpe.encode("QZ\0")) == 3
    assert bpe.encode(TEXT).max() < 300


def test_bpe_of_the_bytes_alone(tmp_path):
    words = task.BPE.train(corpus_of(TEXT), 256, cache=tmp_path)
    assert len(words) == 256
    assert words.encode(TEXT).dtype == torch.uint8
    assert len(words.encode(TEXT)) == len(TEXT.encode())


@given(texts, st.integers(4, 9), st.integers(1, 3))
def test_pieces_are_the_text(text, size, together):
    """Every text is dealt in short pieces that end with a line or between characters."""
    with mock.patch.object(vocabularies, "_PIECE", size):
        pieces = list(vocabularies._pieces(text.encode()))
        assert "".join(pieces) == text
        for piece in pieces:
            assert 1 <= len(piece.encode()) <= size
        for piece, following in itertools.pairwise(pieces):
            assert "\n" not in piece[:-1] or piece.endswith("\n")
            assert piece.endswith("\n") or len(piece.encode()) + len(following[0].encode()) > size


def test_bpe_of_long_texts_is_that_of_their_pieces(bpe):
    with mock.patch.object(vocabularies, "_PIECE", 100), mock.patch.object(vocabularies, "_TOGETHER", 3):
        tokens = bpe.encode(TEXT)
        pieces = [bpe.encode(piece) for piece in vocabularies._pieces(TEXT.encode())]
    assert len(pieces) > 10
    assert tokens.equal(torch.cat(pieces))
    assert bpe.decode(tokens) == TEXT


def test_a_trained_bpe_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / "not there yet" / "cache"
    first = task.BPE.train(corpus_of(TEXT), 280, cache=folder)
    (path,) = folder.iterdir()
    assert path.name == f"bpe-280-{corpus_of(TEXT).digest}-tokenizers-{tokenizers.__version__}.json"
    kept = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(vocabularies, "_trained", mock.Mock(side_effect=AssertionError("trained again")))
        again = task.BPE.train(corpus_of(TEXT), 280, cache=folder)
        assert again.encode(TEXT).equal(first.encode(TEXT))
        for other in (
            lambda: task.BPE.train(corpus_of(TEXT), 281, cache=folder),
            lambda: task.BPE.train(corpus_of(TEXT + "."), 280, cache=folder),
        ):
            with pytest.raises(AssertionError, match="trained again"):
                other()
    path.write_bytes(kept[:1000])  # damaged
    task.BPE.train(corpus_of(TEXT), 280, cache=folder)
    assert list(folder.iterdir()) == [path]
    assert path.read_bytes() == kept


def test_a_bpe_is_the_same_in_every_process(tmp_path, bpe):
    code = (
        "import sys; from pathlib import Path; from slth.tasks import text as task\n"
        "task.BPE.train(task.corpus(sys.argv[1]), 300, cache=Path(sys.argv[2]))"
    )
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    kept = set()
    for salt in ("1", "2"):
        command = [sys.executable, "-c", code, f"path:{tmp_path / 'text'}", str(tmp_path / salt)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": salt, "TOKENIZERS_PARALLELISM": "true"})
        (path,) = (tmp_path / salt).iterdir()
        kept.add(path.read_bytes())
    assert kept == {bpe._tokenizer.to_str().encode()}


def test_where_bpes_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert task.cache_folder() == tmp_path / "slth"
    task.BPE.train(corpus_of(TEXT), 257)
    assert len(list((tmp_path / "slth").iterdir())) == 1
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert task.cache_folder() == tmp_path / "home" / ".cache" / "slth"


def test_a_folder_that_cannot_be_written_ends_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabularies, "_trained", mock.Mock(side_effect=AssertionError("trained")))
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ValueError, match=r"cache='.*': must be a folder that can be written"):
            task.BPE.train(corpus_of(TEXT), 300, cache=folder)


@pytest.mark.parametrize("size", [255, 0, -1, (1 << 20) + 1, 300.0])
def test_bad_sizes_of_a_bpe(size, tmp_path):
    with pytest.raises(ValueError, match=f"size={size}: must be an int >= 256 and <= 1048576"):
        task.BPE.train(corpus_of(TEXT), size, cache=tmp_path)


def test_vocabularies_by_name(tmp_path):
    corpus = corpus_of(TEXT)
    assert isinstance(task.vocabulary("bytes", corpus), task.Bytes)
    assert len(task.vocabulary("bpe:290", corpus, cache=tmp_path)) == 290
    assert len(task.vocabulary("characters:9", corpus)) == 9
    for name in ("", "byte", "bytes:3", "bpe", "bpe:", "bpe:x", "bpe:-1", "characters:2.5", "words:9"):
        with pytest.raises(ValueError, match=f"vocabulary '{name}': must be bytes, bpe:SIZE or characters:SIZE"):
            task.vocabulary(name, corpus)
    with pytest.raises(ValueError, match="vocabulary 'characters:1': must have a size >= 2"):
        task.vocabulary("characters:1", corpus)
    with pytest.raises(ValueError, match="size=7: must be an int >= 256"):
        task.vocabulary("bpe:7", corpus)


def test_tokens_of_a_corpus_are_dealt_out():
    corpus = corpus_of(TEXT)
    words = task.Characters(TEXT, 20)
    training, validation = task.tokens_of(corpus, words)
    wanted = task.split(words.encode(TEXT))
    assert training.equal(wanted[0])
    assert validation.equal(wanted[1])


@pytest.mark.parametrize(
    ("size", "dtype"), [(256, torch.uint8), (257, torch.int16), (1 << 15, torch.int16), ((1 << 15) + 1, torch.int32)]
)
def test_tokens_are_of_the_smallest_type_that_holds_them(size, dtype):
    text = "".join(map(chr, range(100, 100 + size - 1)))  # below the surrogates
    words = task.Characters(text, size)
    assert len(words) == size
    tokens = words.encode(text + "a")
    assert tokens.dtype == dtype
    assert tokens.long().equal(torch.cat((torch.arange(size - 1), torch.tensor([size - 1]))))


# ---------------------------------------------------------------- characters


@given(st.text(max_size=60), st.text(max_size=60), st.integers(1, 40))
def test_characters_there_and_back(text, other, size):
    characters = task.Characters(text, size)
    known = set(characters.characters[:-1])
    assert len(characters) == len(characters.characters) == min(size, len(set(text)) + 1)
    assert characters.characters[-1] == task.OTHER
    for given_text in (text, other):
        tokens = characters.encode(given_text)
        assert tokens.dtype == torch.uint8
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
    short = task.batch(tokens.to(torch.uint8), count, length, seed=0, step=step, name="a")
    assert short.dtype == torch.int64
    assert short.equal(rows)
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
    assert rows.dtype == task.windows(tokens.to(torch.int16), length, most).dtype == torch.int64


# ---------------------------------------------------------------- what counting predicts


def unigram_oracle(train, rows, size):
    counts = Counter(train)
    shares = [(counts[w] + 1) / (len(train) + size) for row in rows for w in row[1:]]
    return -sum(map(math.log, shares)) / len(shares)


def bigram_oracle(train, rows, size):
    counts, pairs = Counter(train), Counter(itertools.pairwise(train))
    logs = []
    for row in rows:
        for v, w in itertools.pairwise(row):
            single = (counts[w] + 1) / (len(train) + size)
            followers = [often for (first, _), often in pairs.items() if first == v]
            known = sum(followers) + len(followers)
            logs.append(math.log((pairs[v, w] + len(followers) * single) / known if known else single))
    return -sum(logs) / len(logs)


@st.composite
def counted(draw):
    size = draw(st.integers(1, 9))
    token = st.integers(0, size - 1)
    length = draw(st.integers(2, 7))
    rows = draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=1, max_size=4))
    return draw(st.lists(token, min_size=1, max_size=60)), rows, size


@given(counted(), st.integers(1, 20), st.sampled_from([torch.uint8, torch.int16, torch.int64]))
def test_losses_are_those_of_the_formulas(given_counts, piece, dtype):
    train, rows, size = given_counts
    tensors = torch.tensor(train, dtype=dtype), torch.tensor(rows, dtype=dtype), size
    with mock.patch.object(ngrams, "_PIECE", piece):
        assert math.isclose(task.unigram_loss(*tensors), unigram_oracle(train, rows, size), abs_tol=1e-12)
        assert math.isclose(task.bigram_loss(*tensors), bigram_oracle(train, rows, size), abs_tol=1e-12)
    if len(rows) == 1:
        flat = (tensors[0], tensors[1][0], size)
        assert task.bigram_loss(*flat) == task.bigram_loss(*tensors)


@given(counted())
def test_the_shares_of_all_tokens_sum_to_one(given_counts):
    train, _, size = given_counts
    train = torch.tensor(train)
    for before in range(size):
        for loss in (task.unigram_loss, task.bigram_loss):
            shares = [math.exp(-loss(train, torch.tensor([before, after]), size)) for after in range(size)]
            assert math.isclose(sum(shares), 1.0, abs_tol=1e-12)


def test_pairs_know_more_than_tokens_alone():
    train = torch.arange(8).repeat(500)
    valid = torch.arange(8).repeat(3)
    assert math.isclose(task.unigram_loss(train, valid, 8), math.log(8), abs_tol=1e-3)
    assert task.bigram_loss(train, valid, 8) < 0.01
    large = 50_000  # a table of all pairs would hold 2.5e9
    assert task.bigram_loss(train, valid, large) < 0.03


@pytest.mark.parametrize(
    ("train", "valid", "size", "message"),
    [
        ([], [[0, 1]], 2, r"train of shape \(0,\): must be tokens \(n,\), at least one"),
        ([[0, 1]], [[0, 1]], 2, r"train of shape \(1, 2\): must be tokens"),
        ([0], [[0], [1]], 2, r"valid of shape \(2, 1\): must be rows \(..., T\) of two tokens or more"),
        ([0], [], 2, r"valid of shape \(0,\): must be rows"),
        ([0, 2], [0, 1], 2, r"train with tokens from 0 to 2: must be in \[0, 2\)"),
        ([0, 1], [-1, 1], 2, r"valid with tokens from -1 to 1: must be in"),
        ([0], [0, 0], 0, "size=0: must be an int >= 1"),
    ],
)
def test_what_cannot_be_counted_is_refused(train, valid, size, message):
    for loss in (task.unigram_loss, task.bigram_loss):
        with pytest.raises(ValueError, match=message):
            loss(torch.tensor(train, dtype=torch.int64), torch.tensor(valid, dtype=torch.int64), size)
