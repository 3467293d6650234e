"""Whole networks."""

from slth.models.transformer import Block, FeedForward, LanguageModel, Product, Table, Transformer

__all__ = ["Block", "FeedForward", "LanguageModel", "Product", "Table", "Transformer"]
