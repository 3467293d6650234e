"""Real text for language models: where it comes from, as which tokens, how it is split, and windows of it."""

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

_PIECE = 1 << 16  # tokens: the corpus is dealt out in pieces of this size
_EVERY = 20  # one piece in so many is for validation


def tokens_of(text: Corpus, words: Vocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and validation tokens (n,) of a corpus: its own parts where it has them, else by :func:`split`."""
    training = words.encode(text.data)
    return split(training) if text.validation is None else (training, words.encode(text.validation))


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
    """Windows (count, length) int64 of tokens (n,) at random places that depend on seed, name and step alone.

    They are cut out on the tokens' device, at the same places on every one.

    Raises ValueError where the text is shorter than a window.
    """
    count, length, step = (as_int(*each, 0) for each in (("count", count), ("length", length), ("step", step)))
    room = len(tokens) - length + 1
    if room < 1:
        raise ValueError(f"text of {len(tokens)} tokens: must be at least {length}, one window")
    places = (inits.uniform((count,), 0.5, seed=seed, name=name, stream=step).double() + 0.5) * room
    starts = places.long()[:, None].to(tokens.device, non_blocking=True)
    return tokens[starts + torch.arange(length, device=tokens.device)].long()


def windows(tokens: torch.Tensor, length: int, most: int) -> torch.Tensor:
    """At most `most` windows (count, length) int64 of tokens (n,), evenly spread, not overlapping.

    Raises ValueError where the text is shorter than a window.
    """
    length, most = as_int("length", length, 1), as_int("most", most, 1)
    count = len(tokens) // length
    if count < 1:
        raise ValueError(f"text of {len(tokens)} tokens: must be at least {length}, one window")
    every = max(1, count // most)
    return tokens[: count * length].reshape(count, length)[::every][:most].long()
