"""Texts in a folder, with one or several files for each of training, validation and test.

* WikiText: ``wiki.train.raw``, ``wiki.valid.raw``, ``wiki.test.raw``, or ``.tokens`` in place of ``.raw``.
* plain text: ``train.txt``, ``valid.txt`` (or ``validation.txt``) and ``test.txt``.
* Hugging Face: ``train-00000-of-00002.parquet`` and so on, or ``.jsonl``, each row with a string `text`; or a folder
  that `datasets.DatasetDict.save_to_disk` wrote.

Files of one part are joined in the order of their names. The test part may be absent.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYOUTS = (
    "train, valid (or validation) and test, which may be absent, as wiki.train.raw, wiki.train.tokens, train.txt, "
    "train*.jsonl or train*.parquet, or a folder of datasets.DatasetDict.save_to_disk"
)
_NAME = re.compile(r"(wiki\.)?(train|validation|valid|test)(?:[-_.].*)?\.(raw|tokens|txt|jsonl|parquet)")
_ON_DISK = "dataset_dict.json"  # save_to_disk writes it next to one folder per part
_SHOWN = 6  # most file names in an error message


@dataclass(frozen=True)
class Parts:
    """The parts of a text as bytes; None for a part that is missing."""

    train: bytes = field(repr=False)
    validation: bytes | None = field(default=None, repr=False)
    test: bytes | None = field(default=None, repr=False)


def read_parts(folder: Path) -> Parts:
    """Read the parts of a folder.

    Raises ValueError if training or validation is missing, if files of two kinds match one part, and for a file whose
    content does not fit its suffix. Raises OSError if a file cannot be opened.
    """
    if (folder / _ON_DISK).exists():
        return parts_of_rows(_package("datasets").load_from_disk(str(folder)))
    found: dict[str, list[Path]] = {}
    kinds: dict[str, set[tuple[str, ...]]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and (match := _NAME.fullmatch(path.name)):
            part = "validation" if match[2] == "valid" else match[2]
            found.setdefault(part, []).append(path)
            kinds.setdefault(part, set()).add(match.groups(""))
    for part, several in kinds.items():
        if len(several) > 1:
            raise ValueError(f"holds {_listed(found[part])} for {part}: must hold files of one kind for each part")
    _require(found, folder)
    return Parts(**{part: b"".join(map(_read, paths)) for part, paths in found.items()})


def parts_of_rows(rows: Any) -> Parts:
    """Read the parts of a `datasets.DatasetDict`. Raises ValueError if a part or the column `text` is missing."""
    _require(rows)
    try:
        read = {part: joined(_texts(rows[part].iter(10_000))) for part in Parts.__annotations__ if part in rows}
    except KeyError as error:
        raise ValueError("has rows without a text: must have a string `text` in each row") from error
    return Parts(**read)


def joined(rows: Iterable[object]) -> bytes:
    """Join rows of text in UTF-8, with a line end after each row that has none.

    An empty row becomes an empty line, since Hugging Face's WikiText has lost the white space of those.
    Raises ValueError for a row that is no string.
    """
    return b"".join(_row(row) for row in rows)


def _row(row: object) -> bytes:
    if not isinstance(row, str):
        raise ValueError(f"has a row whose text is {type(row).__name__}: must have a string `text` in each row")
    return (row if row.endswith("\n") else row + "\n").encode()


def _texts(batches: Iterable[Any]) -> Iterator[object]:
    for batch in batches:
        yield from batch["text"]


def _require(found: Iterable[str], folder: Path | None = None) -> None:
    missing = [part for part in ("train", "validation") if part not in found]
    if missing:
        held = _listed(list(folder.iterdir())) if folder else ", ".join(found)
        raise ValueError(f"has no {' and no '.join(missing)} part, it holds {held or 'nothing'}: must hold {LAYOUTS}")


def _listed(paths: list[Path]) -> str:
    names = sorted(path.name for path in paths)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f'must have the package {name} (pip install "slth[text]")') from error


# ---------------------------------------------------------------- files


def _read(path: Path) -> bytes:
    return _READERS.get(path.suffix, Path.read_bytes)(path)


def _jsonl(path: Path) -> bytes:
    with path.open(encoding="utf-8") as lines:
        try:
            return joined(json.loads(line)["text"] for line in lines if line.strip())
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path.name} has a row that cannot be read: must have {{'text': ...}} in each") from error


def _parquet(path: Path) -> bytes:
    package = _package("pyarrow.parquet")
    try:
        with package.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise ValueError(f"has the columns {', '.join(file.schema_arrow.names)}: must have a column text")
            batches = file.iter_batches(columns=["text"])
            return b"".join(joined(batch.column("text").to_pylist()) for batch in batches)
    except ValueError as error:  # also pyarrow's error for files that are not Parquet
        raise ValueError(f"{path.name} {error}") from error


_READERS: dict[str, Callable[[Path], bytes]] = {".jsonl": _jsonl, ".parquet": _parquet}
