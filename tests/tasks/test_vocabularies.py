"""Vocabularies: bytes, characters, byte-level BPE."""

import hashlib
import itertools
import os
import subprocess
import sys
from unittest import mock

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

from slth.tasks import text as task
from slth.tasks import vocabularies

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
    command = [sys.executable, "-c", code, f"path:{tmp_path / 'text'}", str(tmp_path / "cache")]
    salt = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another than here
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": salt, "TOKENIZERS_PARALLELISM": "true"})
    (path,) = (tmp_path / "cache").iterdir()
    assert path.read_bytes() == bpe._tokenizer.to_str().encode()


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


@one_case
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


@one_case
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
