"""The numbers in the summaries of a sweep's runs, and what they are over seeds: a table, and figures."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from slth import plots
from slth.experiments.sweeps.plan import flat
from slth.plots.curves import NOT_SHOWN, Curve, varying

Number = int | float
MOST = 100  # numbers of a summary that are gathered, the first ones
WIDE = 10  # times the least value: an axis that goes so far is logarithmic


@dataclass(frozen=True)
class Summarised:
    """A finished run: its config with one key for each value, as `plan.flat` has it, and its summary's numbers."""

    config: Mapping[str, Any]
    numbers: Mapping[str, Number]


def numbers_of(summary: Mapping[str, Any], taken: Iterable[str]) -> dict[str, Number]:
    """The numbers of a summary by name, of nested ones as a.b; no list's, and at most MOST.

    A name that is `taken` by another column is summary.NAME.
    """
    found = {key: value for key, value in flat(summary).items() if _is_number(value)}
    taken = {*taken}
    return {f"summary.{key}" if key in taken else key: found[key] for key in [*found][:MOST]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def statistics(runs: Sequence[Summarised]) -> pd.DataFrame:
    """What each number is over the seeds, at each combination of the config's other values.

    Columns: the config keys that vary, `number`, how many `runs` have it, `mean`, `std` (with one degree of freedom
    less), and `low` and `high`, Student's 95 % interval of the mean. Of a single run the last three are NaN.
    """
    keys = _keys(runs)
    groups: dict[tuple[str, ...], list[Summarised]] = {}
    for run in runs:
        groups.setdefault(tuple(_cell(run.config.get(key)) for key in keys), []).append(run)
    rows = [
        dict(zip(keys, values, strict=True)) | {"number": name} | _over([run.numbers.get(name) for run in group])
        for values, group in groups.items()
        for name in _names(group)
    ]
    return pd.DataFrame(rows, columns=[*keys, "number", "runs", "mean", "std", "low", "high"])


def _over(values: Sequence[Number | None]) -> dict[str, Any]:
    from slth.plots.across import interval  # with seaborn, which a sweep needs at its end alone

    measured = pd.Series([value for value in values if value is not None], dtype=float)
    low, high = interval(measured)
    return {"runs": len(measured), "mean": measured.mean(), "std": measured.std(), "low": low, "high": high}


def figures(runs: Sequence[Summarised], names: Sequence[str]) -> dict[str, Figure]:
    """The mean of each number over the seeds with its 95 % interval, against what varies.

    Of the config keys whose values are numbers, the one with the most values goes along the horizontal axis; whatever
    else varies is a series. Where no key is of numbers, the series stand below each other. Without a key that varies
    there is nothing to be drawn.

    Args:
        runs: that are finished.
        names: of the numbers.
    """
    if not (keys := _keys(runs)):
        return {}
    x = _along(runs, keys)
    tables = [(dict(run.config), pd.DataFrame([{**run.numbers, **({x: run.config[x]} if x else {})}])) for run in runs]
    return plots.across_runs(tables, [_curve(runs, x, name) for name in names])


def varied(runs: Sequence[Summarised]) -> list[str]:
    """The names of the numbers that are not the same in all runs."""
    return [name for name in _names(runs) if len({run.numbers.get(name) for run in runs}) > 1]


def _curve(runs: Sequence[Summarised], x: str | None, name: str) -> Curve:
    file = name if x is None else f"{name}_vs_{x}"
    along = "x" if x is not None and _wide([run.config[x] for run in runs]) else ""
    up = "y" if _wide([run.numbers[name] for run in runs if name in run.numbers]) else ""
    columns = frozenset({name} if x is None else {name, x})
    return Curve(file.replace("/", "_"), columns, x, name, labels=(x or "", name), log=along + up)


def _along(runs: Sequence[Summarised], keys: Sequence[str]) -> str | None:
    counts = {key: len({run.config.get(key) for run in runs}) for key in keys if _numeric(runs, key)}
    return max(counts, key=lambda key: counts[key], default=None)


def _numeric(runs: Sequence[Summarised], key: str) -> bool:
    return all(_is_number(run.config.get(key)) for run in runs)


def _wide(values: Sequence[Number]) -> bool:
    return len(values) > 0 and min(values) > 0 and max(values) >= WIDE * min(values)


def _keys(runs: Sequence[Summarised]) -> list[str]:
    return [key for key in varying([run.config for run in runs]) if key not in NOT_SHOWN]


def _names(runs: Sequence[Summarised]) -> Iterator[str]:
    yield from dict.fromkeys(name for run in runs for name in run.numbers)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
