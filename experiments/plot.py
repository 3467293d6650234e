"""Redraw the figures of stored runs, and lay several runs over each other.

with runs=runs/3 draws one run's figures again; runs=[runs/3,runs/5] draws those of both, and both on the same axes.
A number stands for a run in the folder runs: runs=3, runs=[3,5]. A sweep's folder stands for all its finished runs.
"""

import os
import textwrap
from pathlib import Path
from typing import Any

import lab
import pandas
from matplotlib.figure import Figure

from slth import plots

ex = lab.experiment("plot")
ex.add_config(
    runs=None,  # a run's folder or number, a sweep's folder, or a list of them
    out=None,  # where the figures go; None: into the run's own folder, or runs/plots for several
)


def check(config: dict[str, Any]) -> tuple[dict[Path, tuple[pandas.DataFrame, dict[str, Any], dict[str, Any]]], Path]:
    """The runs (results, summary, config) by their folders, and the folder to write to."""
    runs = {folder: lab.load_run(folder) for folder in folders(config["runs"])}
    if not isinstance(config["out"], str | None):
        raise lab.BadConfig("out", config["out"], "a folder")
    return runs, Path(config["out"] or (next(iter(runs)) if len(runs) == 1 else lab.RUNS / "plots"))


def folders(given: Any) -> list[Path]:
    """Folders from one, a number, or a list of these; on the command line a list is a string in brackets."""
    runs = lab.unbracketed(given)
    runs = list(runs) if isinstance(runs, list | tuple) else [runs]
    if not runs or any(isinstance(run, bool) or not isinstance(run, int | str) or run == "" for run in runs):
        raise lab.BadConfig("runs", given, "a run's folder or number, or a list of them")
    named = [lab.RUNS / str(run) if str(run).isdigit() else Path(run) for run in runs]
    found = [folder for name in named for folder in finished(name)]
    if len({folder.resolve() for folder in found}) < len(found):
        raise lab.BadConfig("runs", given, "different runs")
    return found


def finished(folder: Path) -> list[Path]:
    """The finished runs of a sweep, in its order, for a sweep's folder; for any other the folder itself."""
    if not (folder / "runs.csv").is_file():
        return [folder]
    try:
        runs = pandas.read_csv(folder / "runs.csv", dtype=str)
        found = [folder / run_id for run_id in runs.loc[runs["status"] == "COMPLETED", "run_id"]]
    except (OSError, ValueError, KeyError) as error:
        raise lab.BadConfig("runs", str(folder), f"a sweep's folder; its runs.csv cannot be read ({error})") from error
    if not found:
        raise lab.BadConfig("runs", str(folder), "a sweep with finished runs")
    return found


@ex.command(unobserved=True)
def plot(_config: dict[str, Any]) -> None:
    """Draw the figures of the runs, and for several runs their overlays as well."""
    runs, out = check(_config)
    lab.require_writable(out, "out", "choose another with out=DIR")
    figures = overlays(runs)
    for name, (table, summary, _) in zip(prefixes(list(runs)), runs.values(), strict=True):
        drawn = plots.figures(table, summary.get("fits"), summary)
        figures |= {name + figure: one for figure, one in drawn.items()}
    if not figures:
        raise lab.BadConfig("runs", _config["runs"], "runs with a table that there is a figure for")
    lab.write(out, lab.render(figures))
    for figure in figures:
        print(f"figure: {out / figure}.png")


def overlays(runs: dict[Path, Any]) -> dict[str, Figure]:
    """The runs that hold errors over each other, against what varies in one of them; nothing below two such runs."""
    names = labels({run: config for run, (_, _, config) in runs.items()})
    tables = {names[run]: table for run, (table, _, _) in runs.items() if {*table.columns} >= plots.ERROR_COLUMNS}
    figures = {}
    for x, figure in (("hidden", "overlay_vs_width"), ("length", "overlay_vs_length")):
        if len(tables) > 1 and any(table[x].nunique() > 1 for table in tables.values()):
            figures[figure] = plots.overlay(tables, x)
    return figures


def labels(configs: dict[Path, dict[str, Any]]) -> dict[Path, str]:
    """For each run its folder, and the config values in which it differs from another; the axes show the widths."""
    keys = {key: None for config in configs.values() for key in config if key not in ("hidden", "lengths")}
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs.values()}) > 1]
    return {
        run: textwrap.shorten(", ".join([str(run), *(f"{key}={config.get(key)}" for key in differing)]), 70)
        for run, config in configs.items()
    }


def prefixes(runs: list[Path]) -> list[str]:
    """What tells the runs' figures apart: where the folders lie in the one that holds them all; nothing for one run."""
    if len(runs) == 1:
        return [""]
    common = os.path.commonpath([run.resolve() for run in runs])
    return ["_".join(run.resolve().relative_to(common).parts) + "_" for run in runs]


ex.default_command = "plot"

if __name__ == "__main__":
    lab.launch(ex, check)
