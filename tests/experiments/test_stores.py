"""Runs in SQL databases: stored by Sacred's own observer, read like those in folders."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from command_lines import launched
from sweeping import run_folders, sweep_here

from slth.experiments import lab, plot
from slth.experiments.lab import storage, stores

sqlalchemy = pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed: pip install 'slth[sql]'")

pytestmark = [  # one server, one run in a database and in a folder
    pytest.mark.xdist_group("stores"),
    pytest.mark.usefixtures("blank_figures"),
]

CONFIG = ["hidden=[3,4]", "d_in=2", "heads=1", "lengths=[4]", "sources=2", "target_hidden=2"]


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    """A database with one run, and the same run in a folder."""
    folder = tmp_path_factory.mktemp("a folder with a name of more than sixty-four characters, so to speak")
    url = f"sqlite:///{folder}/runs.db"
    for store in (("-s", url), ()):
        ran = launched("approx_error", folder, *store, "with", *CONFIG)
        assert ran.returncode == 0, ran.stderr
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
    for place in ("nowhere/runs.db#1", "none.db", "none.db#1"):
        with pytest.raises(lab.Refused, match="there is no such file"):
            plot.Config(runs=f"sqlite:///{tmp_path}/{place}")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(lab.Refused, match="no database that can be opened"):
        stores.load_run("nosuch://x#1")
    (tmp_path / "empty.db").touch()
    with pytest.raises(lab.Refused, match="no such table"):
        stores.load_run(f"sqlite:///{tmp_path}/empty.db#1")


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


def rows_of(url, sql, *more):
    """What a statement gives, in a database that this alone is connected to."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text(sql), *more)
        rows = found.fetchall() if found.returns_rows else []
    engine.dispose()
    return rows


def test_what_is_stored_under_the_name_of_a_file_elsewhere_is_refused(sqlite, tmp_path):
    url, _ = sqlite
    copy = tmp_path / "copy.db"
    shutil.copy(url.removeprefix("sqlite:///"), copy)
    rows_of(f"sqlite:///{copy}", "update artifact set filename = '../error.svg' where filename like '%.svg'")
    with pytest.raises(lab.BadConfig, match=r"'../error\.svg' is no name of one"):
        stores.files(f"sqlite:///{copy}#0")


def test_only_what_was_not_completed_makes_room_for_the_next_of_its_id(tmp_path):
    url = f"sqlite:///{tmp_path}/runs.db"
    stores.prepare(url)
    stores.prepare(url)
    for n, status in enumerate(("COMPLETED", "RUNNING", "FAILED", "INTERRUPTED")):
        rows_of(url, f"insert into run (id, run_id, status) values ({n}, 'run{n}', '{status}')")
        rows_of(url, f"insert into artifact (filename, content, run_id) values ('a', 'b', 'run{n}')")
    assert [len(stores.observers(url, f"run{n}")) for n in (0, 1, 3, 4)] == [0, 1, 1, 1]
    assert rows_of(url, "select run_id from run order by id") == [("run0",), ("run2",)]
    assert rows_of(url, "select run_id from artifact order by run_id") == [("run0",), ("run2",)]


def test_a_runs_name_keeps_the_password_to_itself():
    assert stores.name("postgresql+psycopg://user:secret@host:5432/study#2") == "study#2"
    assert stores.name("sqlite:////a folder/runs.db#0") == "runs.db#0"
    with pytest.raises(lab.Refused) as error:
        stores.runs_in(f"postgresql+psycopg://user:secret@127.0.0.1:{_free_port()}/study")
    assert "secret" not in str(error.value)


# ---------------------------------------------------------------- figures


@pytest.fixture
def no_rendering(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "render", lambda figures: {f"{name}.png": b"" for name in figures})


@pytest.mark.usefixtures("no_rendering")
def test_figures_are_drawn_of_runs_in_databases_and_folders_alike(sqlite, capsys):
    url, folder = sqlite
    for runs in (f"{url}#0", url):
        plot.plot(plot.Config(runs=runs), None)
        out = plot.folder_of(plot.places(runs))
        assert capsys.readouterr().out == f"figure: {out}/error_vs_width.png\n"
    plot.plot(plot.Config(runs=[f"{url}#0", str(folder)], out="out"), None)
    names = ["overlay_error_vs_width", "runs.db_0_error_vs_width", "1_error_vs_width"]
    assert capsys.readouterr().out.splitlines() == [f"figure: out/{name}.png" for name in names]


def test_places_in_databases(sqlite, tmp_path):
    url, _ = sqlite
    assert plot.places(url) == [f"{url}#0"]
    assert plot.places("[sqlite:///a.db#1, 3,sqlite:////b.db#x]") == [
        "sqlite:///a.db#1",
        storage.RUNS / "3",
        "sqlite:////b.db#x",
    ]
    with pytest.raises(lab.BadConfig, match="must be different runs"):
        plot.places([url, f"{url}#0"])
    empty = f"sqlite:///{tmp_path}/empty.db"
    stores.prepare(empty)
    with pytest.raises(lab.BadConfig, match="must be a database with finished runs"):
        plot.places(empty)


def test_runs_of_the_same_name_in_two_databases_are_told_apart():
    runs = ["sqlite:///a/runs.db#0", "sqlite:///b/runs.db#0"]
    assert plot.prefixes(runs) == ["1_runs.db_0_", "2_runs.db_0_"]
    assert plot.told_apart({run: {} for run in runs}) == [{"runs": "1 runs.db#0"}, {"runs": "2 runs.db#0"}]


@pytest.mark.usefixtures("no_rendering")
def test_plot_takes_a_url_from_the_command_line(sqlite, tmp_path):
    url, _ = sqlite
    done = launched("plot", tmp_path, "with", f"runs={url}#0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"figure: {plot.folder_of([f'{url}#0'])}/error_vs_width.png\n"


def test_names_of_classes_in_a_config_make_nothing():
    assert stores._plain({"py/tuple": [1, {"py/tuple": [2]}]}) == [1, [2]]
    assert stores._plain({"py/object": "os.system"}) == {"py/object": "os.system"}


# ---------------------------------------------------------------- PostgreSQL


@pytest.fixture(scope="module")
def postgresql():
    """The address of a real server on loopback, started for these tests, with an empty database."""
    tools = {name: _tool(name) for name in ("initdb", "pg_ctl")}
    if not all(tools.values()):
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'slth[sql]'")
    account = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []

    def server(tool, *arguments):
        command = [*account, tools[tool], "-D", str(data), *arguments]
        subprocess.run(command, cwd="/", check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to the server's user
        os.chmod(folder, 0o755)
        data, port = Path(folder) / "data", _free_port()
        data.mkdir()
        if account:
            shutil.chown(data, "postgres", "postgres")
        server("initdb", "-A", "trust", "-U", "slth", "-E", "UTF8", "--no-locale")
        options = f"-h 127.0.0.1 -p {port} -k {data} -c fsync=off"
        server("pg_ctl", "-w", "-l", str(data / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg://slth@127.0.0.1:{port}/postgres"
        finally:
            server("pg_ctl", "-m", "fast", "stop")


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
        ran = launched("approx_error", folder, "-s", postgresql, "with", *CONFIG)
        assert ran.returncode == 0, ran.stderr
    assert stores.runs_in(postgresql) == ["0", "2"]  # Sacred counts like this
    assert_same_run(f"{postgresql}#0", folder)
    assert_same_run(f"{postgresql}#2", folder)
    with pytest.raises(lab.BadConfig, match="its completed ones: 0, 2"):
        stores.load_run(f"{postgresql}#9")


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://slth@127.0.0.1:{_free_port()}/postgres"
    with pytest.raises(lab.Refused, match="no database of runs that can be read"):
        stores.load_run(f"{url}#1")
    ran = launched("approx_error", tmp_path, "-s", url, "with", *CONFIG)
    assert ran.returncode == 1
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr


# ---------------------------------------------------------------- sweeps


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_sweep_whose_folder_is_gone_is_gathered_from_its_database(database, request, tmp_path):
    if database == "postgresql":
        server = request.getfixturevalue("postgresql")
        rows_of(server, "create database sweep")
        url = server.removesuffix("postgres") + "sweep"
    else:
        url = f"sqlite:///{tmp_path}/runs.db"
    grid = ("grid.hidden=[8,4]", "folder=out", f"sql={url}")
    made = sweep_here(tmp_path, *grid)
    assert (made.returncode, made.stderr) == (0, "")
    out = tmp_path / "out"
    runs = run_folders(out)
    assert sorted(stores.runs_in(url)) == [run.name for run in runs]
    for run in runs:
        assert_same_run(f"{url}#{run.name}", run)
        assert url not in (run / "run.json").read_text()
    files = {name: (out / name).read_bytes() for name in ("results.csv", "runs.csv")}
    shutil.rmtree(out)
    assert sweep_here(tmp_path, *grid, "address=127.0.0.1:1").returncode == 0  # no cluster is asked for
    assert {name: (out / name).read_bytes() for name in files} == files
    assert run_folders(out) == runs


def test_runs_that_were_finished_before_are_added(tmp_path):
    grid, sql = ("grid.hidden=[8,4]", "folder=out"), f"sql=sqlite:///{tmp_path}/runs.db"
    url, out, nowhere = sql.removeprefix("sql="), tmp_path / "out", "address=127.0.0.1:1"  # nothing is left to be made
    assert sweep_here(tmp_path, "grid.hidden=[4]", *grid[1:], sql).returncode == 0
    assert sweep_here(tmp_path, *grid).returncode == 0
    results, runs = (out / "results.csv").read_bytes(), run_folders(out)
    for _ in range(2):
        added = sweep_here(tmp_path, *grid, sql, nowhere)
        assert (added.returncode, added.stderr) == (0, "")
    assert sorted(stores.runs_in(url)) == [run.name for run in runs]
    for run in runs:
        assert_same_run(f"{url}#{run.name}", run)
    assert rows_of(url, "select count(*) from experiment") == [(1,)]  # as if both had been stored as they were made
    assert rows_of(url, "select filename from source") == [("toy.py",)]
    fresh = sweep_here(tmp_path, *grid, f"sql=sqlite:///{tmp_path}/fresh.db", nowhere)
    assert (fresh.returncode, fresh.stderr) == (0, "")
    assert rows_of(f"sqlite:///{tmp_path}/fresh.db", "select filename from source") == [("toy.py",)]
    shutil.rmtree(out)
    another = f"sql=sqlite:///{tmp_path}/another.db"  # gets what comes back from the first
    back, more = (sweep_here(tmp_path, *grid, one, nowhere) for one in (sql, another))
    assert (back.returncode, more.returncode, more.stderr) == (0, 0, "")
    assert back.stdout.startswith("2 runs taken back from the database\n")
    assert (out / "results.csv").read_bytes() == results
    for run in runs:
        assert_same_run(f"{another.removeprefix('sql=')}#{run.name}", run)


def test_what_is_no_longer_whole_is_added_without_or_named(tmp_path):
    grid = ("grid.hidden=[8,4]", "folder=out")
    assert sweep_here(tmp_path, *grid).returncode == 0
    lacking, damaged = run_folders(tmp_path / "out")
    (lacking / "block").unlink()
    (damaged / "cout.txt").write_bytes(b"\xff")
    (source,) = (tmp_path / "out" / "_sources").iterdir()
    source.write_text("changed")
    url = f"sqlite:///{tmp_path}/runs.db"
    added = sweep_here(tmp_path, *grid, f"sql={url}", "address=127.0.0.1:1")
    assert added.returncode == 0
    assert len(added.stderr.splitlines()) == 1
    assert added.stderr.rstrip().endswith("not added to the database")
    assert damaged.name in added.stderr
    assert rows_of(url, "select run_id, status from run") == [(lacking.name, "COMPLETED")]
    assert rows_of(url, "select filename from artifact where filename = 'block'") == []
    assert rows_of(url, "select filename from source") == []
    assert_same_run(f"{url}#{lacking.name}", lacking)


def test_a_run_is_in_the_database_once_however_often_it_was_tried(tmp_path):
    (tmp_path / "notes").mkdir()
    url = f"sqlite:///{tmp_path}/runs.db"
    runs = ("base.end='crash once'", f"base.notes={tmp_path / 'notes'}", "folder=out", f"sql={url}")
    assert sweep_here(tmp_path, *runs).returncode == 0
    (run,) = run_folders(tmp_path / "out")
    assert rows_of(url, "select run_id, status from run") == [(run.name, "COMPLETED")]
    rows_of(url, "delete from artifact where filename = 'results.csv'")
    shutil.rmtree(tmp_path / "out")
    again = sweep_here(tmp_path, *runs)
    assert again.returncode == 0
    assert "it has no results.csv; removed and made again" in again.stderr
    assert_same_run(f"{url}#{run.name}", run)


def test_a_sweep_whose_database_is_not_there_is_one_line(tmp_path):
    done = sweep_here(tmp_path, f"sql=sqlite:///{tmp_path}/nowhere/runs.db")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "no database of runs that can be read" in done.stderr
    assert not (tmp_path / "runs").exists()
