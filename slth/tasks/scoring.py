"""Perplexity and bits a byte of a language model on a text, by a sliding window, as papers report them.

The protocol is that of the transformers documentation, "Perplexity of fixed-length models": a window of `length` tokens
moves by `stride`, and each token is scored once, in the first window that reaches it. There a window includes the last
token that it scores, here `length` counts the tokens that the model reads: a window of L there is one of L - 1 here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from slth.numbers import as_int
from slth.tasks.vocabularies import Vocabulary

# WikiText's titles of articles, ` = Title = ` between empty lines; sections have two or more signs on each side.
_TITLE = re.compile(rb"(?m)(?:\A|^[ \t]*\n)(?P<title>^ = (?!= ).*(?<! =) = \n)(?=[ \t]*$)")


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        nats: the negative log likelihood of all scored tokens, summed in float64.
        tokens: how many were scored.
        bytes: of the scored text, in UTF-8; None where the tokens do not tell.
        words: of the scored text: what white space divides, and an end of line each, as WikiText is counted.
    """

    nats: float
    tokens: int
    bytes: int | None = None
    words: int | None = None

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def per_token(self) -> float:
        """The exponential of the mean loss of a token; infinity where that is too large for a float."""
        return _exp(self.loss)

    @property
    def per_word(self) -> float:
        """The same over words, which does not depend on the vocabulary; NaN where they are unknown."""
        return _exp(self.nats / self.words) if self.words else math.nan

    @property
    def bits_per_byte(self) -> float:
        """nats / ln 2 / bytes; NaN where bytes are unknown."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


@torch.no_grad()
def perplexity(
    model: nn.Module,
    documents: torch.Tensor | Sequence[torch.Tensor],
    length: int,
    stride: int,
    *,
    start: int | None = None,
    batch: int = 8,
) -> Perplexity:
    """Score every token of one document or several once, each given up to `length` tokens before it.

    The first window of a document scores `length` tokens, each later one the next `stride`: their contexts have
    length - stride + 1 to `length` tokens. No context reaches into another document.

    Args:
        model: tokens (count, T) int64 -> logits (count, T, size), or an object that has them as `logits`; it is run in
            eval mode, on the device of its parameters.
        documents: tokens (n,) of any integer type, or several of these.
        length: tokens that the model reads at once, >= 1.
        stride: tokens that each window but the first scores, in [1, length].
        start: a token that is put before each document, so that its first token is scored too; None: it is not scored.
        batch: windows at a time.

    Raises:
        ValueError: for numbers out of range, documents that are not (n,), and where no token can be scored.
    """
    length, batch = as_int("length", length, 1), as_int("batch", batch, 1)
    stride = as_int("stride", stride, 1, length, "at most length")
    every = [documents] if isinstance(documents, torch.Tensor) else list(documents)
    for tokens in every:
        if tokens.dim() != 1:
            raise ValueError(f"documents with a shape {tuple(tokens.shape)}: must be tokens (n,) each")
    if start is not None:
        every = [torch.cat((tokens.new_tensor([start]), tokens)) for tokens in every]
    sizes = [len(tokens) for tokens in every]
    count = sum(max(0, size - 1) for size in sizes)
    if count == 0:
        raise ValueError(f"documents of {sum(sizes)} tokens: must have a token to score, with one before it")
    device = next(iter(model.parameters()), torch.empty(0)).device
    flat = torch.cat(every).to(device)
    training = model.training
    model.eval()
    try:
        losses = [_nats(model, flat, *windows) for windows in _windows(sizes, length, stride, batch)]
    finally:
        model.train(training)
    return Perplexity(math.fsum(losses), count)


def _windows(sizes: Sequence[int], length: int, stride: int, batch: int) -> Iterator[tuple[int, list[int], list[int]]]:
    """(inputs, where each window begins, how many of its last targets it scores), windows of one size at a time."""
    by_size: dict[int, list[tuple[int, int]]] = {}
    offset = 0
    for size in sizes:
        begin, scored = 0, 0
        while scored < size - 1:  # all tokens have been inputs but the last, which has no target
            end = min(begin + length, size - 1)
            by_size.setdefault(end - begin, []).append((offset + begin, end - scored))
            begin, scored = begin + stride, end
        offset += size
    for inputs, windows in by_size.items():
        for at in range(0, len(windows), batch):
            begins, scored_of = zip(*windows[at : at + batch], strict=True)
            yield inputs, list(begins), list(scored_of)


def _nats(model: nn.Module, tokens: torch.Tensor, inputs: int, begins: list[int], scored: list[int]) -> float:
    """The negative log likelihood of the last targets of windows of so many inputs, as many as `scored` says."""
    places = torch.tensor(begins)[:, None] + torch.arange(inputs + 1)
    windows = tokens[places.to(tokens.device)].long()  # (count, inputs + 1)
    output = model(windows[:, :-1])
    logits = output if isinstance(output, torch.Tensor) else output.logits
    chosen = (torch.arange(inputs) >= inputs - torch.tensor(scored)[:, None]).to(tokens.device)
    return float(cross_entropy(logits[chosen], windows[:, 1:][chosen], reduction="none").double().sum())


# ---------------------------------------------------------------- texts


def text_perplexity(
    model: nn.Module,
    text: bytes,
    words: Vocabulary,
    length: int,
    stride: int,
    *,
    documents: str = "joined",
    batch: int = 8,
) -> Perplexity:
    """The perplexity of a text in UTF-8 as tokens of a vocabulary: every byte is scored exactly once.

    documents is "joined", the whole text as one, or "separate", by :func:`articles`: no article sees another. What
    comes first is predicted from an end of line. bits_per_byte is NaN where the vocabulary does not hold the text.

    Raises ValueError as :func:`perplexity` and :func:`articles` do, and for other values of documents.
    """
    if documents not in DOCUMENTS:
        raise ValueError(f"documents={documents!r}: must be one of {', '.join(DOCUMENTS)}")
    tokens = [words.encode(document) for document in DOCUMENTS[documents](text)]
    start = int(words.encode("\n")[-1])
    scored = perplexity(model, tokens, length, stride, start=start, batch=batch)
    whole = "".join(map(words.decode, tokens)).encode() == text
    return Perplexity(scored.nats, scored.tokens, len(text) if whole else None, len(text.split()) + text.count(b"\n"))


def articles(text: bytes) -> list[bytes]:
    """The articles of a text in WikiText's format; joined they are the text. What stands before the first goes with it.

    An article begins with a line ` = Title = ` between empty lines. Raises ValueError where there is none.
    """
    starts = [match.start("title") for match in _TITLE.finditer(text)]
    if not starts:
        raise ValueError("documents='separate': must be a text with articles as WikiText has, ` = Title = ` on a line")
    return [text[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)]


def _one(text: bytes) -> list[bytes]:
    return [text]


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


DOCUMENTS: dict[str, Callable[[bytes], list[bytes]]] = {"joined": _one, "separate": articles}
