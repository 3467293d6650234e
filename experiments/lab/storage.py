"""What a run leaves: its files, each whole or not there, and how they are read again."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas
from matplotlib.figure import Figure

from slth.disk import write_all
from slth.experiments.lab.border import FileStorageObserver, Run, SqlObserver
from slth.experiments.lab.figures import render
from slth.experiments.lab.refusals import BadConfig, Refused, one_line

RUNS = Path("runs")
HOME: Path | None = None  # the folder that a run's folder is moved to when the run has ended; a sweep names its own


def save(
    run: Run,
    results: pandas.DataFrame,
    summary: Mapping[str, Any],
    figures: Mapping[str, Figure],
    others: Mapping[str, bytes] | None = None,
) -> Path | None:
    """Store what a run found, and say where.

    results.csv: one row per measurement, no index; the text of a float is exact, the same float gives the same text.
    summary.json: `plain(summary)`. Each figure: NAME.png, NAME.svg and NAME.pdf. Others: whole files by name.

    Everything is rendered before the first file is written, and a file appears under its name only when it is whole.
    In a run folder of Sacred's the files lie beside run.json; other observers store them as artifacts. Call it as the
    last act of the main function: the run is marked COMPLETED after it.

    Returns:
        The run's folder, or None where the run has none.
    """
    files = {"results.csv": _csv(results), "summary.json": _json(summary), **render(figures), **(others or {})}
    if not run.observers:
        return None
    folder = folder_of(run)
    with tempfile.TemporaryDirectory() if folder is None else contextlib.nullcontext(folder) as place:
        write_all(place, files)
        for name in files:  # the file observer's own folder: it notes the name and leaves the file alone
            run.add_artifact(os.path.join(place, name), name)
    for at in places_of(run):
        print(f"results: {at}")
    if folder is not None:
        home = folder if HOME is None else HOME / folder.name
        print(f"results: {home / 'results.csv'}")
        for name in figures:
            print(f"figure: {home / name}.png")
        for name in others or {}:
            print(f"file: {home / name}")
    return folder


def _csv(table: pandas.DataFrame) -> bytes:
    """The table as CSV in UTF-8 with LF: each float64 as the shortest text that stands for it alone, NaN as nothing."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def _json(summary: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(summary), indent=2, allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """The same as dicts, lists, strings, ints, floats, bools and None; NaN and infinities, unknown to JSON, are None.

    Raises:
        TypeError: for anything that has no such form.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, tensors
        return plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a summary holds numbers, strings, lists and dicts, not {type(value).__name__}: {value!r}")


def load_run(folder: str | os.PathLike[str]) -> tuple[pandas.DataFrame, dict[str, Any], dict[str, Any]]:
    """Read a stored run's folder: results, summary, config. (Those in databases: `stores.load_run`.)

    Raises:
        BadConfig: (key `runs`) if a file is missing or cannot be read, or Sacred did not mark the run COMPLETED.
    """
    folder = Path(folder)
    run = _load(folder, "run.json", _read_dict)
    if run.get("status") != "COMPLETED":
        lacks = "" if (folder / "results.csv").is_file() else " and has no results"
        raise BadConfig("runs", str(folder), f"a completed run; this one is {run.get('status')}{lacks}")
    results, summary, config = (_load(folder, name, read) for name, read in _READERS.items())
    config.pop("__doc__", None)
    return results, summary, config


def _load(folder: Path, name: str, read: Callable[[Path], Any]) -> Any:
    try:
        return read(folder / name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise BadConfig("runs", str(folder), f"a run's folder; its {name} cannot be read ({reason})") from error


def json_object(text: str | bytes) -> dict[str, Any]:
    """The dict that JSON stands for. Raises ValueError where it is something else."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _read_dict(path: Path) -> dict[str, Any]:
    return json_object(path.read_text(encoding="utf-8"))


_READERS: dict[str, Callable[[Path], Any]] = {
    "results.csv": pandas.read_csv,
    "summary.json": _read_dict,
    "config.json": _read_dict,
}


def folder_of(run: Run) -> Path | None:
    """Where a run is stored; None where it has no folder, or has not begun."""
    return next((Path(o.dir) for o in run.observers if isinstance(o, FileStorageObserver) and o.dir), None)


def places_of(run: Run) -> list[str]:
    """Where a run is stored in databases: URL#ID, without passwords."""
    urls = (o.engine.url for o in run.observers if isinstance(o, SqlObserver))
    return [f"{url.render_as_string(hide_password=True)}#{run._id}" for url in urls]


def require_writable(folder: Path, key: str, remedy: str) -> None:
    """Make the folder and try to write in it; where that fails, remove what was made and raise Refused."""
    with writable(folder, key, remedy):
        pass


@contextlib.contextmanager
def writable(folder: Path, key: str, remedy: str) -> Iterator[Path]:
    """The folder, made and writable; Refused where it is not. Folders that were made go where the block raises."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        _try_writing(folder, key, remedy)
        yield folder
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # not there, or no longer empty
                path.rmdir()
        raise


def _try_writing(folder: Path, key: str, remedy: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Refused(f"{key}={folder}: cannot write there ({error.strerror}); {remedy}") from error
