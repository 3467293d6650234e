"""Measure the decibels above the information limit of every code, at every number of bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from slth import theory
from slth.construct import Code, encode
from slth.construct.subset_sum import FloatArray
from slth.experiments.lab import progress
from slth.experiments.studies.rate import peers
from slth.experiments.studies.rate.seedlm import SHAPES, seedlm

#: Structured codes: name -> options of :class:`slth.construct.Code`.
OURS: dict[str, Mapping[str, bool]] = {
    "pairs": {},
    "independent": {"orthogonal": False},
    "subset": {"pairs": False},
}
PEERS: dict[str, Callable[[FloatArray, int, int], tuple[FloatArray, float]]] = {
    "rounding": peers.rounding,
    "absmax": peers.absmax,
    "sign": peers.sign,
}
CODES = (*OURS, *PEERS, "seedlm")
GAUSSIAN, CHECKPOINT = "Gaussian", "checkpoint"
Outcome = tuple[float, float]
"""(mean squared error over mean square, bits per weight)."""


@dataclass(frozen=True)
class Study:
    """The settings of the measurement: matrices by kind of weights and name, and the codes.

    blocks: d of structured codes; scale: "matrix" or "row", their scales; group: weights per scale in other codes;
    seedlm_blocks: blocks of a matrix to code with SeedLM.
    """

    matrices: Mapping[str, Mapping[str, FloatArray]]
    codes: list[str]
    bits: list[int]
    blocks: list[int]
    scale: str
    group: int
    seedlm_blocks: int
    seed: int


def measure(study: Study) -> pd.DataFrame:
    """Return one row per (weights, matrix, code, block, bits); block is 0 for codes without blocks."""
    rows = []
    for weights, matrices in study.matrices.items():
        for name, matrix in progress(matrices.items(), weights):
            for code, block, bits in cases(study):
                started = time.perf_counter()
                outcome = _outcome(study, name, matrix, code, block, bits)
                seconds = time.perf_counter() - started
                rows.append(_row(weights, name, code, block, outcome) | {"seconds": seconds, "published": False})
    if GAUSSIAN in study.matrices:
        for code, (error, published, source) in peers.PUBLISHED.items():
            if round(published) in study.bits:
                row = _row(GAUSSIAN, source, code, 0, (error, published))
                rows.append(row | {"seconds": np.nan, "published": True})
    return pd.DataFrame(rows)


def cases(study: Study) -> Iterator[tuple[str, int, int]]:
    """Yield all possible (code, block, bits)."""
    for code in study.codes:
        for bits in study.bits:
            if code in OURS:
                yield from ((code, block, bits) for block in study.blocks if _can_be(code, block, bits))
            elif code == "seedlm":
                yield from ([(code, SHAPES[bits][0], bits)] if bits in SHAPES else [])
            elif code != "sign" or bits == 1:
                yield code, 0, bits


def _can_be(code: str, block: int, bits: int) -> bool:
    try:
        Code(bits, block, **OURS[code])
    except ValueError:
        return False
    return True


def _outcome(study: Study, name: str, matrix: FloatArray, code: str, block: int, bits: int) -> Outcome:
    if code in OURS:
        scale: Any = study.scale
        construction = encode(matrix, Code(bits, block, scale=scale, **OURS[code]), seed=study.seed, name=name)
        return construction.error, construction.bits
    if code == "seedlm":
        some, decoded = seedlm(matrix, bits, study.seedlm_blocks)
        return _error(some, decoded), float(bits)
    decoded, counted = PEERS[code](matrix, bits, study.group)
    return _error(matrix, decoded), counted


def _error(matrix: FloatArray, decoded: FloatArray) -> float:
    return float(np.square(decoded - matrix).mean() / np.square(matrix).mean())


def _row(weights: str, name: str, code: str, block: int, outcome: Outcome) -> dict[str, Any]:
    error, bits = outcome
    return {
        "weights": weights,
        "matrix": name,
        "code": code,
        "block": block,
        "bits": bits,
        "error": error,
        "above_limit_db": theory.above_limit(error, bits),
    }


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Return bits and decibels above the limit of each code, as means over the matrices of a kind."""
    nominal = table.assign(nominal=table["bits"].astype(int))
    of_code = nominal.groupby(["weights", "code", "block", "nominal"], sort=False)
    return of_code[["bits", "above_limit_db"]].mean().reset_index()


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Return :func:`means` by weights, code and bits without scales."""
    return {
        str(weights): {
            f"{row.code}{f' d={row.block}' * bool(row.block)} {row.nominal} bits": row.above_limit_db
            for row in rows.itertuples()
        }
        for weights, rows in means(table).groupby("weights", sort=False)
    }
