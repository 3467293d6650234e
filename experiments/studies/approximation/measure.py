"""Measure the error of tickets against the width of their source, for approx_error.py.

Tickets are constructed, or learned for comparison with constructed ones in the same sources.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
import scipy  # its parts load where they are used
import torch
from torch import nn

from slth.attention import MultiHeadAttention
from slth.construct.adversary import worst_input
from slth.construct.certificates import Certificate, Merged, certificate
from slth.construct.factors import Side
from slth.construct.measure import output_errors, outputs
from slth.construct.multi_head import AttentionConstruction, Pair, achieved
from slth.experiments.lab import progress
from slth.experiments.studies.approximation import learning
from slth.tasks import angular_velocity as task
from slth.threads import cores, in_parallel, one_torch_thread
from slth.ticket import Ticket
from slth.weights.philox import stream_key

T = TypeVar("T")

SOURCE_INITS = {"theory": "theory", "xavier": "xavier_uniform", "antithetic": "antithetic"}
CONSTRUCTION = "construction"  # the method that learns nothing
FREE = "free"  # the side of a learned mask, which has no structural factor
TRAINING, VALIDATION = 4096, 256  # sequences for training scores, and for choosing masks
TASKS = {"paper": task.PAPER, "learnable": task.LEARNABLE}
ATTACKED = 400  # most rows of merged matrices that are attacked at once
RESOLVED = (4, 40)  # range of candidates per entry in which each one halves the error, within float64's resolution


@dataclass(frozen=True)
class Study:
    """The settings of the measurement: one target, several widths with many random sources, several input lengths."""

    method: str
    search: learning.Learning
    hidden: list[int]
    lengths: list[int]
    sources: list[int]  # one per length
    samples: list[int]  # one per length
    sides: list[Side]
    d_in: int
    d_out: int
    heads: int
    target: str
    target_hidden: int
    target_norm: float | None
    task: str
    source_init: str
    seed: int

    @property
    def alpha(self) -> float:
        """The largest norm of input tokens."""
        return math.sqrt(max(math.ceil(self.d_in / 2), self.d_in * TASKS[self.task].token ** 2))


# ---------------------------------------------------------------- target and sources


def make_target(study: Study) -> tuple[MultiHeadAttention, task.Report | None]:
    """Make the target attention, float64, and the report of its training (None for a random target)."""
    target = MultiHeadAttention(
        study.d_in, study.d_out, study.heads, study.target_hidden, seed=study.seed, dtype=torch.float64
    )
    report = None
    if study.target == "trained":
        report = task.train_target(target, length=min(study.lengths), seed=study.seed, setting=TASKS[study.task])
    norm = study.target_norm if study.target_norm or study.target == "trained" else 1.0
    if norm is not None:
        scale_factors(target, norm)
    return target.requires_grad_(False), report


@torch.no_grad()
def scale_factors(module: nn.Module, norm: float) -> None:
    """Scale every matrix among the parameters (..., rows, columns) to this spectral norm, in place."""
    for weight in module.parameters():
        weight.mul_(norm / torch.linalg.matrix_norm(weight, ord=2, keepdim=True))


def make_source(study: Study, hidden: int, source: int) -> MultiHeadAttention:
    """Make the random attention number `source` of a width."""
    return MultiHeadAttention(
        study.d_in, study.d_out, study.heads, hidden, init=study.source_init, seed=source_seed(study, source)
    )


def source_seed(study: Study, source: int) -> int:
    """Return the seed of the random source number `source`, the same at every width."""
    low, high = stream_key(study.seed, f"source/{source}")
    return low + (high << 32)


# ---------------------------------------------------------------- measurements


@dataclass(frozen=True)
class Series:
    """The tickets of one kind in the sources of one width: their merged matrices, and their columns of the table."""

    method: str
    side: str
    merged: list[Merged]
    columns: list[dict[str, Any]]


def measure(study: Study, target: MultiHeadAttention) -> tuple[pd.DataFrame, Ticket]:
    """Return one row per (hidden, length, source, side), and a ticket; side is FREE for learned masks.

    The ticket is the one constructed in the first of the widest sources, on the side with the least certificate.
    """
    merged = target.merged()
    inputs = test_inputs(study)
    with one_torch_thread():
        exact = [outputs(x, merged) for x in inputs]
        examples = _examples(study, merged) if study.method != CONSTRUCTION else None
        rows = []
        for hidden in study.hidden:
            tickets, first = _constructed(study, hidden, target)
            if examples is not None:
                tickets.append(_learned(study, hidden, merged, *examples))
            rows += [row for series in tickets for row in _measured(study, hidden, series, merged, inputs, exact)]
        ticket = min(first, key=lambda construction: construction.certificate.bound.item()).ticket()
    return pd.DataFrame(rows).sort_values(["hidden", "length", "source", "side"], ignore_index=True), ticket


def test_inputs(study: Study) -> list[torch.Tensor]:
    """Return inputs (samples, T + 1, d_in) float64 for each length."""
    return [_inputs(study, count, length, "test") for count, length in zip(study.samples, study.lengths, strict=True)]


def _inputs(study: Study, count: int, length: int, split: task.Split) -> torch.Tensor:
    return task.sample(count, length, study.d_in, seed=study.seed, split=split, setting=TASKS[study.task]).inputs


def _examples(study: Study, merged: Merged) -> tuple[learning.Examples, learning.Examples]:
    """Return the training and validation examples of masks, at the shortest length, from the target's task."""
    needed = min(TRAINING, study.search.steps * study.search.batch)
    inputs = [
        _inputs(study, needed, min(study.lengths), "train"),
        _inputs(study, VALIDATION, min(study.lengths), "validation"),
    ]
    train, validation = (learning.Examples(x.float(), outputs(x, merged).float()) for x in inputs)
    return train, validation


def _constructed(
    study: Study, hidden: int, target: MultiHeadAttention
) -> tuple[list[Series], list[AttentionConstruction]]:
    """Return one series for each side, and the constructions in the first source."""
    count = max(study.sources)
    first: list[AttentionConstruction] = []

    def construct(number: int) -> list[tuple[Merged, dict[str, Any]]]:
        pair = Pair.of(target, make_source(study, hidden, number))
        threads = max(1, cores() // count)
        qk = pair.query_key(threads=threads)
        constructions = [
            pair.assemble(
                qk, pair.value_output(side=side, threads=threads), alpha=study.alpha, length=max(study.lengths) + 1
            )
            for side in study.sides
        ]
        if number == 0:
            first.extend(constructions)
        return [(construction.merged, _construction_columns(construction)) for construction in constructions]

    by_source = _in_parallel(construct, count, f"hidden={hidden}: construct")
    tickets = []
    for side, of_side in zip(study.sides, zip(*by_source, strict=True), strict=True):
        merged, columns = zip(*of_side, strict=True)
        tickets.append(Series(CONSTRUCTION, side, list(merged), list(columns)))
    return tickets, first


def _learned(
    study: Study, hidden: int, target: Merged, train: learning.Examples, validation: learning.Examples
) -> Series:
    tickets = Series(study.method, FREE, [], [])
    for number in progress(range(max(study.sources)), f"hidden={hidden}: learn"):
        source = make_source(study, hidden, number).requires_grad_(False)
        search = replace(study.search, label=f"hidden={hidden} source={number}")
        learning.learn(source, train, validation, search)
        merged = source.double().merged()
        bound = certificate(target, merged, study.alpha, length=max(study.lengths) + 1)
        kept = torch.cat([weight.flatten() != 0 for weight in source.parameters()])
        tickets.merged.append(merged)
        tickets.columns.append(
            {**_bound_columns(bound), "keep": kept.double().mean().item(), **_error_columns(achieved(target, merged))}
        )
    return tickets


def _measured(
    study: Study, hidden: int, series: Series, merged: Merged, inputs: list[torch.Tensor], exact: list[torch.Tensor]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a series at every length."""
    adversarial = _adversarial_errors(study, series.merged, merged)
    for x, y, length, count in zip(inputs, exact, study.lengths, study.sources, strict=True):
        what = f"hidden={hidden} length={length} side={series.side}: measure"
        errors = _in_parallel(partial(_sample_errors, series.merged, x, y), count, what)
        for number, (columns, error) in enumerate(zip(series.columns, errors, strict=False)):
            yield {
                "hidden": hidden,
                "length": length,
                "source": number,
                "method": series.method,
                "side": series.side,
                "error_mean": error.mean().item(),
                "error_max": error.max().item(),
                "error_adversarial": adversarial[number],
                **columns,
                "d_in": study.d_in,
                "d_out": study.d_out,
            }


def _construction_columns(construction: AttentionConstruction) -> dict[str, Any]:
    return {
        **_bound_columns(construction.certificate),
        "unreachable": construction.unreachable,
        "unreachable_share": construction.unreachable / construction.entries,
        "candidates_qk": construction.candidates_qk,
        "candidates_vo": construction.candidates_vo,
        "keep": construction.keep,
        **_error_columns(construction.errors),
    }


def _bound_columns(bound: Certificate) -> dict[str, float]:
    return {"certificate": bound.bound.item(), "certificate_lemma8": bound.lemma8.item()}


def _error_columns(errors: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the errors of merged matrices, the largest over heads."""
    return {
        f"{name}_error_{norm}": float(size.max())
        for name, error in errors.items()
        for norm, size in (("max", error.abs()), ("spectral", torch.linalg.matrix_norm(error, ord=2)))
    }


def _sample_errors(tickets: list[Merged], x: torch.Tensor, exact: torch.Tensor, number: int) -> torch.Tensor:
    return output_errors(exact, tickets[number], x)


def _adversarial_errors(study: Study, tickets: list[Merged], merged: Merged) -> list[float]:
    errors = torch.empty(len(tickets), dtype=torch.float64)
    qk, vo = (torch.stack(matrices) for matrices in zip(*tickets, strict=True))
    at_once = max(1, min(ATTACKED // (study.heads * study.d_in), math.ceil(len(tickets) / 2)))
    parts = [slice(i, i + at_once) for i in range(0, len(tickets), at_once)]  # does not depend on the threads

    def work(which: slice) -> None:
        for part in parts[which]:
            errors[part], _ = worst_input(merged, (qk[part], vo[part]), study.alpha, seed=study.seed)

    in_parallel(work, len(parts))
    return errors.tolist()


def _in_parallel(measure: Callable[[int], T], count: int, what: str) -> list[T]:
    """Compute measure(0) to measure(count - 1) on all cores, with a progress bar."""
    results: dict[int, T] = {}
    with progress(None, what, total=count) as bar:

        def work(part: slice) -> None:
            for i in range(part.start, part.stop):
                results[i] = measure(i)
                bar.update()

        in_parallel(work, count)
    return [results[i] for i in range(count)]


# ---------------------------------------------------------------- summary


def fit_decay(hidden: np.ndarray, error: np.ndarray) -> dict[str, float] | None:
    """Fit gamma exp(-delta hidden) to errors by least squares, with delta's 95 % interval; None below 3 widths."""
    if len(hidden) < 3 or not (error > 0).all():
        return None
    slope = scipy.stats.linregress(hidden, np.log(error)).slope
    start = (float(error[0]), max(-slope, 1e-6))
    try:
        (gamma, delta), covariance = scipy.optimize.curve_fit(
            lambda n, g, d: g * np.exp(-d * n), hidden, error, p0=start, maxfev=10_000
        )
    except RuntimeError:  # no fit found
        return None
    half = float(scipy.stats.t.ppf(0.975, len(hidden) - 2)) * math.sqrt(covariance[1, 1])
    rate = float(delta)
    return {"gamma": float(gamma), "delta": rate, "delta_low": rate - half, "delta_high": rate + half}


def slope_bits(table: pd.DataFrame) -> float | None:
    """Fit the slope of log2(median error) over hidden/d_in, where float64 resolves it; None below 2 widths."""
    median = table.groupby("hidden")["error_mean"].median()
    candidates = median.index.to_numpy() / table["d_in"].iloc[0]
    inside = (candidates >= RESOLVED[0]) & (candidates <= RESOLVED[1]) & (median.to_numpy() > 0)
    if inside.sum() < 2:
        return None
    return float(scipy.stats.linregress(candidates[inside], np.log2(median.to_numpy()[inside])).slope)


def fits_of(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return fit and slope of the errors at the shortest length, for each side of a construction."""
    shortest = table[table["length"] == table["length"].min()]
    fits = {}
    for side, rows in shortest.groupby("side"):
        mean = rows.groupby("hidden")["error_mean"].mean()
        fit = fit_decay(mean.index.to_numpy(float), mean.to_numpy())
        nothing = dict.fromkeys(("gamma", "delta", "delta_low", "delta_high"))
        fits[str(side)] = {**(fit or nothing), "slope_bits": slope_bits(rows)}
    return fits


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Return fits, statistics of widths and violations of the certificate; gamma, delta and slope are of side=input.

    Fits, and the ratio of certificate to error, are those of constructed tickets, since the error of learned ones does
    not fall exponentially. Learned tickets are compared in "learned", and counted in violations of the certificate.
    """
    constructed = table[table["method"] == CONSTRUCTION]
    fits = fits_of(constructed)
    main = "input" if "input" in fits else next(iter(fits))
    measured = table[["error_max", "error_adversarial"]].max(axis=1)
    widest = constructed[constructed["hidden"] == constructed["hidden"].max()]
    return {
        **fits[main],
        "side": main,
        "fits": fits,
        "widths": [_width_summary(key, rows) for key, rows in table.groupby(["side", "length", "hidden"])],
        "learned": compare(table),
        "certificate_violations": int((~(measured <= table["certificate"])).sum()),
        "certificate_finite": bool(np.isfinite(table["certificate"]).all()),
        "certificate_over_error_max": float((widest["certificate"] / widest["error_max"]).median()),
        "certificate_over_error_adversarial": float((widest["certificate"] / widest["error_adversarial"]).median()),
    }


def ends_of_curves(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return the errors at the least and the largest width of each curve (side or depth, and length) of a summary."""
    widths = pd.DataFrame(summary["widths"])
    curve = [widths.columns[0], "length"]
    hidden = widths.groupby(curve)["hidden"]
    ends = widths[(widths["hidden"] == hidden.transform("min")) | (widths["hidden"] == hidden.transform("max"))]
    names = {"median": "error_median", "mean": "error_mean", "certificate_median": "certificate_median"}
    return ends[[*curve, "hidden", "sources", *names]].rename(columns=names)


def compare(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each length and width the median errors of learned tickets and of the better construction."""
    medians = table.groupby(["length", "hidden", "side"])["error_mean"].median().unstack("side")
    if FREE not in medians:
        return []
    learned, constructed = medians[FREE], medians.drop(columns=FREE).min(axis=1)
    comparison = pd.DataFrame({"learned": learned, "constructed": constructed, "ratio": learned / constructed})
    return [{str(name): value for name, value in row.items()} for row in comparison.reset_index().to_dict("records")]


def spread(error: pd.Series) -> dict[str, Any]:
    """Summarise the distribution of errors over sources."""
    return {
        "sources": len(error),
        "mean": error.mean(),
        "std": error.std(),
        "median": error.median(),
        "p90": error.quantile(0.9),
        "max": error.max(),
    }


def _width_summary(key: Hashable, rows: pd.DataFrame) -> dict[str, Any]:
    error = rows["error_mean"]
    return {
        **dict(zip(("side", "length", "hidden"), cast("tuple[str, int, int]", key), strict=True)),
        **spread(error),
        "unreachable_share": rows["unreachable_share"].mean(),
        "certificate_median": rows["certificate"].median(),
        "certificate_over_error_max": (rows["certificate"] / rows["error_max"]).median(),
        "certificate_over_error_adversarial": (rows["certificate"] / rows["error_adversarial"]).median(),
    }
