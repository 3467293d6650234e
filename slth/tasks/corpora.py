"""Real text, by name.

* ``stdlib``: the source text of Python's standard library, without its tests, files in sorted order. About 11 MB of
  real text on every machine that can run this package; it differs between Python versions, so its digest is reported.
* ``installed``: the Python sources of the packages that the core and the experiments depend on, and of those that they
  depend on, without tests, packages and files in sorted order. About 190 MB; it differs with their versions, which the
  corpus lists.
* ``wikitext-103``: WikiText-103 (Merity et al. 2016, raw) through the package `datasets`, with its own validation and
  test parts.
* ``path:FILE``: any UTF-8 file. ``path:DIR``: a folder with parts of its own (`slth.tasks.folders`).
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
_EXTRAS = ("", "experiments", "gpt2")  # whose needs "installed" reads, "" is the core


@dataclass(frozen=True)
class Corpus:
    """A text as UTF-8, where it is from, and its SHA-256 (hex).

    validation and test are parts of their own, where the corpus comes with them. The digest covers data and validation,
    one after the other: all that a training depends on. packages are the "name version" of those that a corpus of
    sources is made of.
    """

    name: str
    data: bytes = field(repr=False)
    digest: str
    validation: bytes | None = field(default=None, repr=False)
    packages: tuple[str, ...] = ()
    test: bytes | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """The data as text, decoded each time: a large corpus is held once, as bytes."""
        return self.data.decode()


def corpus(name: str) -> Corpus:
    """Read a corpus by name.

    Raises ValueError for an unknown name, a text that is empty or not UTF-8, and what cannot be had here.
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
    """Raise ValueError unless data is UTF-8 and more than white space, without holding all of it as text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    empty = True
    for start in range(0, len(data) or 1, _PIECE):
        waiting = len(decoder.getstate()[0])  # bytes of a character that the last piece cut
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
    """The contents of Python files under root in sorted order, but for tests and the few in other encodings."""
    for path in sorted((path for path in files if not _NOT_LIBRARY & set(path.parts[:-1])), key=PurePath.as_posix):
        data = (root / path).read_bytes()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        yield data


def _installed() -> tuple[bytes, tuple[str, ...]]:
    """(sources, packages) of all that the core and the experiments depend on here."""
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
    """Name -> package for all that root with these extras needs, directly or not.

    A package that is needed but not installed is left out.
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
    except Exception as error:  # of many kinds, by what failed: no network, no such host, a broken cache
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"corpus 'wikitext-103' cannot be loaded ({reason}): must be in the cache of datasets, or a network at hand"
        ) from error
    return parts_of_rows(parts)
