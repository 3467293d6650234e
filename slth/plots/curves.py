"""Data of figures of several runs: only seeds are aggregated; everything else that varies makes separate series.

The `Curve` of a kind of table names the columns to draw. The rest is the same for all curves: there is one series for
each combination of values that vary, aggregated over its seeds at every x. No line joins two series, and every point of
a line is aggregated over the same seeds: seeds that were measured at other x are a separate series.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from slth.plots.tables import require

Run = tuple[Mapping[str, Any], pd.DataFrame]
"""The config of a run, and its table of measurements."""

NOT_SHOWN = ("seed", "seeds")  # config keys over which runs are aggregated
OF_COLUMN = {"lengths": "length", "variants": "variant"}  # config key -> the column that holds its values
NAMED = 8  # most values of a list in a label; a longer list shows the first and the last


@dataclass(frozen=True)
class Curve:
    """The definition of a figure of several runs.

    Attributes:
        name: name of the figure.
        columns: columns that a table must have.
        x: column of the horizontal axis. None: the figure has no such axis.
        y: column to aggregate over seeds.
        labels: labels of the two axes.
        by: columns that distinguish series if their values vary.
        panel: column whose values are panels. None: one panel.
        titles: maps all runs' tables to the panels' titles, by value.
        rows: maps a run's table to the rows to draw, with columns x and y.
        log: the logarithmic axes, "", "x", "y" or "xy".
        least: least number of different x that a series must have; otherwise there is no figure.
    """

    name: str
    columns: frozenset[str]
    x: str | None
    y: str
    labels: tuple[str, str]
    by: tuple[str, ...] = ()
    panel: str | None = None
    titles: Callable[[Sequence[pd.DataFrame]], Mapping[str, str]] = lambda tables: {}
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
    log: str = ""
    least: int = 1


def varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that differ between configs, in their order; a missing key counts as None.

    If the configs have different values of `experiment`, only keys that all of them have are compared.
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    if len({config.get("experiment") for config in configs}) > 1:
        keys = {key: None for key in keys if all(key in config for config in configs)}
    return [key for key in keys if len({_json(config.get(key)) for config in configs}) > 1]


def over_seeds(runs: Sequence[Run], curve: Curve) -> pd.DataFrame:
    """Return a table with one row per (panel, series, x, seed), where y is the mean over all other columns.

    A series is named by the values, as key=value, of the config keys and the columns `by` that vary among the runs.
    Seeds are those of the table's column `seed` if it has one, else the config's. Rows without y are left out. If the
    seeds of a series were not all measured at the same x, those with equal x are separate series, whose names include
    seeds and x. attrs["same"] names the values of `by` that do not vary, and attrs["titles"] the panels.

    Args:
        runs: (config, table) of each run; tables have the curve's columns.
        curve: the columns to draw.

    Raises:
        ValueError: if a table has no rows or lacks a column.
    """
    parts = []
    for config, table in runs:
        require(table, curve.columns)
        rows = curve.rows(_with_method(table, config))
        parts.append(rows.assign(**{} if "seed" in table else {"seed": config.get("seed", 0)}))
    own = [name for name in (curve.x, curve.panel, *curve.by) if name and all(name in part for part in parts)]
    keys = [
        key
        for key in varying([config for config, _ in runs])
        if key not in NOT_SHOWN and OF_COLUMN.get(key, key) not in own
    ]
    parts = [
        part.assign(**{f"config.{key}": text_of(config.get(key)) for key in keys})
        for part, (config, _) in zip(parts, runs, strict=True)
    ]
    table = pd.concat(parts, ignore_index=True).dropna(subset=curve.y)
    series = {name: name for name in curve.by if name in own and table[name].nunique() > 1}
    series |= {f"config.{key}": key for key in keys}
    named = [table[column].map(text_of).radd(f"{key}=") for column, key in series.items()]
    frame = pd.DataFrame(
        {
            "panel": table[curve.panel] if curve.panel else "",
            "series": _joined(named) if named else "",
            "x": table[curve.x] if curve.x else 0,
            "seed": table["seed"],
            "y": table[curve.y].astype(float),
        }
    )
    means = frame.groupby(["panel", "series", "x", "seed"], sort=False)["y"].mean().reset_index()
    if curve.x:
        means["series"] = _split_by_grid(means, curve.x)
    same = [name for name in curve.by if name in own and name not in series and len(table)]
    means.attrs["titles"] = dict(curve.titles(parts))
    means.attrs["same"] = [f"{name}={text_of(table[name].iloc[0])}" for name in same]
    return means


def _with_method(table: pd.DataFrame, config: Mapping[str, Any]) -> pd.DataFrame:
    """Add the config's search method to the table as a column, unless it has one."""
    method = config.get("method")
    method = method.get("name") if isinstance(method, Mapping) else method
    return table.assign(method=method) if isinstance(method, str) and "method" not in table else table


def _split_by_grid(means: pd.DataFrame, x: str) -> "pd.Series[str]":
    """Return the series of each row, such that all seeds of a series have the same values of x in each panel."""
    names = means["series"].astype(str)
    for series, rows in means.groupby("series", sort=False):
        groups = _of_one_grid(rows)
        for seeds in groups if len(groups) > 1 else []:
            own = rows[rows["seed"].isin(seeds)]
            parts = [str(series), f"seed={_listed(seeds)}", f"{x}=[{_listed(sorted(own['x'].unique()))}]"]
            names[own.index] = ", ".join(filter(None, parts))
    return names


def _of_one_grid(rows: pd.DataFrame) -> list[list[Any]]:
    """Group the seeds of one series such that those of a group have the same x wherever they share a panel."""
    groups: list[tuple[dict[Any, frozenset[Any]], list[Any]]] = []
    for seed, own in rows.groupby("seed"):
        grids = {panel: frozenset(values) for panel, values in own.groupby("panel")["x"]}
        for known, seeds in groups:
            if all(known.get(panel, grid) == grid for panel, grid in grids.items()):
                known |= grids
                seeds.append(seed)
                break
        else:
            groups.append((grids, [seed]))
    return [seeds for _, seeds in groups]


def _listed(values: Sequence[Any]) -> str:
    texts = [text_of(value) for value in values]
    return ",".join(texts if len(texts) <= NAMED else [*texts[:2], "...", texts[-1]])


def _joined(named: Sequence["pd.Series[str]"]) -> list[str]:
    return [", ".join(parts) for parts in zip(*named, strict=True)]


def text_of(value: Any) -> str:
    """Format a value for a label."""
    if isinstance(value, float | np.floating):
        return f"{value:g}"
    if isinstance(value, list | tuple | dict):
        return _json(value)
    return str(value)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
