"""The files of a run: write them atomically, and read them."""

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
HOME: Path | None = None  # a run's folder is moved here when the run has ended; sweeps set it


def save(
    run: Run,
    results: pandas.DataFrame,
    summary: Mapping[str, Any],
    figures: Mapping[str, Figure],
    others: Mapping[str, bytes] | None = None,
) -> Path | None:
    """Store the results of a run, and print where.

    Args:
        run: the run.
        results: written to results.csv, one row per measurement, without an index. Floats are written exactly, and
            equal floats as equal text.
        summary: written to summary.json as `plain(summary)`.
        figures: written as NAME.png, NAME.svg and NAME.pdf.
        others: further files by name.

    Everything is rendered before the first file is written, and files are written atomically. In a run folder of
    Sacred's the files are next to run.json; other observers store them as artifacts. Call it at the end of the main
    function, after which the run is marked COMPLETED.

    Returns:
        The run's folder, or None if it has none.
    """
    files = {"results.csv": _csv(results), "summary.json": _json(summary), **render(figures), **(others or {})}
    if not run.observers:
        return None
    folder = folder_of(run)
    with tempfile.TemporaryDirectory() if folder is None else contextlib.nullcontext(folder) as place:
        write_all(place, files)
        for name in files:  # in its own folder, the file observer only records the name
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
    """Write a table as CSV in UTF-8 with LF: float64 as the shortest text that is exact, NaN as an empty field."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def _json(summary: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(summary), indent=2, allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """Convert a value to dicts, lists, strings, ints, floats, bools and None; NaN and infinities become None.

    Raises:
        TypeError: for a value that cannot be converted.
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
    """Parse a JSON object to a dict. Raises ValueError for other JSON values."""
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
    """Return the folder of a run; None if it has none, or has not started."""
    return next((Path(o.dir) for o in run.observers if isinstance(o, FileStorageObserver) and o.dir), None)


def places_of(run: Run) -> list[str]:
    """Return the places URL#ID of a run in databases, without passwords."""
    urls = (o.engine.url for o in run.observers if isinstance(o, SqlObserver))
    return [f"{url.render_as_string(hide_password=True)}#{run._id}" for url in urls]


def require_writable(folder: Path, key: str, remedy: str) -> None:
    """Create the folder and try to write in it; if that fails, remove what was created and raise Refused."""
    with writable(folder, key, remedy):
        pass


@contextlib.contextmanager
def writable(folder: Path, key: str, remedy: str) -> Iterator[Path]:
    """Yield a writable folder, which is created if missing, and removed again if the with block raises.

    Raises Refused if it is not writable.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        _try_writing(folder, key, remedy)
        yield folder
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # missing, or no longer empty
                path.rmdir()
        raise


def _try_writing(folder: Path, key: str, remedy: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Refused(f"{key}={folder}: cannot write there ({error.strerror}); {remedy}") from error
