"""Perplexity and bits per byte on a text's own validation and test parts, for comparison with papers."""

from dataclasses import dataclass

from torch import nn

from slth.experiments.lab import BadConfig
from slth.experiments.studies.gpt2.data import Data
from slth.experiments.studies.gpt2.training import windows_at_once
from slth.tasks import text as texts


@dataclass(frozen=True)
class Scoring:
    """Settings of the sliding window: tokens that the model reads at once, that a window scores, and documents."""

    length: int
    stride: int
    documents: str

    def check(self, data: Data) -> None:
        """Raise BadConfig (key `documents`) if separate articles are requested and the text's parts have none."""
        try:
            for text in data.parts.values():
                texts.DOCUMENTS[self.documents](text)
        except ValueError as error:
            raise BadConfig("documents", self.documents, f"joined with this text ({error})") from error

    def of(self, model: nn.Module, data: Data, who: str) -> dict[str, float]:
        """Return a model's results by name, such as test_bits_per_byte_ticket, for the parts that the text has."""
        numbers = {}
        batch = windows_at_once(self.length, data.vocabulary)
        for part, text in data.parts.items():
            found = texts.text_perplexity(
                model, text, data.words, self.length, self.stride, documents=self.documents, batch=batch
            )
            numbers[f"{part}_perplexity_{who}"] = found.per_token
            numbers[f"{part}_word_perplexity_{who}"] = found.per_word
            numbers[f"{part}_bits_per_byte_{who}"] = found.bits_per_byte
        return numbers
