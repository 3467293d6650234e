"""Edge-popup: train scores through a straight-through mask (Ramanujan et al. 2020, arXiv 1911.13299)."""

from __future__ import annotations

from dataclasses import dataclass

from slth.search.base import Search


@dataclass(frozen=True, kw_only=True)
class EdgePopup(Search):
    """Train the scores of random weights; the best `keep` share is the mask. All other searches are variants of it."""
