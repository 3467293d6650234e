"""A whole sweep: plan the runs, start the missing ones, gather the results."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slth.experiments import lab
from slth.experiments.lab import stores
from slth.experiments.sweeps.client import Server, ServerLost
from slth.experiments.sweeps.cluster import cluster
from slth.experiments.sweeps.engine import RAY, Engine
from slth.experiments.sweeps.gather import gather
from slth.experiments.sweeps.loop import drive
from slth.experiments.sweeps.machine import machine
from slth.experiments.sweeps.plan import Run, varying
from slth.experiments.sweeps.store import Store
from slth.plots.curves import NOT_SHOWN

NAMED = 3  # failed runs named in the last line


@dataclass(frozen=True)
class Sweep:
    """The checked settings of a sweep."""

    script: Path
    named: list[str]
    points: list[dict[str, Any]]
    folder: Path
    engine: str
    address: str | None
    cpus: int
    gpus: float
    retries: int
    workers: int | None
    numbers: list[str] | None
    sql: str | None


def conduct(sweep: Sweep) -> None:
    """Start the missing runs of a sweep, and gather the results of all its runs.

    Raises:
        lab.Refused: before any run starts, if a config is invalid, the folder cannot be written, or the database or
            cluster cannot be reached; during the runs, if the folder cannot be written any more or the cluster is
            lost; at the end, if runs failed.
    """
    _settle_temporary()
    if sweep.sql is not None:
        stores.prepare(sweep.sql)
    try:
        with contextlib.closing(Store(sweep.folder)) as store:
            with _server(Server(store.token, os.fspath(sweep.script), sweep.cpus)) as server:
                runs, version = _plan(server, sweep)
                stored = {*stores.runs_in(sweep.sql)} if sweep.sql is not None else set()
                missing = _missing(store, runs, sweep.sql, stored)
                print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished: {sweep.folder}", flush=True)
                _add_finished(store, runs, sweep.sql, stored)
                failed = _start_runs(store, server, sweep, missing, version) if missing else {}
            with store.alone():
                files, remarks = gather(store, sweep.script.stem, runs, failed, sweep.numbers)
                replaced = store.publish(files, [run.id for run in runs])
    except OSError as error:
        line = f"folder={sweep.folder}: {error}; what is finished stands, and the same command goes on"
        raise lab.Refused(line) from error
    _print_outputs(sweep.folder, files, remarks)
    if replaced:
        print("other runs had been gathered there before: the command that made them gathers them again")
    if failed:
        raise lab.Refused(_failures(sweep.folder, runs, failed))


def _settle_temporary() -> None:
    """Set TMPDIR, for all processes of the sweep, to the absolute path of the folder that Python uses.

    TMPDIR may be relative, or not a writable folder; in that case Python uses another one.

    Raises:
        lab.Refused: if there is no such folder.
    """
    try:
        os.environ["TMPDIR"] = tempfile.gettempdir()
    except OSError as error:
        given = os.environ.get("TMPDIR")
        raise lab.Refused(f"TMPDIR={given}: must be a folder that can be written ({error})") from error


@contextlib.contextmanager
def _server(server: Server) -> Iterator[Server]:
    """Start this machine's server; it ends, with all its forked processes, with the block or this process."""
    try:
        with server.connect() as stay:
            stay.sendall(b'{"do": "stay"}\n')
            yield server
    except ServerLost as error:
        raise lab.Refused(str(error)) from error
    finally:
        server.forget()


def _plan(server: Server, sweep: Sweep) -> tuple[list[Run], str]:
    request = {"do": "plan", "cwd": os.getcwd(), "named": sweep.named, "points": sweep.points}
    answer = server.ask(request)[0]
    if "refused" in answer:
        raise lab.Refused(answer["refused"])
    if "runs" not in answer:
        raise lab.Refused(f"the runs cannot be planned: {server.last_words()}")
    return [Run(**run) for run in answer["runs"]], answer["version"]


def _missing(store: Store, runs: Sequence[Run], sql: str | None, stored: Set[str]) -> list[Run]:
    """Return the runs that are missing or damaged; the folders of damaged runs are moved to .corrupt.

    A run whose folder is missing is restored from the database, if it is there; then it is not missing.

    Args:
        store: the sweep's folder.
        runs: all runs of the sweep.
        sql: URL of the database, or None.
        stored: ids of the runs in the database.
    """
    missing, restored = [], 0
    for run in runs:
        if remark := store.examine(run.id):
            print(lab.one_line(remark), file=sys.stderr)
        if store.has(run.id):
            continue
        if sql is not None and run.id in stored and _restore(store, sql, run.id):
            restored += 1
        else:
            missing.append(run)
    if restored:
        print(f"{restored} runs taken back from the database", flush=True)
    return missing


def _add_finished(store: Store, runs: Sequence[Run], sql: str | None, stored: Set[str]) -> None:
    """Add finished runs to the database that it does not have. If one cannot be added, only print a line."""
    if sql is None:
        return
    finished = [run for run in runs if store.has(run.id) and run.id not in stored]
    for run in lab.progress(finished, "add to the database"):
        with store.alone():
            try:
                stores.add(sql, store.folder / run.id)
            except lab.BadConfig as error:
                print(lab.one_line(f"{error}; not added to the database"), file=sys.stderr)


def _restore(store: Store, sql: str, run_id: str) -> bool:
    """Restore a run from the database; if it is damaged there, remove it and return False."""
    try:
        store.restore(run_id, stores.files(f"{sql}{stores.SEPARATOR}{run_id}"))
    except lab.BadConfig as error:
        print(lab.one_line(f"{error}; removed and made again"), file=sys.stderr)
        stores.remove(sql, run_id)
        return False
    return True


def _start_runs(store: Store, server: Server, sweep: Sweep, runs: Sequence[Run], version: str) -> dict[str, str]:
    request = {"do": "run", "cwd": os.getcwd(), "named": sweep.named, "version": version, "sql": sweep.sql}
    request["shared"] = str(store.shared) if {*varying(runs)} - {*NOT_SHOWN} else None  # seeds have nothing in common
    with _engine(server, sweep) as engine:
        return drive(engine, store, runs, request, sweep.retries)


def _engine(server: Server, sweep: Sweep) -> contextlib.AbstractContextManager[Engine]:
    if sweep.engine == RAY:
        return cluster(sweep.address, server, sweep.cpus, sweep.gpus, sweep.workers)
    return machine(server, sweep.cpus, sweep.gpus, sweep.workers)


def _print_outputs(folder: Path, files: Mapping[str, bytes], remarks: Sequence[str]) -> None:
    for remark in remarks:
        print(lab.one_line(remark), file=sys.stderr)
    print(f"results: {folder / 'results.csv'}")
    if "statistics.csv" in files:
        print(f"over seeds: {folder / 'statistics.csv'}")
    for name in files:
        if name.endswith(".png"):
            print(f"figure: {folder / name}")
    print(f"page: {folder / 'index.html'}")


def _failures(folder: Path, runs: Sequence[Run], failed: Mapping[str, str]) -> str:
    named = [f"{run}: {failed[run.id]}" for run in runs if run.id in failed]
    more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    where = f"logs: {folder / '.failed'}, all runs: {folder / 'index.html'}"
    return f"{len(failed)} of {len(runs)} runs failed; {'; '.join([*named[:NAMED], *more])}; {where}"
