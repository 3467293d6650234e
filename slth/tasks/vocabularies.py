"""Vocabularies that encode text as tokens: bytes, a byte-level BPE, or characters.

Tokens have the smallest integer dtype that holds the vocabulary, in one tensor for a whole corpus.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from slth import files
from slth.extras import extra
from slth.numbers import as_int
from slth.tasks.corpora import Corpus

if TYPE_CHECKING:
    import tokenizers

_PIECE = 1 << 16  # most bytes of a piece of text that BPE trains on or encodes
_TOGETHER = 64  # pieces encoded at a time
OTHER = "\N{REPLACEMENT CHARACTER}"


class Vocabulary(Protocol):
    """A map between text and tokens 0, 1, ..., len - 1."""

    def __len__(self) -> int:
        """Return the number of tokens."""

    def encode(self, text: str | bytes) -> torch.Tensor:
        """Encode text, or its UTF-8, as tokens (n,) in the smallest of uint8, int16 and int32 for the vocabulary."""

    def decode(self, tokens: torch.Tensor) -> str:
        """Decode tokens (n,) to text."""


def vocabulary(name: str, corpus: Corpus, *, cache: Path | None = None) -> Vocabulary:
    """Make a vocabulary by name: "bytes", "bpe:SIZE" or "characters:SIZE", the latter two fitted to the corpus.

    cache is the folder of trained BPEs (:meth:`BPE.train`). Raises ValueError for an unknown name and a size that is
    out of range.
    """
    kind, _, size = name.partition(":")
    if name == "bytes":
        return Bytes()
    if kind not in ("bpe", "characters") or not size.isdecimal():
        raise ValueError(f"vocabulary {name!r}: must be bytes, bpe:SIZE or characters:SIZE")
    if kind == "bpe":
        return BPE.train(corpus, int(size), cache=cache)
    if int(size) < 2:
        raise ValueError(f"vocabulary {name!r}: must have a size >= 2")
    return Characters(corpus.text, int(size))


class Bytes:
    """The 256 bytes as tokens of UTF-8 text."""

    def __len__(self) -> int:
        return 256

    def encode(self, text: str | bytes) -> torch.Tensor:
        """Encode text, or its UTF-8, as tokens (n,) uint8."""
        return torch.from_numpy(np.frombuffer(_bytes(text), np.uint8).copy())

    def decode(self, tokens: torch.Tensor) -> str:
        """Decode tokens (n,) to text; invalid UTF-8 becomes the replacement character."""
        return bytes(tokens.tolist()).decode("utf-8", "replace")


class BPE:
    """Byte-pair encoding (Sennrich et al. 2016) on bytes as in GPT-2, which can encode any text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, corpus: Corpus, size: int, *, cache: Path | None = None) -> BPE:
        """Train a BPE of at most `size` tokens (256 of them the bytes) on a corpus, or load it from the cache.

        cache is the folder of trained BPEs, by default the user's (:func:`cache_folder`). A file's name has the digest
        of the corpus, the size and the version of `tokenizers`; a file that cannot be read is written again. Raises
        ValueError for a size outside [256, 2^20] and, before training, for a folder that is not writable.
        """
        size = as_int("size", size, 256, 1 << 20, "256 of them the bytes")
        with extra("text"):
            import tokenizers
        folder = cache_folder() if cache is None else Path(cache)
        path = folder / f"bpe-{size}-{corpus.digest}-tokenizers-{tokenizers.__version__}.json"
        kept = _load(path)
        if kept is None:
            _check_writable(folder)
            kept = _trained(corpus.data, size)
            files.write(path, kept.to_str().encode())
        return cls(kept)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str | bytes) -> torch.Tensor:
        """Encode text, or its UTF-8, as tokens (n,) int16 or int32.

        Texts over 65,536 bytes are encoded in pieces, each cut after its last line end.
        """
        pieces = _pieces(_bytes(text))
        encoded = [np.empty(0, _smallest(len(self)))]
        while some := list(islice(pieces, _TOGETHER)):
            found = self._tokenizer.encode_batch_fast(some)
            encoded += [np.array(piece.ids, _smallest(len(self))) for piece in found]
        return torch.from_numpy(np.concatenate(encoded))

    def decode(self, tokens: torch.Tensor) -> str:
        """Decode tokens (n,) to text; invalid UTF-8 becomes the replacement character."""
        return self._tokenizer.decode(tokens.tolist())


class Characters:
    """The most common characters of a text as tokens 0, 1, ...; the last token stands for all other characters."""

    def __init__(self, text: str, size: int = 128) -> None:
        counts = np.bincount(_codes(text))
        common = np.argsort(-counts, kind="stable")[: size - 1]  # ties: the lower code point first
        common = np.sort(common[counts[common] > 0])
        self.characters = [*map(chr, common.tolist()), OTHER]
        self._token = np.full(sys.maxunicode + 1, len(common), _smallest(len(self)))
        self._token[common] = np.arange(len(common))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str | bytes) -> torch.Tensor:
        """Encode text, or its UTF-8, as tokens (n,), one per character, in the smallest dtype for the vocabulary."""
        return torch.from_numpy(self._token[_codes(text if isinstance(text, str) else text.decode())])

    def decode(self, tokens: torch.Tensor) -> str:
        """Decode tokens (n,) to text."""
        return "".join(self.characters[i] for i in tokens.tolist())


def _codes(text: str) -> npt.NDArray[np.uint32]:
    """Return the code points of a text's characters."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _smallest(size: int) -> type[np.uint8] | type[np.int16] | type[np.int32]:
    """Return the smallest integer dtype that torch supports for tokens below size."""
    return np.uint8 if size <= 1 << 8 else np.int16 if size <= 1 << 15 else np.int32


# ---------------------------------------------------------------- byte-level BPE


def _pieces(data: bytes) -> Iterator[str]:
    """Cut UTF-8 into texts of at most _PIECE bytes, after a line end if there is one, else between characters.

    The pieces depend on the bytes alone, so that a text has only one encoding.
    """
    start = 0
    while start < len(data):
        end = start + _PIECE
        if end < len(data):
            line = data.rfind(b"\n", start, end)
            end = line + 1 if line >= 0 else _character_start(data, end)
        yield data[start:end].decode()
        start = end


def _character_start(data: bytes, at: int) -> int:
    """Return the last position up to `at` where a character of UTF-8 begins."""
    while data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _trained(data: bytes, size: int) -> tokenizers.Tokenizer:
    import tokenizers

    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_pieces(data), trainer)
    return tokenizer


def cache_folder() -> Path:
    """Return the folder of trained vocabularies: $XDG_CACHE_HOME/slth, or ~/.cache/slth if that is not set."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "slth"


def _load(path: Path) -> tokenizers.Tokenizer | None:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # missing or damaged: tokenizers raises plain Exception
        return None


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "no permission"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise ValueError(f"cache={str(folder)!r}: must be a folder that can be written ({reason})")
