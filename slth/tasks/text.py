"""Real text for language models: where it comes from, how it is split, and its characters as numbers.

Corpora are named by a string:

* ``stdlib``: the source text of Python's standard library, without its tests, files in sorted order. About 11 MB of
  real text on every machine that can run this package; it differs between Python versions, so its digest is reported.
* ``path:FILE``: any UTF-8 file.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from slth import inits

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "turtledemo"}
_PIECE = 1 << 16  # characters: the corpus is dealt out in pieces of this size
_EVERY = 20  # one piece in so many is for validation
OTHER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Corpus:
    """A text, where it is from, and its SHA-256 as UTF-8 (hex)."""

    name: str
    text: str
    digest: str


def corpus(name: str) -> Corpus:
    """Read a corpus by name. Raises ValueError for an unknown name, an empty file or one that is not UTF-8."""
    if name == "stdlib":
        data = b"\n".join(_stdlib_sources())
    elif name.startswith("path:"):
        try:
            data = Path(name.removeprefix("path:")).read_bytes()
        except OSError as error:
            raise ValueError(f"corpus {name!r} cannot be read: {error.strerror}") from error
    else:
        raise ValueError(f"corpus {name!r}: must be stdlib or path:FILE")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus {name!r} is not UTF-8 (byte {error.start}): must be text in UTF-8") from error
    if not text.strip():
        raise ValueError(f"corpus {name!r} is empty: must hold text")
    return Corpus(name, text, hashlib.sha256(data).hexdigest())


def _stdlib_sources() -> Iterator[bytes]:
    root = Path(sysconfig.get_path("stdlib"))
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    for path in sorted((p for p in files if not _NOT_LIBRARY & set(p.parts[:-1])), key=Path.as_posix):
        data = (root / path).read_bytes()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:  # a few files are in other encodings, on purpose
            continue
        yield data


class Characters:
    """The most common characters of a text as tokens 0, 1, ...; the last token stands for all others."""

    def __init__(self, text: str, size: int = 128) -> None:
        counts = np.bincount(_codes(text))
        common = np.argsort(-counts, kind="stable")[: size - 1]  # the lower code first among equals
        common = np.sort(common[counts[common] > 0])
        self.characters = [*map(chr, common.tolist()), OTHER]
        self._token = np.full(sys.maxunicode + 1, len(common))
        self._token[common] = np.arange(len(common))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> torch.Tensor:
        """Text -> tokens (len(text),) int64."""
        return torch.from_numpy(self._token[_codes(text)])

    def decode(self, tokens: torch.Tensor) -> str:
        """Tokens (n,) -> text."""
        return "".join(self.characters[i] for i in tokens.tolist())


def _codes(text: str) -> npt.NDArray[np.uint32]:
    """The characters' code points."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def split(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Deal tokens (n,) out to training and validation in pieces of 65,536, every 20th piece to validation.

    Shorter texts are dealt in pieces of a twentieth. Neighbouring pieces of a file may fall on both sides; none is on
    both.
    """
    pieces = tokens.split(max(1, min(_PIECE, len(tokens) // _EVERY)))
    training = [piece for i, piece in enumerate(pieces) if i % _EVERY != _EVERY - 1]
    validation = [piece for i, piece in enumerate(pieces) if i % _EVERY == _EVERY - 1]
    return torch.cat(training), torch.cat(validation or [tokens[:0]])


def batch(tokens: torch.Tensor, count: int, length: int, *, seed: int, step: int, name: str) -> torch.Tensor:
    """Windows (count, length) of tokens (n,) at random places that depend on seed, name and step alone.

    Raises ValueError where the text is shorter than a window.
    """
    room = len(tokens) - length + 1
    if room < 1:
        raise ValueError(f"text of {len(tokens)} tokens: must be at least {length}, one window")
    places = (inits.uniform((count,), 0.5, seed=seed, name=name, stream=step).double() + 0.5) * room
    return tokens[places.long()[:, None] + torch.arange(length)]


def windows(tokens: torch.Tensor, length: int, most: int) -> torch.Tensor:
    """At most `most` windows (count, length) of tokens (n,), evenly spread, not overlapping.

    Raises ValueError where the text is shorter than a window.
    """
    count = len(tokens) // length
    if count < 1:
        raise ValueError(f"text of {len(tokens)} tokens: must be at least {length}, one window")
    every = max(1, count // most)
    return tokens[: count * length].reshape(count, length)[::every][:most]
