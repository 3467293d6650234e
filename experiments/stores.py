"""Runs that Sacred stored in an SQL database (-s URL): read like those in a folder.

A run in a database is named URL#ID: sqlite:///runs.db#3, postgresql+psycopg://user@host/study#3. It holds what a run's
folder does: its config, its status, and results.csv and summary.json as artifacts.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import lab
import pandas
from lab import BadConfig, Refused

SEPARATOR = "#"
NEEDED = ("results.csv", "summary.json")


def is_url(place: object) -> bool:
    """Whether a place is in a database, and no folder."""
    return isinstance(place, str) and "://" in place


def load_run(place: str | os.PathLike[str]) -> tuple[pandas.DataFrame, dict[str, Any], dict[str, Any]]:
    """Read a stored run, a folder or URL#ID: results, summary, config. Folders as `lab.load_run` does.

    Raises BadConfig (key `runs`) where there is no such run, it is not COMPLETED, or it lacks a file; Refused where the
    database cannot be reached.
    """
    if not is_url(place):
        return lab.load_run(place)
    place = str(place)
    url, _, run_id = place.partition(SEPARATOR)
    with _connected(url) as (connection, select, tables):
        run, artifact = tables["run"], tables["artifact"]
        row = connection.execute(select(run.c.status, run.c.config).where(run.c.run_id == run_id)).first()
        if row is None:
            known = ", ".join(runs_in(url)) or "none"
            raise BadConfig("runs", place, f"a run of that database; its completed ones: {known}")
        if row.status != "COMPLETED":
            raise BadConfig("runs", place, f"a completed run; this one is {row.status}")
        found = connection.execute(select(artifact.c.filename, artifact.c.content).where(artifact.c.run_id == run_id))
        files = {one.filename: bytes(one.content) for one in found}
    for name in NEEDED:
        if name not in files:
            raise BadConfig("runs", place, f"a run with results; it has no {name}")
    results = _read(place, "results.csv", lambda: pandas.read_csv(io.BytesIO(files["results.csv"])))
    summary = _read(place, "summary.json", lambda: json.loads(files["summary.json"]))
    config = _read(place, "config", lambda: json.loads(row.config))
    config.pop("__doc__", None)
    return results, summary, {key: _plain(value) for key, value in config.items()}


def runs_in(url: str) -> list[str]:
    """The ids of the completed runs of a database, in the order in which they began. Raises as :func:`load_run`."""
    with _connected(url) as (connection, select, tables):
        run = tables["run"]
        rows = connection.execute(select(run.c.run_id).where(run.c.status == "COMPLETED").order_by(run.c.id))
        return [row.run_id for row in rows]


def _plain(value: Any) -> Any:
    """A config's value without what Sacred writes for tuples; nothing is ever made from a class's name."""
    if isinstance(value, dict):
        return [_plain(v) for v in value["py/tuple"]] if set(value) == {"py/tuple"} else value
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _read(place: str, name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except ValueError as error:
        raise BadConfig("runs", place, f"a run that can be read; its {name} cannot ({error})") from error


@contextlib.contextmanager
def _connected(url: str) -> Iterator[tuple[Any, Any, Any]]:
    """(connection, select, Sacred's tables by name). Raises Refused for a database that cannot be reached or read."""
    with _sqlalchemy() as sqlalchemy:
        try:
            engine = sqlalchemy.create_engine(url)
        except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ImportError) as error:
            raise Refused(f"runs={url}: no database that can be opened ({lab.one_line(error)})") from error
        try:
            with engine.connect() as connection:
                yield connection, sqlalchemy.select, lab.sql_tables()
        except sqlalchemy.exc.SQLAlchemyError as error:
            reason = lab.one_line(str(error).partition("\n")[0])
            raise Refused(f"runs={url}: no database of runs that can be read ({reason})") from error
        finally:
            engine.dispose()


@contextlib.contextmanager
def _sqlalchemy() -> Iterator[Any]:
    try:
        import sqlalchemy
    except ModuleNotFoundError as error:
        raise Refused("a database of runs needs sqlalchemy: pip install 'slth[sql]'") from error
    yield sqlalchemy
