"""Text corpora by name.

* ``stdlib``: the source text of Python's standard library, without its tests, files in sorted order. About 11 MB, on
  every machine that can run this package. It differs between Python versions, so its digest is reported.
* ``installed``: the Python sources of all direct and indirect dependencies of the core and the experiments, without
  tests, packages and files in sorted order. About 190 MB. It depends on their versions, which the corpus lists.
* ``wikitext-103``: WikiText-103 (Merity et al. 2016, raw) from the package `datasets`, with its validation and test
  parts.
* ``path:FILE``: any UTF-8 file. ``path:DIR``: a folder with training, validation and test parts
  (`slth.tasks.folders`).
"""

from __future__ import annotations

import codecs
import hashlib
import importlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePath
from typing import Any

from slth.extras import extra
from slth.tasks.folders import Parts, parts_of_rows, read_parts

NAMES = ("stdlib", "installed", "wikitext-103", "path:FILE or path:DIR")
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "turtledemo"}
_PIECE = 1 << 16  # bytes
_EXTRAS = ("", "experiments", "gpt2")  # extras whose dependencies "installed" reads; "" is the core


@dataclass(frozen=True)
class Corpus:
    """A text in UTF-8 with its origin and SHA-256.

    Attributes:
        name: the name that :func:`corpus` was called with.
        data: the text, or its training part.
        digest: SHA-256 (hex) of data followed by validation, which is all that training depends on.
        validation: the validation part, if the corpus has one.
        packages: "name version" of the packages that a corpus of sources contains.
        test: the test part, if the corpus has one.
    """

    name: str
    data: bytes = field(repr=False)
    digest: str
    validation: bytes | None = field(default=None, repr=False)
    packages: tuple[str, ...] = ()
    test: bytes | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """Decode the data. The text is not stored, so that a large corpus is in memory only once, as bytes."""
        return self.data.decode()


def corpus(name: str) -> Corpus:
    """Read a corpus by name.

    Raises ValueError for an unknown name, a text that is empty or not UTF-8, and a corpus that cannot be read.
    """
    packages: tuple[str, ...] = ()
    if name == "stdlib":
        parts = Parts(_stdlib())
    elif name == "installed":
        data, packages = _installed()
        parts = Parts(data)
    elif name == "wikitext-103":
        parts = _wikitext()
    elif name.startswith("path:"):
        parts = _path(name)
    else:
        raise ValueError(f"corpus {name!r}: must be {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    held = {part: data for part, data in vars(parts).items() if data is not None}
    for part, data in held.items():
        _check(f"corpus {name!r}" + (f", {part}," if len(held) > 1 else ""), data)
    digest = hashlib.sha256(parts.train)
    digest.update(parts.validation or b"")
    return Corpus(name, parts.train, digest.hexdigest(), parts.validation, packages, parts.test)


def _path(name: str) -> Parts:
    path = Path(name.removeprefix("path:"))
    try:
        return read_parts(path) if path.is_dir() else Parts(path.read_bytes())
    except OSError as error:
        raise ValueError(f"corpus {name!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"corpus {name!r} {error}") from error


def _check(label: str, data: bytes) -> None:
    """Raise ValueError unless data is UTF-8 and not only white space, without decoding all of it at once."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    empty = True
    for start in range(0, len(data) or 1, _PIECE):
        waiting = len(decoder.getstate()[0])  # bytes of a character that the last piece cut off
        try:
            text = decoder.decode(data[start : start + _PIECE], final=start + _PIECE >= len(data))
        except UnicodeDecodeError as error:
            at = start - waiting + error.start
            raise ValueError(f"{label} is not UTF-8 (byte {at}): must be text in UTF-8") from error
        empty = empty and not text.strip()
    if empty:
        raise ValueError(f"{label} is empty: must hold text")


# ---------------------------------------------------------------- Python sources


def _stdlib() -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    return b"\n".join(_sources(root, (path.relative_to(root) for path in root.rglob("*.py"))))


def _sources(root: Path, files: Iterable[PurePath]) -> Iterator[bytes]:
    """Yield the contents of Python files under root in sorted order, without tests and files that are not UTF-8."""
    for path in sorted((path for path in files if not _NOT_LIBRARY & set(path.parts[:-1])), key=PurePath.as_posix):
        data = (root / path).read_bytes()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        yield data


def _installed() -> tuple[bytes, tuple[str, ...]]:
    """Return (sources, packages) of all installed dependencies of the core and the experiments."""
    texts, packages = [], []
    for name, package in sorted(_dependencies("slth", _EXTRAS).items()):
        root = Path(str(package.locate_file("")))
        files = [PurePath(file) for file in package.files or () if file.suffix == ".py" and file.parts[0] != ".."]
        found = list(_sources(root, files))
        if found:
            texts += found
            packages.append(f"{name} {package.version}")
    return b"\n".join(texts), tuple(packages)


def _dependencies(root: str, extras: tuple[str, ...]) -> dict[str, Distribution]:
    """Return name -> package for all direct and indirect dependencies of root with these extras.

    Dependencies that are not installed are left out.
    """
    with extra("text"):
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    try:
        waiting = [Requirement(line) for line in distribution(root).requires or ()]
    except PackageNotFoundError as error:
        raise ValueError(f"corpus 'installed': must have {root} itself installed, for the list of its needs") from error
    found: dict[str, Distribution] = {}
    seen = {(root, asked) for asked in extras}
    wanted = [(need, asked) for need in waiting for asked in extras]
    while wanted:
        need, asked = wanted.pop()
        if need.marker and not need.marker.evaluate({"extra": asked}):
            continue
        name = canonicalize_name(need.name)
        for inner in ("", *need.extras):
            if (name, inner) in seen:
                continue
            seen.add((name, inner))
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                continue
            wanted += [(Requirement(line), inner) for line in found[name].requires or ()]
    return found


# ---------------------------------------------------------------- WikiText


def _wikitext() -> Parts:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        hint = 'pip install "slth[text]"'
        raise ValueError(f"corpus 'wikitext-103': must have the package datasets ({hint})") from error
    try:
        parts = datasets.load_dataset("Salesforce/wikitext", "wikitext-103-raw-v1")
    except Exception as error:  # many kinds: no network, no such host, a broken cache
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"corpus 'wikitext-103' cannot be loaded ({reason}): must be in the cache of datasets, or a network at hand"
        ) from error
    return parts_of_rows(parts)
