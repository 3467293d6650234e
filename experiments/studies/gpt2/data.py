"""Text for GPT-2: training tokens, validation windows, and the losses of n-gram models."""

from dataclasses import dataclass

import torch

from slth.experiments.lab import BadConfig
from slth.tasks import text as texts


@dataclass(frozen=True)
class Data:
    """A text as training tokens (n,) and validation windows (count, length), with n-gram losses in nats per token."""

    corpus: texts.Corpus
    words: texts.Vocabulary
    vocabulary: int
    training: torch.Tensor
    validation: torch.Tensor
    unigram: float
    bigram: float

    @property
    def parts(self) -> dict[str, bytes]:
        """The text's own validation and test parts, by name."""
        parts = {"validation": self.corpus.validation, "test": self.corpus.test}
        return {name: text for name, text in parts.items() if text is not None}

    @property
    def bytes_per_token(self) -> float:
        """Mean UTF-8 bytes per predicted validation token."""
        predicted = self.validation[:, 1:]
        if isinstance(self.words, texts.Bytes):
            return 1.0
        return sum(len(self.words.decode(window).encode()) for window in predicted) / predicted.numel()


def read(name: str, vocabulary: str, length: int, windows: int) -> Data:
    """Read and split a text. Raises BadConfig (keys `data`, `vocabulary`)."""
    known = name in ("stdlib", "installed", "wikitext-103") or name.startswith("path:")
    try:
        corpus = texts.corpus(name if known else f"path:{name}")
    except ValueError as error:
        raise BadConfig("data", name, f"a text that can be used ({error})") from error
    try:
        words = texts.vocabulary(vocabulary, corpus)
    except ValueError as error:
        raise BadConfig("vocabulary", vocabulary, f"one that can be had ({error})") from error
    training, validation = texts.tokens_of(corpus, words)
    try:
        shown = texts.windows(validation, length, windows)
        texts.windows(training, length, 1)
    except ValueError as error:
        raise BadConfig("data", name, f"long enough for windows of length={length} ({error})") from error
    return Data(
        corpus,
        words,
        len(words),
        training,
        shown,
        texts.unigram_loss(training, shown, len(words)),
        texts.bigram_loss(training, shown, len(words)),
    )
