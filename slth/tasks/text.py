"""Text for language models: corpora, vocabularies, the split into training and validation, and batches of windows."""

from __future__ import annotations

import torch

from slth.numbers import as_int
from slth.tasks.corpora import Corpus, corpus
from slth.tasks.ngrams import bigram_loss, unigram_loss
from slth.tasks.scoring import DOCUMENTS, Perplexity, articles, perplexity, text_perplexity
from slth.tasks.vocabularies import BPE, OTHER, Bytes, Characters, Vocabulary, cache_folder, vocabulary
from slth.weights import inits

__all__ = [
    "BPE",
    "DOCUMENTS",
    "OTHER",
    "Bytes",
    "Characters",
    "Corpus",
    "Perplexity",
    "Vocabulary",
    "articles",
    "batch",
    "bigram_loss",
    "cache_folder",
    "corpus",
    "perplexity",
    "split",
    "text_perplexity",
    "tokens_of",
    "unigram_loss",
    "vocabulary",
    "windows",
]

_PIECE = 1 << 16  # tokens per piece of the split
_EVERY = 20  # one piece in this many is for validation


def tokens_of(text: Corpus, words: Vocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """Return training and validation tokens (n,) of a corpus: its own parts if it has them, else by :func:`split`."""
    training = words.encode(text.data)
    return split(training) if text.validation is None else (training, words.encode(text.validation))


def split(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split tokens (n,) into training and validation: every 20th piece of 65,536 tokens is for validation.

    Shorter texts have pieces of a twentieth of their length. Pieces of one file may be on both sides, but no piece is.
    """
    pieces = tokens.split(max(1, min(_PIECE, len(tokens) // _EVERY)))
    training = [piece for i, piece in enumerate(pieces) if i % _EVERY != _EVERY - 1]
    validation = [piece for i, piece in enumerate(pieces) if i % _EVERY == _EVERY - 1]
    return torch.cat(training), torch.cat(validation or [tokens[:0]])


def batch(tokens: torch.Tensor, count: int, length: int, *, seed: int, step: int, name: str) -> torch.Tensor:
    """Draw windows (count, length) int64 of tokens (n,) at random positions, which depend on seed, name and step alone.

    The result is on the tokens' device; positions are the same on every device. Raises ValueError if the text is
    shorter than a window.
    """
    count, length, step = (as_int(*each, 0) for each in (("count", count), ("length", length), ("step", step)))
    room = len(tokens) - length + 1
    if room < 1:
        raise ValueError(f"text of {len(tokens)} tokens: must be at least {length}, one window")
    places = (inits.uniform((count,), 0.5, seed=seed, name=name, stream=step).double() + 0.5) * room
    starts = places.long()[:, None].to(tokens.device, non_blocking=True)
    return tokens[starts + torch.arange(length, device=tokens.device)].long()


def windows(tokens: torch.Tensor, length: int, most: int) -> torch.Tensor:
    """Return at most `most` windows (count, length) int64 of tokens (n,), evenly spaced and without overlap.

    Raises ValueError if the text is shorter than a window.
    """
    length, most = as_int("length", length, 1), as_int("most", most, 1)
    count = len(tokens) // length
    if count < 1:
        raise ValueError(f"text of {len(tokens)} tokens: must be at least {length}, one window")
    every = max(1, count // most)
    return tokens[: count * length].reshape(count, length)[::every][:most].long()
