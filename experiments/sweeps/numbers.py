"""The numbers in the summaries of a sweep's runs: a table and figures of their statistics over seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from slth import plots
from slth.experiments.sweeps.plan import flat, text
from slth.plots.curves import Curve, varying

Number = int | float
MOST = 100  # maximum numbers per summary; the first ones are used
SEEDS = "seeds"  # this key gives series here, as summaries depend on it; other tables have a row per seed
WIDE = 10  # ratio of the largest to the smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Summarised:
    """The config of a finished run, flattened by `plan.flat`, and the numbers of its summary by name."""

    config: Mapping[str, Any]
    numbers: Mapping[str, Number]


def numbers_of(summary: Mapping[str, Any], taken: Iterable[str]) -> dict[str, Number]:
    """Return the first MOST numbers of a summary by name; nested ones are named a.b, and those in lists are left out.

    A name in `taken`, the names of other columns, becomes summary.NAME.
    """
    found = {key: value for key, value in flat(summary).items() if _is_number(value)}
    taken = {*taken}
    return {f"summary.{key}" if key in taken else key: found[key] for key in [*found][:MOST]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def statistics(runs: Sequence[Summarised]) -> pd.DataFrame:
    """Compute statistics of each number over the seeds, for each combination of the other config values.

    The columns are the config keys that vary, `number` (its name), `runs` (how many runs have it), `missing` (how many
    do not), `mean`, `std` (with n - 1 degrees of freedom), and `low` and `high`, Student's 95 % interval of the mean.
    The last three are NaN for a single run, and for runs whose seeds overlap, as these are not independent.
    """
    keys = _keys(runs)
    names = [*_names(runs)]
    rows = [
        dict(zip(keys, values, strict=True)) | {"number": name} | _statistics(group, name)
        for values, group in _groups(runs, keys).items()
        for name in names
    ]
    return pd.DataFrame(rows, columns=[*keys, "number", "runs", "missing", "mean", "std", "low", "high"])


def _groups(runs: Sequence[Summarised], keys: Sequence[str]) -> dict[tuple[str, ...], list[Summarised]]:
    """Group the runs by their values of these keys, as text."""
    groups: dict[tuple[str, ...], list[Summarised]] = {}
    for run in runs:
        groups.setdefault(tuple(text(run.config.get(key)) for key in keys), []).append(run)
    return groups


def _statistics(group: Sequence[Summarised], name: str) -> dict[str, Any]:
    from slth.plots.across import interval  # it imports seaborn, which a sweep needs only at its end

    measured = pd.Series([run.numbers[name] for run in group if name in run.numbers], dtype=float)
    counts = {"runs": len(measured), "missing": len(group) - len(measured), "mean": measured.mean()}
    if _overlap(group):
        return counts
    low, high = interval(measured)
    return counts | {"std": measured.std(), "low": low, "high": high}


def overlapping(runs: Sequence[Summarised]) -> bool:
    """Return whether two runs that differ only in `seed` use some of the same seeds, seed, ..., seed + seeds - 1."""
    return any(_overlap(group) for group in _groups(runs, _keys(runs)).values())


def _overlap(group: Sequence[Summarised]) -> bool:
    """Return whether runs with the same value of `seeds` overlap in their seeds."""
    first = sorted(run.config["seed"] for run in group if isinstance(run.config.get("seed"), int))
    count = group[0].config.get("seeds", 1)
    return isinstance(count, int) and any(b - a < count for a, b in pairwise(first))


def figures(runs: Sequence[Summarised], names: Sequence[str]) -> dict[str, Figure]:
    """Draw the mean of each number over seeds, with its 95 % interval, against the config keys that vary.

    The horizontal axis is the numeric key with the most values; the other keys that vary give separate series. If no
    numeric key varies, the means are listed one below the other. If no key varies, or seeds overlap, nothing is drawn.

    Args:
        runs: the finished runs.
        names: names of the numbers to draw.
    """
    if not (keys := _keys(runs)) or overlapping(runs):
        return {}
    x = _x_key(runs, keys)
    by = tuple(key for key in keys if key == SEEDS != x)
    columns = [*by] if x is None else [x, *by]
    tables = [
        (dict(run.config), pd.DataFrame([{**run.numbers, **{key: run.config[key] for key in columns}}])) for run in runs
    ]
    return plots.across_runs(tables, [_curve(runs, x, by, name) for name in names])


def varied(runs: Sequence[Summarised]) -> list[str]:
    """Return the names of the numbers that are not the same in all runs."""
    return [name for name in _names(runs) if len({run.numbers.get(name) for run in runs}) > 1]


def _curve(runs: Sequence[Summarised], x: str | None, by: tuple[str, ...], name: str) -> Curve:
    file = name if x is None else f"{name}_vs_{x}"
    along = "x" if x is not None and _wide([run.config[x] for run in runs]) else ""
    up = "y" if _wide([run.numbers[name] for run in runs if name in run.numbers]) else ""
    columns = frozenset({name} if x is None else {name, x})
    return Curve(file.replace("/", "_"), columns, x, name, labels=(x or "", name), by=by, log=along + up)


def _x_key(runs: Sequence[Summarised], keys: Sequence[str]) -> str | None:
    counts = {key: len({run.config.get(key) for run in runs}) for key in keys if _numeric(runs, key)}
    return max(counts, key=lambda key: counts[key], default=None)


def _numeric(runs: Sequence[Summarised], key: str) -> bool:
    return all(_is_number(run.config.get(key)) for run in runs)


def _wide(values: Sequence[Number]) -> bool:
    return len(values) > 0 and min(values) > 0 and max(values) >= WIDE * min(values)


def _keys(runs: Sequence[Summarised]) -> list[str]:
    return [key for key in varying([run.config for run in runs]) if key != "seed"]


def _names(runs: Sequence[Summarised]) -> Iterator[str]:
    yield from dict.fromkeys(name for run in runs for name in run.numbers)
