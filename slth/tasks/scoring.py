"""Perplexity and bits per byte of a language model on a text, by a sliding window, as papers report them.

The protocol is that of the transformers documentation, "Perplexity of fixed-length models": a window of `length` tokens
moves by `stride`, and each token is scored once, in the first window that reaches it. One difference: here `length`
counts the tokens that the model reads, there also the last token scored, so a window of L there has length L - 1 here.
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

# WikiText's article titles, ` = Title = ` between empty lines; section titles have two or more signs on each side.
_TITLE = re.compile(rb"(?m)(?:\A|^[ \t]*\n)(?P<title>^ = (?!= ).*(?<! =) = \n)(?=[ \t]*$)")


@dataclass(frozen=True)
class Perplexity:
    """The negative log likelihood of a text under a model, and the perplexities derived from it.

    Attributes:
        nats: negative log likelihood of all scored tokens, summed in float64.
        tokens: number of scored tokens.
        bytes: bytes of the scored text in UTF-8; None if the tokens do not determine it.
        words: words of the scored text, separated by white space, plus one per line end, as for WikiText; None if
            unknown.
    """

    nats: float
    tokens: int
    bytes: int | None = None
    words: int | None = None

    @property
    def loss(self) -> float:
        """The mean loss, in nats per token."""
        return self.nats / self.tokens

    @property
    def per_token(self) -> float:
        """The perplexity per token, exp(loss); infinity if it overflows."""
        return _exp(self.loss)

    @property
    def per_word(self) -> float:
        """The perplexity per word, which does not depend on the vocabulary; NaN if words is unknown."""
        return _exp(self.nats / self.words) if self.words else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte, nats / ln 2 / bytes; NaN if bytes is unknown."""
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
    """Score every token of one or several documents once, given up to `length` tokens before it.

    The first window of a document scores `length` tokens, each later window the next `stride` tokens, whose contexts
    have length - stride + 1 to `length` tokens. No context reaches into another document.

    Args:
        model: maps tokens (count, T) int64 to logits (count, T, size), or to an object with the attribute `logits`. It
            runs in eval mode, on the device of its parameters.
        documents: tokens (n,) of any integer dtype, or several of these.
        length: tokens that the model reads at once, >= 1.
        stride: tokens that each window except the first scores, in [1, length].
        start: token to put before each document, so that its first token is scored too. None: the first token is not
            scored.
        batch: windows per forward pass.

    Raises:
        ValueError: for numbers out of range, documents that are not (n,), and if there is no token to score.
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
    """Yield batches of windows of one size: (inputs per window, first positions, numbers of last targets to score)."""
    by_size: dict[int, list[tuple[int, int]]] = {}
    offset = 0
    for size in sizes:
        begin, scored = 0, 0
        while scored < size - 1:  # the last token is no input, since it has no target
            end = min(begin + length, size - 1)
            by_size.setdefault(end - begin, []).append((offset + begin, end - scored))
            begin, scored = begin + stride, end
        offset += size
    for inputs, windows in by_size.items():
        for at in range(0, len(windows), batch):
            begins, scored_of = zip(*windows[at : at + batch], strict=True)
            yield inputs, list(begins), list(scored_of)


def _nats(model: nn.Module, tokens: torch.Tensor, inputs: int, begins: list[int], scored: list[int]) -> float:
    """Compute the negative log likelihood of the last `scored` targets of each window of `inputs` inputs."""
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
    """Compute the perplexity of a text in UTF-8 with a vocabulary; every byte is scored exactly once.

    documents is "joined", the whole text as one document, or "separate", one document per article (:func:`articles`).
    The first token of a document is predicted from a line end. bits_per_byte is NaN if the vocabulary cannot represent
    the whole text.

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
    """Split a text in WikiText's format into its articles, without changing any byte.

    An article begins with a line ` = Title = ` between empty lines; text before the first one belongs to it. Raises
    ValueError if there is no such line.
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
