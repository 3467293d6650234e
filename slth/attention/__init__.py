"""Attention mechanisms, sources and targets alike: one file each."""

from slth.attention.mha import MultiHeadAttention, attend, merged_attention

__all__ = ["MultiHeadAttention", "attend", "merged_attention"]
