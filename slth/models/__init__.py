"""Models: GPT-2, and the transformer of arXiv 2511.04217."""

from slth.models.transformer import Block, FeedForward, LanguageModel, Product, Table, Transformer

__all__ = ["Block", "FeedForward", "LanguageModel", "Product", "Table", "Transformer"]
