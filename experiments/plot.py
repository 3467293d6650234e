"""Redraw the figures of stored runs, and draw several runs in one figure.

runs=runs/3 redraws the figures of one run. runs=[runs/3,runs/5] redraws those of both runs, and draws both on the same
axes: runs that differ only in their seed are one line, the mean with its 95 % interval, and others are separate lines.
title=, xlabel=, ylabel=, log=xy and width= (a paper's column or page) apply to every figure, center=median to figures
of several runs. x=hidden y=error_mean by=side draws any columns that all tables have, also of several experiments.

A number, or another id, is a run in the folder runs: runs=3, runs=[3,5]. For runs stored with -F DIR, use the same
-F DIR here, or folder=DIR. A sweep's folder stands for all its finished runs. A run in a database is URL#ID, such as
sqlite:///runs.db#0, and a URL alone stands for all its finished runs.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas
from matplotlib.figure import Figure

from slth import plots
from slth.disk import write_all
from slth.experiments import lab
from slth.experiments.lab import BadConfig, Refused, scripts, stores
from slth.experiments.lab.options import as_list, several, where
from slth.experiments.lab.storage import RUNS
from slth.experiments.lab.values import require_text, unbracketed
from slth.plots.layout import SIZES

Place = Path | str
"""Where a run is stored: its folder, or URL#ID."""
Stored = tuple[pandas.DataFrame, dict[str, Any], dict[str, Any]]
"""A run's results, summary and config."""

A_COLUMN = where(lambda value: isinstance(value, str) and value != "", "a column")

named_folder: list[str] = []  # with -F


@dataclass(frozen=True)
class Config(lab.Options):
    """The runs to draw, and the figures' layout and folder."""

    runs: Any = lab.anything(
        None,
        allowed="a run's folder, number or URL#ID, or a list of them",
        help="a run's folder, number or URL#ID, a sweep's folder, a database's URL, or a list of them",
    )
    folder: str | None = lab.text(
        None, "a folder", help="folder of the runs that are given by number or id; None: the folder of -F, or runs"
    )
    out: str | None = lab.text(
        None,
        "a folder",
        help="folder for the figures; None: the run's own folder, or for several runs a folder in FOLDER/plots",
    )
    width: str = lab.choice(
        "screen", lambda: SIZES, help="width of figures; a paper's column is 3.25 in, its page 6.75 in"
    )
    title: str | None = lab.text(None, "text", help="title of all figures; None: each figure's default")
    xlabel: str | None = lab.text(None, "text", help="label of the horizontal axes; None: the default")
    ylabel: str | None = lab.text(None, "text", help="label of the vertical axes; None: the default")
    log: str | None = lab.choice(
        None,
        ("x", "y", "xy", "none"),
        help="logarithmic axes; None: each figure's default, which axes with names or with values <= 0 always keep",
    )
    center: str = lab.choice(
        "mean",
        ("mean", "median"),
        help="aggregation over seeds: mean with its 95 % interval, or median with the middle half of the seeds",
    )
    x: str | None = lab.text(None, "a column", help="column to draw y against, instead of the default figures of runs")
    y: str | None = lab.text(None, "a column", help="column to aggregate over seeds and all columns except x and by")
    by: list[str] | None = lab.key(None, several(A_COLUMN), help="columns whose values make separate series")

    def check(self) -> None:
        """Read the runs, and raise BadConfig unless their tables have the columns."""
        stored = self.stored
        together = {"by": self.by, "center": None if self.center == "mean" else self.center}
        for key, value in together.items():
            if value is not None and len(stored) == 1 and self.x is None:
                raise BadConfig(
                    key, value, "left out for a single run without x and y: its figures have axes of their own"
                )
        for key, other in (("x", "y"), ("y", "x"), ("by", "x")):
            if getattr(self, key) is not None and getattr(self, other) is None:
                raise BadConfig(other, None, f"a column, as {key} is given")
        for key, columns in (("x", [self.x]), ("y", [self.y]), ("by", self.by or [])):
            for column in filter(None, columns):
                self._require_column(key, column, number=key != "by")

    def _require_column(self, key: str, column: str, *, number: bool) -> None:
        for table, _, _ in self.stored.values():
            if column not in table or (number and not pandas.api.types.is_numeric_dtype(table[column])):
                known = [name for name in table if all(name in other for other, _, _ in self.stored.values())]
                known = [name for name in known if not number or pandas.api.types.is_numeric_dtype(table[name])]
                what = f"a column{' of numbers' * number} in every run's table"
                raise BadConfig(key, column, f"{what}: {', '.join(map(str, known)) or 'there is none'}")

    @property
    def curves(self) -> "Sequence[plots.Curve]":
        """Return the curves of several runs: the columns x and y, or all default figures."""
        if self.x is None or self.y is None:
            return plots.CURVES
        by = tuple(self.by or ())
        columns, log = frozenset({self.x, self.y, *by}), self._log or ""
        return [plots.Curve(f"{self.y}_vs_{self.x}", columns, self.x, self.y, (self.x, self.y), by, log=log)]

    @property
    def layout(self) -> "plots.Layout":
        """Return the layout of all figures; with x and y, log belongs to their curve, which may refuse it."""
        log = self._log if self.x is None else None
        return plots.Layout(self.width, self.title, self.xlabel, self.ylabel, log)

    @property
    def _log(self) -> str | None:
        return None if self.log is None else self.log.replace("none", "")

    @cached_property
    def stored(self) -> dict[Place, Stored]:
        """Return the runs by their places."""
        found = places(self.runs, self._folder)
        for place in found:
            if isinstance(place, Path) and not os.path.isdir(place):
                why = "its results.csv cannot be read (no such folder)"
                hint = "-F DIR, or folder=DIR, says where runs lie that are given by number"
                raise BadConfig("runs", str(place), f"a run's folder; {why}; {hint}")
        return {place: stores.load_run(place) for place in found}

    @property
    def target(self) -> Path:
        """Return the folder to write to."""
        runs = list(self.stored)
        own = runs[0] if len(runs) == 1 and isinstance(runs[0], Path) else folder_of(runs, self._folder)
        return Path(self.out or own)

    @property
    def _folder(self) -> Path:
        return Path(self.folder or next(iter(named_folder), RUNS))


ex = lab.experiment("plot", Config)


@ex.option_hook  # type: ignore[untyped-decorator]
def note_folder(options: Mapping[str, Any]) -> None:
    """Use -F as the folder of the runs, since a plot itself is not stored."""
    named_folder[:] = filter(None, [options["--file_storage"]])


def places(given: Any, folder: Path = RUNS) -> list[Place]:
    """Return places from a place, a number, or a list of these; runs given by number or id are in the folder."""
    runs = as_list(unbracketed(given))
    if not runs or any(isinstance(run, bool) or not isinstance(run, int | str) or run == "" for run in runs):
        raise BadConfig("runs", given, "a run's folder, number or URL#ID, or a list of them")
    require_text("runs", runs)
    found = [place for run in runs for place in _places_of(run, folder)]
    if len({place.resolve() if isinstance(place, Path) else place for place in found}) < len(found):
        raise BadConfig("runs", given, "different runs")
    return found


def _places_of(run: int | str, folder: Path) -> list[Place]:
    if not stores.is_url(run):
        number = isinstance(run, int) or run.isdecimal()
        inside = folder / str(run)
        place = inside if number or (os.path.isdir(inside) and not os.path.isdir(run)) else Path(str(run))
        return [*finished(place)]
    run = str(run)
    if stores.SEPARATOR in run:
        return [run]
    ids = stores.runs_in(run)
    if not ids:
        raise BadConfig("runs", run, "a database with finished runs")
    return [f"{run}{stores.SEPARATOR}{run_id}" for run_id in ids]


def finished(folder: Path) -> list[Path]:
    """Return the finished runs of a sweep's folder, in the sweep's order; for any other folder the folder itself."""
    if not os.path.isfile(folder / "runs.csv"):  # also False for an invalid file name
        return [folder]
    try:
        runs = pandas.read_csv(folder / "runs.csv", dtype=str)
        found = [folder / run_id for run_id in runs.loc[runs["status"] == "COMPLETED", "run_id"]]
    except (OSError, ValueError, KeyError) as error:
        raise BadConfig("runs", str(folder), f"a sweep's folder; its runs.csv cannot be read ({error})") from error
    if not found:
        raise BadConfig("runs", str(folder), "a sweep with finished runs")
    return found


@ex.unstored
def plot(config: Config, run: lab.Run) -> None:
    """Draw the figures of the runs, and for several runs also the figures of all of them."""
    with lab.writable(config.target, "out", "choose another with out=DIR") as out:
        figures = drawn(config)
        write_all(out, lab.render(figures))
    for figure in figures:
        print(f"figure: {out / figure}.png")


def drawn(config: Config) -> dict[str, Figure]:
    """Return the figures by name. Raises BadConfig if there is none."""
    runs = config.stored
    figures = overlays(config) if len(runs) > 1 or config.x else {}
    if len(runs) > 1 and not figures:
        print(f"no overlay: no two of the {len(runs)} runs have tables that there is one figure for")
    for name, (table, summary, _) in zip(prefixes(list(runs)), runs.values(), strict=True) if not config.x else ():
        of_run = plots.figures(table, summary, layout=config.layout)
        figures |= {name + figure: one for figure, one in of_run.items()}
    if not figures:
        raise BadConfig("runs", config.runs, "runs with a table that there is a figure for")
    return figures


def overlays(config: Config) -> dict[str, Figure]:
    """Draw several runs in one figure, aggregated over seeds; no figures if no two runs have tables of one kind."""
    tables = [table for table, _, _ in config.stored.values()]
    shown = without_free_keys({run: of_run for run, (_, _, of_run) in config.stored.items()})
    configs = told_apart(with_experiments(shown))
    together = list(zip(configs, tables, strict=True))
    try:
        if config.x:
            (curve,) = config.curves
            axes = plots.overlay(together, curve, center=config.center, layout=config.layout)
            figures = {curve.name: plots.figure_of(axes)}
        else:
            figures = plots.across_runs(together, config.curves, center=config.center, layout=config.layout)
    except ValueError as error:
        raise Refused(str(error)) from error
    return {f"overlay_{name}": figure for name, figure in figures.items()}


def told_apart(configs: Mapping[Place, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the configs, with the place as runs=PLACE added to those that are equal to another's."""
    texts = [json.dumps(config, sort_keys=True, default=str) for config in configs.values()]
    names = _apart([_name(run) for run in configs], str)
    return [
        config if texts.count(text) == 1 else config | {"runs": name}
        for config, text, name in zip(configs.values(), texts, names, strict=True)
    ]


def without_free_keys(configs: Mapping[Place, dict[str, Any]]) -> dict[Place, dict[str, Any]]:
    """Return the configs without the keys that their experiments, if part of this project, declare free."""
    free = {name: scripts.free_keys(name) for name in {experiment_of(run) for run in configs} & {*scripts.names()}}
    return {
        run: {key: value for key, value in config.items() if key not in free.get(experiment_of(run), ())}
        for run, config in configs.items()
    }


def with_experiments(configs: Mapping[Place, dict[str, Any]]) -> dict[Place, dict[str, Any]]:
    """Return the configs, with the name of the experiment added if there are several experiments."""
    named = {run: {"experiment": experiment_of(run)} for run in configs}
    several = len({name["experiment"] for name in named.values()}) > 1
    return {run: named[run] | config if several else config for run, config in configs.items()}


def experiment_of(run: Place) -> str:
    """Return the name of a run's experiment; "" if it is not stored."""
    text = (run / "run.json").read_bytes() if isinstance(run, Path) else stores.files(run)["run.json"]
    return str(json.loads(text).get("experiment", {}).get("name", ""))


def folder_of(runs: Sequence[Place], folder: Path = RUNS) -> Path:
    """Return the folder for figures of exactly these runs, in FOLDER/plots, named by their names and a hash."""
    places = [str(run.resolve()) if isinstance(run, Path) else run for run in runs]
    names = "_".join(Path(run).name if isinstance(run, Path) else stores.name(run) for run in runs)
    digest = hashlib.sha256("\0".join(places).encode(errors="replace")).hexdigest()[:8]
    return folder / "plots" / f"{_slug(names)[:40]}-{digest}"


def prefixes(runs: Sequence[Place]) -> list[str]:
    """Return prefixes for the runs' figures: paths below the common folder, or database and id; "" for one run."""
    if len(runs) == 1:
        return [""]
    holders = [run.resolve().parent for run in runs if isinstance(run, Path)]
    common = os.path.commonpath(holders) if holders else ""
    parts = [run.resolve().relative_to(common).parts if isinstance(run, Path) else (_name(run),) for run in runs]
    return _apart(["_".join(one) for one in parts], lambda text: f"{_slug(text)}_")


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", text)


def _name(run: Place) -> str:
    return str(run) if isinstance(run, Path) else stores.name(run)


def _apart(texts: Sequence[str], shown: Callable[[str], str]) -> list[str]:
    """Return the texts as shown, with numbers appended if two would look alike."""
    short = [shown(text) for text in texts]
    return short if len({*short}) == len(short) else [shown(f"{n} {text}") for n, text in enumerate(texts, 1)]


if __name__ == "__main__":
    lab.launch(ex)
