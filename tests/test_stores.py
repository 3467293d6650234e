"""Runs in SQL databases: stored by Sacred's own observer, read like those in folders."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import lab  # noqa: E402
import stores  # noqa: E402

sqlalchemy = pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed: pip install 'slth[sql]'")

CONFIG = ["hidden=[3,4]", "d_in=2", "heads=1", "lengths=[4]", "sources=2", "target_hidden=2"]


def run_experiment(url, *more, cwd):
    """approx_error with its runs in a database, in a process of its own."""
    command = [sys.executable, str(EXPERIMENTS / "approx_error.py"), "-s", url, "with", *CONFIG, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    """A database with one run, and the same run in a folder."""
    folder = tmp_path_factory.mktemp("a folder with a name of more than sixty-four characters, so to speak")
    url = f"sqlite:///{folder}/runs.db"
    ran = run_experiment(url, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    command = [sys.executable, str(EXPERIMENTS / "approx_error.py"), "with", *CONFIG]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return url, folder / "runs" / "1"


def assert_same_run(place, folder):
    (table, summary, config), (wanted, told, given) = stores.load_run(place), stores.load_run(folder)
    times = [name for name in wanted if "seconds" in name or name.endswith("_s")]
    assert table.drop(columns=times).equals(wanted.drop(columns=times))
    assert config == given
    assert summary.keys() == told.keys()


def test_a_run_in_sqlite_is_the_run_in_a_folder(sqlite):
    url, folder = sqlite
    assert stores.runs_in(url) == ["0"]
    assert_same_run(f"{url}#0", folder)


def test_what_is_not_there_is_named(sqlite, tmp_path):
    url, _ = sqlite
    with pytest.raises(lab.BadConfig, match="its completed ones: 0"):
        stores.load_run(f"{url}#7")
    with pytest.raises(lab.Refused, match="no database of runs that can be read"):
        stores.load_run(f"sqlite:///{tmp_path}/nowhere/runs.db#1")
    with pytest.raises(lab.Refused, match="no database that can be opened"):
        stores.load_run("nosuch://x#1")
    empty = f"sqlite:///{tmp_path}/empty.db"
    with pytest.raises(lab.Refused, match="no such table"):
        stores.load_run(f"{empty}#1")


def test_a_run_that_is_not_whole_is_refused(sqlite, tmp_path):
    url, _ = sqlite
    copy = tmp_path / "copy.db"
    shutil.copy(url.removeprefix("sqlite:///"), copy)
    engine = sqlalchemy.create_engine(f"sqlite:///{copy}")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("delete from artifact where filename = 'summary.json'"))
    with pytest.raises(lab.BadConfig, match=r"it has no summary\.json"):
        stores.load_run(f"sqlite:///{copy}#0")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("update run set status = 'FAILED'"))
    engine.dispose()
    with pytest.raises(lab.BadConfig, match="this one is FAILED"):
        stores.load_run(f"sqlite:///{copy}#0")


def test_names_of_classes_in_a_config_make_nothing():
    assert stores._plain({"py/tuple": [1, {"py/tuple": [2]}]}) == [1, [2]]
    assert stores._plain({"py/object": "os.system"}) == {"py/object": "os.system"}


# ---------------------------------------------------------------- PostgreSQL


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    """The address of a real server on loopback, started for these tests, with an empty database."""
    tools = {name: _tool(name) for name in ("initdb", "pg_ctl")}
    if not all(tools.values()):
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'slth[sql]'")
    folder = tmp_path_factory.mktemp("postgresql")
    for parent in (folder, *folder.parents[:3]):  # the server's user must reach it
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o055)
    data, port = folder / "data", _free_port()
    data.mkdir()
    account = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if account:
        shutil.chown(data, "postgres", "postgres")
    made = [*account, tools["initdb"], "-D", str(data), "-A", "trust", "-U", "slth", "-E", "UTF8", "--no-locale"]
    options = f"-h 127.0.0.1 -p {port} -k {data} -c fsync=off"
    subprocess.run(made, cwd="/", check=True, capture_output=True)
    start = [*account, tools["pg_ctl"], "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start"]
    subprocess.run(start, cwd="/", check=True, capture_output=True)
    yield f"postgresql+psycopg://slth@127.0.0.1:{port}/postgres"
    subprocess.run(
        [*account, tools["pg_ctl"], "-D", str(data), "-m", "fast", "stop"], cwd="/", check=True, capture_output=True
    )


def _tool(name):
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_run_in_postgresql_is_the_run_in_a_folder(postgresql, sqlite):
    _, folder = sqlite
    for _ in range(2):
        ran = run_experiment(postgresql, cwd=folder.parent.parent)
        assert ran.returncode == 0, ran.stderr
    assert stores.runs_in(postgresql) == ["0", "1"]
    assert_same_run(f"{postgresql}#0", folder)
    assert_same_run(f"{postgresql}#1", folder)
    with pytest.raises(lab.BadConfig, match="its completed ones: 0, 1"):
        stores.load_run(f"{postgresql}#9")


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://slth@127.0.0.1:{_free_port()}/postgres"
    with pytest.raises(lab.Refused, match="no database of runs that can be read"):
        stores.load_run(f"{url}#1")
    ran = run_experiment(url, cwd=tmp_path)
    assert ran.returncode == 1
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr
