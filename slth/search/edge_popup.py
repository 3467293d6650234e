"""Edge-popup: train scores through a straight-through mask (Ramanujan et al. 2020, arXiv 1911.13299)."""

from __future__ import annotations

from dataclasses import dataclass

from slth.search.base import Search


@dataclass(frozen=True, kw_only=True)
class EdgePopup(Search):
    """The search that all others vary: scores of random weights are trained, the best `keep` of them are the mask."""
