"""The tables and figures of a sweep. Except for times, they do not depend on how the sweep was interrupted."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas
from matplotlib.figure import Figure

from slth import plots
from slth.experiments import lab
from slth.experiments.sweeps import numbers
from slth.experiments.sweeps.numbers import Summarised, numbers_of
from slth.experiments.sweeps.plan import Run, flat, text, varying
from slth.experiments.sweeps.store import Store

# Columns that may differ when the same sweep is repeated:
TIMES = re.compile(r"(.*\.)?(.*_s|seconds.*|.*_per_s(econd)?([_.].*)?)")
ABOUT = ("seconds", "status", "config")  # the last columns of runs.csv
OVERLAP = (
    "the seeds of some runs overlap, since a run with seeds=n uses seed, ..., seed + n - 1: statistics.csv has no std, "
    "low and high for them, and no numbers are drawn; vary seed in steps of seeds"
)
DRAWN = 4  # numbers that are drawn by default
Row = dict[str, str]


def is_time(column: str) -> bool:
    """Return whether a column of results.csv or runs.csv, or a number of a summary, is a measurement of time."""
    return bool(TIMES.fullmatch(column))


def results(store: Store, runs: Sequence[Run]) -> tuple[list[str], list[Row]]:
    """Concatenate the tables of the runs, and return the columns and rows; cells are text, so numbers do not change.

    The columns are run_id, the config keys that vary among the runs, and the columns of the tables. A key that is also
    a column of a table is named config.KEY.
    """
    tables: dict[str, list[Row]] = {}
    for run in runs:
        with open(store.folder / run.id / "results.csv", encoding="utf-8", newline="") as file:
            tables[run.id] = list(csv.DictReader(file))
    own = list(dict.fromkeys(column for table in tables.values() for row in table for column in row))
    keys = {key: f"config.{key}" if key in own else key for key in varying(runs)}
    rows = [
        {"run_id": run.id, **{column: text(run.config.get(key)) for key, column in keys.items()}, **row}
        for run in runs
        for row in tables[run.id]
    ]
    return ["run_id", *keys.values(), *own], rows


def summarised(store: Store, runs: Sequence[Run]) -> dict[str, Summarised]:
    """Return the configs and the numbers of the summaries of finished runs, by run id."""
    taken = {"run_id", *ABOUT, *varying(runs)}
    summaries = {run.id: json.loads((store.folder / run.id / "summary.json").read_bytes()) for run in runs}
    return {run.id: Summarised(flat(run.config), numbers_of(summaries[run.id], taken)) for run in runs}


def overview(
    store: Store, runs: Sequence[Run], failed: Mapping[str, str], summaries: Mapping[str, Summarised]
) -> tuple[list[str], list[Row]]:
    """Return the columns of runs.csv and one row per run.

    The columns are run_id, the config keys that vary, the numbers of the summaries, seconds, status (COMPLETED or
    FAILED), and config: the values that differ from the defaults, as JSON.
    """
    keys, names = varying(runs), dict.fromkeys(name for run in summaries.values() for name in run.numbers)
    rows = []
    for run in runs:
        done = store.has(run.id) and run.id not in failed
        own = summaries[run.id].numbers if done else {}
        row = {"run_id": run.id, **{key: text(run.config.get(key)) for key in keys}}
        row |= {name: text(value) for name, value in own.items()}
        seconds = f"{duration(store.load(run.id)):.3f}" if done else ""
        about = (seconds, "COMPLETED" if done else "FAILED", json.dumps(run.changed, sort_keys=True))
        rows.append(row | dict(zip(ABOUT, about, strict=True)))
    return ["run_id", *keys, *names, *ABOUT], rows


def duration(run: Mapping[str, Any]) -> float:
    """Return the seconds from a run's start to its end, by Sacred's clock."""
    start, stop = (datetime.fromisoformat(run[name]) for name in ("start_time", "stop_time"))
    return (stop - start).total_seconds()


def as_csv(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    """Return the rows as CSV, in UTF-8 with LF line ends; columns that a row does not have are empty."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def figures(runs: Sequence[Run], table: pandas.DataFrame) -> dict[str, Figure]:
    """Draw the concatenated table with `slth.plots`; several runs are aggregated over seeds, other keys give series."""
    if len(runs) == 1:
        return plots.figures(table)
    configs = {run.id: run.config for run in runs}
    return plots.across_runs([(configs[str(run_id)], rows) for run_id, rows in table.groupby("run_id", sort=False)])


def gather(
    store: Store, experiment: str, runs: Sequence[Run], failed: Mapping[str, str], wanted: Sequence[str] | None
) -> tuple[dict[str, bytes], list[str]]:
    """Return the contents of the sweep's files by name, and remarks on what could not be drawn, one line each.

    Args:
        store: the sweep's folder.
        experiment: name of the experiment.
        runs: all runs of the sweep.
        failed: messages of the failed runs, by run id.
        wanted: numbers of the summaries to draw with intervals over seeds; None: the first four that vary.
    """
    from slth.experiments.sweeps.page import page

    done = [run for run in runs if run.id not in failed]
    columns, rows = results(store, done)
    table_csv = as_csv(columns, rows)
    found = summarised(store, done)
    listed, shown = overview(store, runs, failed, found)
    over_seeds = numbers.statistics([*found.values()])
    files = {"results.csv": table_csv, "runs.csv": as_csv(listed, shown)}
    files |= {"statistics.csv": over_seeds.to_csv(index=False, lineterminator="\n").encode()} if len(over_seeds) else {}
    names, remarks = _names_to_draw(found, wanted)
    if numbers.overlapping([*found.values()]):
        remarks.append(OVERLAP)
    pictures: dict[str, bytes] = {}
    try:
        drawn = figures(done, pandas.read_csv(io.BytesIO(table_csv))) if rows else {}
        pictures = lab.render({**numbers.figures([*found.values()], names), **drawn})
    except Exception as error:  # a figure may not support the concatenated tables of several runs
        remarks.append(f"no figures: {type(error).__name__}: {error}")
    svgs = {name: content for name, content in pictures.items() if name.endswith(".svg")}
    on_page = [column for column in listed if column in (*names, "run_id", *varying(runs), *ABOUT)]
    html = page(experiment, on_page, [{name: row.get(name, "") for name in on_page} for row in shown], failed, svgs)
    return {**files, **pictures, "index.html": html}, remarks


def _names_to_draw(found: Mapping[str, Summarised], wanted: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the names of the numbers to draw, and remarks on wanted names that no summary has."""
    there = dict.fromkeys(name for run in found.values() for name in run.numbers)
    if wanted is None or not found:
        return [name for name in numbers.varied([*found.values()]) if not is_time(name)][:DRAWN], []
    missing = [name for name in wanted if name not in there]
    remarks = [f"numbers={name}: not in the runs' summaries, which have {', '.join(there)}" for name in missing]
    return [name for name in wanted if name in there], remarks
