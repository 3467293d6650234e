"""Texts in folders with parts of their own: every layout, and what is refused."""

import importlib.util
import json
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
from tables import one_case

from slth.tasks import text as task

PARTS = {"train": "one\ntwo\n", "valid": " caf\N{LATIN SMALL LETTER E WITH ACUTE}\n", "test": "three\n"}


def lines(text):
    return "".join(json.dumps({"text": row, "id": 3}) + "\n" for row in text.splitlines())


LAYOUTS = {
    "raw": {f"wiki.{part}.raw": text for part, text in PARTS.items()},
    "tokens": {f"wiki.{part}.tokens": text for part, text in PARTS.items()},
    "text": {f"{part}.txt": text for part, text in PARTS.items()} | {"README.md": "no", "training.txt": "no"},
    "long names": {"train.txt": PARTS["train"], "validation.txt": PARTS["valid"], "test.txt": PARTS["test"]},
    "several files": {
        "train-00001-of-00002.txt": "two\n",
        "train-00000-of-00002.txt": "one\n",
        "valid.txt": PARTS["valid"],
        "test.txt": PARTS["test"],
    },
    "json": {f"{part}.jsonl": lines(text) for part, text in PARTS.items()},
}


def fill(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_parts(tmp_path, layout):
    fill(tmp_path, LAYOUTS[layout])
    found = task.corpus(f"path:{tmp_path}")
    assert [found.data, found.validation, found.test] == [text.encode() for text in PARTS.values()]
    training, validation = task.tokens_of(found, task.Bytes())
    assert (bytes(training.tolist()), bytes(validation.tolist())) == (found.data, found.validation)


def test_a_test_part_may_be_absent_and_changes_no_digest(tmp_path):
    fill(tmp_path, LAYOUTS["raw"])
    whole = task.corpus(f"path:{tmp_path}")
    (tmp_path / "wiki.test.raw").unlink()
    found = task.corpus(f"path:{tmp_path}")
    assert found.test is None
    assert found.digest == whole.digest


class Rows:
    """A part of a data set of `datasets`, as much of it as is read."""

    def __init__(self, *rows):
        self.rows = rows

    def iter(self, batch_size):
        assert batch_size > 0
        yield from ({key: [value] for key, value in row.items()} for row in self.rows)


def test_a_data_set_on_disk_is_read_by_its_own_package(tmp_path, monkeypatch):
    fill(tmp_path, {"dataset_dict.json": "{}"})
    rows = {"train": Rows({"text": "one"}, {"text": ""}, {"text": "two\n"}), "validation": Rows({"text": "three"})}
    load = mock.Mock(return_value=rows)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_from_disk=load))
    found = task.corpus(f"path:{tmp_path}")
    load.assert_called_once_with(str(tmp_path))
    assert (found.data, found.validation, found.test) == (b"one\n\ntwo\n", b"three\n", None)
    load.return_value = rows | {"validation": Rows({"content": "three"})}
    with pytest.raises(ValueError, match=r"has rows without a text: must have a string `text`"):
        task.corpus(f"path:{tmp_path}")
    load.return_value = {"train": rows["train"], "other": rows["train"]}
    with pytest.raises(ValueError, match="has no validation part, it holds train, other: must hold train, valid"):
        task.corpus(f"path:{tmp_path}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="must have the package datasets"):
        task.corpus(f"path:{tmp_path}")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow comes with the extra text")
def test_parquet_is_read(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for part, name in {"train": "train", "valid": "validation", "test": "test"}.items():
        table = pyarrow.table({"text": PARTS[part].splitlines(), "id": [1] * PARTS[part].count("\n")})
        parquet.write_table(table, tmp_path / f"{name}-00000-of-00001.parquet")
    found = task.corpus(f"path:{tmp_path}")
    assert [found.data, found.validation, found.test] == [text.encode() for text in PARTS.values()]
    parquet.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"test-00000.* has the columns content: must have a column text"):
        task.corpus(f"path:{tmp_path}")
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"corpus 'path:.*test-00000-of-00001\.parquet"):
        task.corpus(f"path:{tmp_path}")


def test_parquet_needs_its_package(tmp_path, monkeypatch):
    fill(tmp_path, {"train.parquet": b"PAR1", "validation.parquet": b"PAR1"})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"corpus 'path:.*' must have the package pyarrow"):
        task.corpus(f"path:{tmp_path}")


FINE = {"train.txt": "a\n", "valid.txt": "b\n"}


@one_case
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no train and no validation part, it holds nothing: must hold train, valid"),
        ({"train.txt": "a"}, "has no validation part, it holds train.txt: must hold .* test, which may be absent"),
        ({"valid.txt": "a", "notes": ""}, "has no train part, it holds notes, valid.txt: must"),
        ({f"{n}.md": "" for n in range(8)}, "has no .*, it holds 0.md, 1.md, 2.md, 3.md, 4.md, 5.md and 2 more: must"),
        (FINE | {"train.raw": "a"}, "holds train.raw, train.txt for train: must hold files of one kind"),
        (FINE | {"validation.txt": "a"}, "holds valid.txt, validation.txt for validation: must hold files of one kind"),
        (FINE | {"test.txt": " \n"}, "test, is empty: must hold text"),
        (FINE | {"valid.txt": b"\xff"}, r"validation, is not UTF-8 \(byte 0\)"),
        (FINE | {"test.jsonl": '{"content": "a"}'}, r"test.jsonl has a row that cannot be read: must have \{'text'"),
        (FINE | {"test.jsonl": '{"text": 3}'}, "test.jsonl has a row that cannot be read"),
        (FINE | {"test.jsonl": "[1]"}, "test.jsonl has a row that cannot be read"),
        (FINE | {"test.jsonl": "no JSON"}, "test.jsonl has a row that cannot be read"),
        (FINE | {"test.jsonl": b"\xff"}, "test.jsonl has a row that cannot be read"),
    ],
)
def test_folders_that_cannot_be_read_are_refused(tmp_path, files, message):
    fill(tmp_path, files)
    with pytest.raises(ValueError, match=f"corpus 'path:.*',? {message}"):
        task.corpus(f"path:{tmp_path}")
