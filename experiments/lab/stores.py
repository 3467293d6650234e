"""Runs in SQL databases (Sacred's option -s URL), which are read like those in folders.

A run in a database is named URL#ID: sqlite:///runs.db#0, postgresql+psycopg://user@host/study#2. It has the same
content as a run's folder: its config, its status, its curves in a table `metric`, and results.csv and summary.json as
artifacts.
"""

import contextlib
import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas

from slth.experiments.lab import metrics, storage
from slth.experiments.lab.border import SqlObserver
from slth.experiments.lab.refusals import BadConfig, Refused, one_line

SEPARATOR = "#"
NEEDED = ("results.csv", "summary.json")


def is_url(place: object) -> bool:
    """Tell whether a place is in a database, and not a folder."""
    return isinstance(place, str) and "://" in place


def name(place: str) -> str:
    """Return a short name of a database, or of a run URL#ID, for figures: study#2, without user, password and host."""
    url, separator, run_id = place.partition(SEPARATOR)
    return f"{Path(url.partition('?')[0]).name}{separator}{run_id}"


def load_run(place: str | os.PathLike[str]) -> tuple[pandas.DataFrame, dict[str, Any], dict[str, Any]]:
    """Read a stored run, a folder or URL#ID, and return (results, summary, config).

    Raises BadConfig (key `runs`) if there is no such run, it is not COMPLETED, or a file is missing; Refused if the
    database cannot be reached.
    """
    if not is_url(place):
        return storage.load_run(place)
    place = str(place)
    found = files(place)
    results = _read(place, "results.csv", lambda: pandas.read_csv(io.BytesIO(found["results.csv"])))
    summary = _read(place, "summary.json", lambda: storage.json_object(found["summary.json"]))
    config = storage.json_object(found["config.json"])
    config.pop("__doc__", None)
    return results, summary, config


def files(place: str) -> dict[str, bytes]:
    """Return the files of a run URL#ID as they would be in its folder: artifacts, cout.txt and others.

    Raises as :func:`load_run` does.
    """
    url, _, run_id = place.partition(SEPARATOR)
    with _reading(url) as (connection, tables):
        run, artifact = tables["run"], tables["artifact"]
        row = connection.execute(run.select().where(run.c.run_id == run_id)).first()
        if row is None:
            known = ", ".join(runs_in(url)) or "none"
            raise BadConfig("runs", place, f"a run of that database; its completed ones: {known}")
        if row.status != "COMPLETED":
            raise BadConfig("runs", place, f"a completed run; this one is {row.status}")
        rows = connection.execute(artifact.select().where(artifact.c.run_id == run_id))
        found = {one.filename: bytes(one.content) for one in rows}
        curves = metrics.read(connection, tables, run_id)
        made_of, made_by = (_row(connection, tables[one], row) for one in ("experiment", "host"))
    for needed in NEEDED:
        if needed not in found:
            raise BadConfig("runs", place, f"a run with results; it has no {needed}")
    if strange := [one for one in found if Path(one).name != one]:
        raise BadConfig("runs", place, f"a run with files of its own; {strange[0]!r} is no name of one")
    config = _read(place, "config", lambda: storage.json_object(row.config))
    about = {"_id": run_id, "status": row.status, "command": row.command, "artifacts": sorted(found), "meta": {}}
    about |= {
        "experiment": {"name": made_of.name, "base_dir": made_of.base_dir}
        | {key: [] for key in ("sources", "dependencies", "repositories")},
        "host": {key: made_by._mapping[key] for key in ("hostname", "cpu", "python_version")}
        | {"os": [made_by.os, made_by.os_info]},
    }
    times = {key: at and at.isoformat() for key, at in (("start_time", row.start_time), ("stop_time", row.stop_time))}
    return {
        **found,
        "config.json": _json({key: _plain(value) for key, value in config.items()}),
        "run.json": _json({**about, **times}),
        "metrics.json": metrics.to_json(curves),
        "cout.txt": (row.captured_out or "").encode(),
    }


def _row(connection: Any, table: Any, run: Any) -> Any:
    """Return the row that a run refers to: its experiment, or its host."""
    key = f"{table.name}_id"
    return connection.execute(table.select().where(table.c[key] == run._mapping[key])).one()


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def runs_in(url: str) -> list[str]:
    """Return the ids of the completed runs of a database, by start time. Raises as :func:`load_run` does."""
    with _reading(url) as (connection, tables):
        run = tables["run"]
        rows = connection.execute(run.select().where(run.c.status == "COMPLETED").order_by(run.c.id))
        return [row.run_id for row in rows]


def prepare(url: str) -> None:
    """Create Sacred's tables if missing, so that runs which start at the same time need not. Raises Refused."""
    with _connected(url) as (connection, tables):
        tables["run"].metadata.create_all(connection)
        connection.commit()


def observers(url: str, run_id: str) -> list[SqlObserver]:
    """Return Sacred's observer for a run with this id, or none if the database has the completed run.

    An incomplete run with this id is removed, since ids are unique. Raises Refused.
    """
    with _connected(url) as (connection, tables):
        run = tables["run"]
        status = connection.execute(run.select().with_only_columns(run.c.status).where(run.c.run_id == run_id)).scalar()
    if status == "COMPLETED":
        return []
    if status is not None:
        remove(url, run_id)
    return [SqlObserver(url)]


def add(url: str, folder: Path) -> None:
    """Store the completed run of a folder in a database under the folder's name, as the observer would have done.

    Figures and sources that have been deleted since are left out. If the database already has the run, nothing is done.
    Raises BadConfig (key `runs`) for a folder without a complete run, Refused if the database cannot be reached.
    """
    try:
        run, config = (storage.json_object((folder / name).read_bytes()) for name in ("run.json", "config.json"))
        begun, ended = (datetime.fromisoformat(run[key]) for key in ("start_time", "stop_time"))
        out, curves = (folder / "cout.txt").read_text(encoding="utf-8"), _curves_of(folder)
        about, sources = _experiment_of(folder, run["experiment"])
        given = {"command": run["command"], "host_info": run["host"], "meta_info": run["meta"], "config": config}
        artifacts = [name for name in run["artifacts"] if (folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadConfig("runs", str(folder), f"a whole run ({type(error).__name__}: {error})") from error
    with _connected(url) as (connection, tables):  # reports errors of the database in one line
        for observer in observers(url, folder.name):
            try:
                _put_sources(observer, sources)
                with observer.session.no_autoflush:  # Sacred queries the host while its experiment is incomplete
                    observer.started_event(about, **given, start_time=begun, _id=folder.name)
                for name in artifacts:
                    observer.artifact_event(name, folder / name)
                metrics.insert(connection, tables, folder.name, curves)
                connection.commit()
                observer.heartbeat_event({}, out, ended, None)
                observer.completed_event(ended, None)
            finally:
                observer.session.close()
                observer.engine.dispose()


def _curves_of(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """Read the folder's metrics.json; no curves if it was written by an older version."""
    path = folder / "metrics.json"
    curves = storage.json_object(path.read_bytes()) if path.is_file() else {}
    times = {name: [datetime.fromisoformat(one) for one in curve["timestamps"]] for name, curve in curves.items()}
    return {name: {**curve, "timestamps": times[name]} for name, curve in curves.items()}


def _experiment_of(folder: Path, experiment: dict[str, Any]) -> tuple[dict[str, Any], dict[tuple[str, str], str]]:
    """Return (Sacred's record of the experiment, {(name, md5): text} of its sources), from copies next to the run."""
    texts: dict[tuple[str, str], str] = {}
    for name, copy in experiment["sources"]:
        path = folder.parent / copy  # _sources/NAME_MD5.py
        if path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() == path.stem[-32:]:
            texts[name, path.stem[-32:]] = path.read_text(encoding="utf-8")
    order = ("name", "base_dir", "sources", "dependencies", "repositories", "mainfile")  # the order that Sacred hashes
    return {key: {**experiment, "sources": [list(one) for one in texts]}.get(key) for key in order}, texts


def _put_sources(observer: SqlObserver, sources: dict[tuple[str, str], str]) -> None:
    """Store the sources, which Sacred would otherwise read from their original files, which may have changed."""
    from sacred.observers.sql_bases import Source

    for (name, md5), text in sources.items():
        if not observer.session.query(Source).filter_by(filename=name, md5sum=md5).first():
            observer.session.add(Source(filename=name, md5sum=md5, content=text))
    observer.save()


def remove(url: str, run_id: str) -> None:
    """Remove a run, completed or not, with its artifacts and curves, if it exists. Raises Refused."""
    with _connected(url) as (connection, tables):
        tables[metrics.TABLE].create(connection, checkfirst=True)
        for table in ("artifact", metrics.TABLE, "runs_resources", "run"):
            connection.execute(tables[table].delete().where(tables[table].c.run_id == run_id))
        connection.commit()


def _plain(value: Any) -> Any:
    """Convert a config value with Sacred's encoding of tuples; no object is ever created from a class name."""
    if isinstance(value, dict):
        return [_plain(v) for v in value["py/tuple"]] if set(value) == {"py/tuple"} else value
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _read(place: str, what: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, TypeError) as error:
        raise BadConfig("runs", place, f"a run that can be read; its {what} cannot ({one_line(error)})") from error


@contextlib.contextmanager
def _reading(url: str) -> Iterator[tuple[Any, Any]]:
    """Do the same for an existing database, since SQLite would create an empty one for a wrong name."""
    scheme, _, rest = url.partition("://")
    file = rest.partition("/")[2].partition("?")[0]  # three slashes: a relative path; four: an absolute one
    if scheme.startswith("sqlite") and file and not file.startswith("file:") and not os.path.isfile(file):
        raise Refused(f"{url}: no database of runs that can be read (there is no such file)")
    with _connected(url) as (connection, tables):
        yield connection, tables


@contextlib.contextmanager
def _connected(url: str) -> Iterator[tuple[Any, Any]]:
    """Yield (connection, Sacred's tables by name). Raises Refused for a database that cannot be reached or read."""
    try:
        import sqlalchemy
    except ModuleNotFoundError as error:
        raise Refused("a database of runs needs sqlalchemy: pip install 'slth[sql]'") from error
    try:
        engine = sqlalchemy.create_engine(url)
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ImportError, ValueError) as error:
        raise Refused(f"{url}: no database that can be opened ({one_line(error)})") from error
    try:
        with engine.connect() as connection:
            yield connection, sql_tables()
    except (sqlalchemy.exc.SQLAlchemyError, ValueError, TypeError) as error:  # errors of drivers about their settings
        reason = one_line(str(error).partition("\n")[0])
        shown = engine.url.render_as_string(hide_password=True)
        raise Refused(f"{shown}: no database of runs that can be read ({reason})") from error
    finally:
        engine.dispose()


def leave_out_result(observer: SqlObserver) -> None:
    """Do not store the result, for which Sacred's SQL table has only one float; the summary is in summary.json."""
    for method in ("heartbeat_event", "completed_event"):
        event = getattr(observer, method)
        setattr(observer, method, lambda event=event, **given: event(**{**given, "result": None}))


def sql_tables() -> Any:
    """Return Sacred's SQL tables by name, with text columns of any length for tables that do not exist yet.

    PostgreSQL would enforce their limits of 16 to 64 characters, which paths of folders exceed. Raises
    ModuleNotFoundError without sqlalchemy.
    """
    import sqlalchemy

    with warnings.catch_warnings():  # Sacred imports the base class from sqlalchemy 1's module
        warnings.filterwarnings("ignore", message="The ``declarative_base", category=sqlalchemy.exc.MovedIn20Warning)
        from sacred.observers.sql_bases import Base

    metrics.declare(Base.metadata)
    for table in Base.metadata.tables.values():
        for column in table.columns:
            if type(column.type) is sqlalchemy.String:
                column.type = sqlalchemy.Text()
    return Base.metadata.tables


def require_database(url: str, run_id: str | None) -> None:
    """Raise Refused if an SQL database cannot be reached, or has a run with the requested id."""
    try:
        run = sql_tables()["run"]
        import sqlalchemy

        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            known = run_id is not None and sqlalchemy.inspect(connection).has_table("run")
            taken = known and connection.execute(run.select().where(run.c.run_id == run_id)).first() is not None
        engine.dispose()
    except ModuleNotFoundError as error:
        raise Refused(f"-s {url}: needs {error.name}: pip install 'slth[sql]'") from error
    except (sqlalchemy.exc.SQLAlchemyError, ValueError, TypeError) as error:  # an invalid port or setting
        raise Refused(f"-s {url}: no database that can be reached ({str(error).partition(chr(10))[0]})") from error
    if taken:
        raise Refused(f"--id={run_id}: the database holds a run of that id; leave --id out or choose another")
