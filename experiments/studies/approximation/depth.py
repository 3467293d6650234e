"""Measure the error of constructed tickets against the width of the source, for transformers of several blocks.

Figure 6 of arXiv 2511.04217: blocks of attention and a ReLU network without normalisation. Targets are untrained, with
one linear layer per network, and hidden in random transformers whose attentions and networks have equal width.

The depths are nested: the transformers of depth b are the first b blocks of the deepest target and of its sources. One
ticket is used for all depths, so that depths differ only in their blocks.
"""

import copy
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import numpy as np
import pandas as pd
import scipy  # its parts load where they are used
import torch

from slth.construct import TransformerConstruction, certify, pruned, transformer
from slth.experiments.lab import progress
from slth.experiments.studies.approximation import measure as approximation
from slth.experiments.studies.approximation.measure import (
    RESOLVED,
    scale_factors,
    source_seed,
    spread,
    test_inputs,
)
from slth.models.transformer import Transformer
from slth.threads import one_torch_thread
from slth.ticket import Ticket

HALVES = 2  # the ReLU splits each coordinate of a network's input


@dataclass(frozen=True)
class Study(approximation.Study):
    """The settings of the measurement: one target, truncated to several numbers of blocks."""

    depths: list[int]


# ---------------------------------------------------------------- target and sources


def make_target(study: Study) -> Transformer:
    """Make the deepest target transformer, float64, with spectral norm target_norm of each factor."""
    target = Transformer(
        study.d_in, max(study.depths), study.heads, study.target_hidden, (), seed=study.seed, dtype=torch.float64
    )
    scale_factors(target, study.target_norm or 1.0)
    return target.requires_grad_(False)


def make_source(study: Study, hidden: int, source: int) -> Transformer:
    """Make the random transformer number `source` of a width, for both attention and networks."""
    blocks, seed = max(study.depths), source_seed(study, source)
    return Transformer(study.d_in, blocks, study.heads, hidden, (hidden,), init=study.source_init, seed=seed)


def blocks_of(model: Transformer) -> list[Transformer]:
    """Return copies of the model with one block each."""
    parts = [copy.deepcopy(model) for _ in model.blocks]
    for b, part in enumerate(parts):
        part.blocks = part.blocks[b : b + 1]
    return parts


# ---------------------------------------------------------------- measurements


def measure(study: Study, target: Transformer) -> tuple[pd.DataFrame, Ticket]:
    """Return one row per (hidden, depth, length, source), and the ticket in the first of the widest sources."""
    inputs = test_inputs(study)
    with one_torch_thread():
        wanted = [after_blocks(blocks_of(target), x) for x in inputs]
        rows = [row for hidden in study.hidden for row in _measure_width(study, hidden, target, inputs, wanted)]
        ticket = transformer(target, make_source(study, study.hidden[-1], 0)).ticket()
    return pd.DataFrame(rows).sort_values(["hidden", "depth", "length", "source"], ignore_index=True), ticket


@torch.no_grad()
def after_blocks(blocks: list[Transformer], x: torch.Tensor) -> list[torch.Tensor]:
    """Return the vectors (samples, T + 1, d) after each block."""
    return list(accumulate(blocks, lambda x, block: block(x), initial=x))[1:]


def _measure_width(
    study: Study, hidden: int, target: Transformer, inputs: list[torch.Tensor], wanted: list[list[torch.Tensor]]
) -> Iterator[dict[str, Any]]:
    for number in progress(range(max(study.sources)), f"hidden={hidden}"):
        source = make_source(study, hidden, number)
        construction = transformer(target, source)
        twins = blocks_of(pruned(source, construction.masks).double())
        for x, want, length, count in zip(inputs, wanted, study.lengths, study.sources, strict=True):
            if number >= count:
                continue
            errors = _errors(after_blocks(twins, x), want)
            bounds = certify(target, construction, x)
            for depth in study.depths:
                yield {
                    "hidden": hidden,
                    "depth": depth,
                    "length": length,
                    "source": number,
                    "side": "input",
                    "error_mean": errors[depth - 1].mean().item(),
                    "error_max": errors[depth - 1].max().item(),
                    "certificate": bounds.blocks[depth - 1],
                    "certificate_recursion": bounds.recursion[depth - 1],
                    **_construction_columns(construction, depth, hidden, study.d_in),
                }


def _errors(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the largest error over positions (samples,) after each block."""
    return [torch.linalg.vector_norm(g - w, dim=-1).amax(-1) for g, w in zip(got, wanted, strict=True)]


def _construction_columns(construction: TransformerConstruction, depth: int, hidden: int, d_in: int) -> dict[str, Any]:
    """Return the columns of a construction for its first blocks, each an attention and a network."""
    parts = list(construction.parts.values())[: 2 * depth]
    unreachable = sum(part.unreachable for part in parts)
    return {
        "unreachable": unreachable,
        "unreachable_share": unreachable / sum(part.entries for part in parts),
        "candidates": min(part.candidates for part in parts),
        "candidates_attention": hidden // d_in,
        "candidates_feed_forward": hidden // (HALVES * d_in),
    }


# ---------------------------------------------------------------- summary


def fit_depths(errors: pd.DataFrame) -> dict[str, dict[str, Any]] | None:
    """Fit log(gamma_depth) - delta hidden to the logarithms of errors by least squares: one delta, a gamma per depth.

    errors: index hidden, one column per depth, all > 0. All depths have the same widths, so the common delta is that of
    their mean logarithm. The 95 % interval of this regression does not treat depths, which share their sources, as
    independent. Returns for each depth (a string) gamma, delta, delta_low, delta_high and r2 of the logarithms, and
    under "alone" the same of a fit to this depth alone. Returns None for fewer than 3 widths, or if an error is not
    > 0.
    """
    if len(errors) < 3 or not (errors > 0).all(axis=None):
        return None
    hidden, logs = errors.index.to_numpy(float), errors.apply(np.log)
    shared = _line(hidden, logs.mean(axis=1).to_numpy())
    fits = {}
    for depth, column in logs.items():
        y = column.to_numpy()
        offset = (y + shared["delta"] * hidden).mean()
        residual = y + shared["delta"] * hidden - offset
        r2 = 1.0 - float((residual**2).sum() / ((y - y.mean()) ** 2).sum())
        fits[str(depth)] = {**shared, "gamma": float(np.exp(offset)), "r2": r2, "alone": _line(hidden, y)}
    return fits


def _line(hidden: np.ndarray, logs: np.ndarray) -> dict[str, float]:
    """Fit a straight line to logarithms, as gamma exp(-delta hidden)."""
    line = scipy.stats.linregress(hidden, logs)
    half = float(scipy.stats.t.ppf(0.975, len(hidden) - 2)) * float(line.stderr)
    delta = -float(line.slope)
    return {
        "gamma": float(np.exp(line.intercept)),
        "delta": delta,
        "delta_low": delta - half,
        "delta_high": delta + half,
        "r2": float(line.rvalue**2),
    }


def resolved(table: pd.DataFrame) -> pd.DataFrame:
    """Return rows of widths with enough candidates in a half, and no more in attention than float64 resolves."""
    return table[(table["candidates_feed_forward"] >= RESOLVED[0]) & (table["candidates_attention"] <= RESOLVED[1])]


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Return the fits at the shortest length, the statistics of widths, and violations of the certificate.

    The fits are to the mean over sources, as in the paper. The mean falls at one rate, since it is dominated by
    unreachable entries, whose share falls at one rate. The median is fitted as well, but bends: it is flat while most
    sources have an unreachable entry in one of their blocks, and then falls with the resolution of the subset sums.
    """
    fitted = resolved(table[table["length"] == table["length"].min()])
    errors = fitted.pivot_table(index="hidden", columns="depth", values="error_mean", aggfunc=["mean", "median"])
    fits, medians = (
        fit_depths(errors[[of]].droplevel(0, axis=1)) if of in errors else None for of in ("mean", "median")
    )
    shared = ("delta", "delta_low", "delta_high")
    finite = table[np.isfinite(table["certificate_recursion"])]
    return {
        **{key: fits and next(iter(fits.values()))[key] for key in shared},
        "r2_least": fits and min(fit["r2"] for fit in fits.values()),
        "fits": fits,
        "fits_median": medians,
        "fitted_hidden": sorted(fitted["hidden"].unique().tolist()),
        "widths": [_width_summary(key, rows) for key, rows in table.groupby(["depth", "length", "hidden"])],
        "certificate_violations": int((~(table["error_max"] <= table["certificate"])).sum()),
        "certificate_finite": bool(np.isfinite(table["certificate"]).all()),
        "recursion_violations": int((finite["error_max"] > finite["certificate_recursion"]).sum()),
    }


def _width_summary(key: Hashable, rows: pd.DataFrame) -> dict[str, Any]:
    return {
        **dict(zip(("depth", "length", "hidden"), cast("tuple[int, int, int]", key), strict=True)),
        **spread(rows["error_mean"]),
        "unreachable_share": rows["unreachable_share"].mean(),
        "certificate_median": rows["certificate"].median(),
        "certificate_recursion_median": rows["certificate_recursion"].median(),
        "certificate_over_error_max": (rows["certificate"] / rows["error_max"]).median(),
    }
