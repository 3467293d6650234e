"""Curves of a run while they grow, in every store of Sacred's."""

import json
import threading
from datetime import datetime
from unittest.mock import patch

import pytest
from helpers import cats
from sacred.metrics_logger import MetricsLogger, linearize_metrics
from sacred.observers import FileStorageObserver, MongoObserver, SqlObserver
from small_pruning import config_of

from slth.experiments import gpt2_prune, lab
from slth.experiments.lab import live, metrics, stores

sqlalchemy = pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed: pip install 'slth[sql]'")
mongomock = pytest.importorskip("mongomock", reason="mongomock is not installed: pip install 'slth[dev]'")
gridfs = pytest.importorskip("mongomock.gridfs")

pytestmark = [pytest.mark.xdist_group("curves"), pytest.mark.usefixtures("blank_figures")]  # one stored run

TEXT = cats(150)
NAMES = {"train_loss", "val_loss", "lr", "steps_per_s", "tokens_per_s"}


@pytest.fixture(scope="module")
def stored(text, tmp_path_factory):
    """A run of gpt2_prune in a folder, in SQLite and in a stand-in for MongoDB: (folder, URL, its database)."""
    folder = tmp_path_factory.mktemp("stored")
    url, client = f"sqlite:///{folder}/runs.db", mongomock.MongoClient()
    stores.prepare(url)
    gridfs.enable_gridfs_integration()
    with patch("pymongo.MongoClient", mongomock.MongoClient):
        mongo = MongoObserver(client=client)
    sql = SqlObserver(url)
    stores.leave_out_result(sql)
    gpt2_prune.ex.observers[:] = [FileStorageObserver(folder), sql, mongo]
    try:
        run = gpt2_prune.ex.run(config_updates=config_of(text)())
    finally:
        gpt2_prune.ex.observers[:] = []
        sql.session.close()
        sql.engine.dispose()
    return folder / str(run._id), url, client["sacred"]


def in_folder(folder):
    return json.loads((folder / "metrics.json").read_text())


def kind_of(training):
    """dense, ticket or sparse, as the first word after the size."""
    return training.split()[1]


def test_every_training_has_its_curves_in_metrics_json(stored):
    folder, _, _ = stored
    found, (table, _, config) = in_folder(folder), lab.load_run(folder)
    trainings = {name.rpartition("/")[0] for name in found}
    assert {kind_of(name) for name in trainings} == {"dense", "ticket", "sparse"}
    assert found.keys() >= {f"{training}/{name}" for training in trainings for name in NAMES}
    kept = {name for name in trainings if f"{name}/keep" in found}
    assert {kind_of(name) for name in kept} == {"ticket", "sparse"}
    for run, rows in table[table["stage"] == "full"].groupby("run"):
        (training,) = (name for name in trainings if kind_of(name) == run and "pilot" not in name)
        for what in ("train_loss", "val_loss"):
            curve, measured = found[f"{training}/{what}"], rows.dropna(subset=[what])
            assert curve["values"] == measured[what].tolist()
            assert curve["steps"] == measured["step"].tolist()
    rates = zip(*(found[f"{training}/{name}"]["values"] for name in ("steps_per_s", "tokens_per_s")), strict=True)
    tokens = config["batch"] * config["length"]
    assert all(of_tokens == pytest.approx(tokens * of_steps) for of_steps, of_tokens in rates)


def test_sql_and_mongodb_hold_the_same(stored):
    folder, url, database = stored
    (place,) = (f"{url}#{run}" for run in stores.runs_in(url))
    assert json.loads(stores.files(place)["metrics.json"]) == in_folder(folder)
    for curve in (kept := list(database["metrics"].find())):
        assert {key: curve[key] for key in ("steps", "values")} == {
            key: in_folder(folder)[curve["name"]][key] for key in ("steps", "values")
        }
    assert {curve["name"] for curve in kept} == in_folder(folder).keys()
    assert {one["name"] for one in database["runs"].find_one()["info"]["metrics"]} == in_folder(folder).keys()


def test_a_folder_brings_its_curves_into_a_database_and_takes_them_along(stored, tmp_path):
    folder, _, _ = stored
    url = f"sqlite:///{tmp_path}/others.db"
    stores.prepare(url)
    stores.add(url, folder)
    assert json.loads(stores.files(f"{url}#{folder.name}")["metrics.json"]) == in_folder(folder)
    stores.remove(url, folder.name)
    with stores._connected(url) as (connection, tables):
        assert metrics.read(connection, tables, folder.name) == {}


def test_a_database_of_before_is_read_and_gets_its_table(tmp_path):
    with stores._connected(f"sqlite:///{tmp_path}/old.db") as (connection, tables):
        tables["run"].metadata.create_all(connection)
        tables["metric"].drop(connection)
        assert metrics.read(connection, tables, "1") == {}
        at = datetime(2026, 1, 2, 3, 4, 5)
        metrics.insert(connection, tables, "1", {"a/b": {"values": [0.5], "steps": [3], "timestamps": [at]}})
        found = {"values": [0.5], "steps": [3], "timestamps": [at.isoformat()]}
        assert metrics.read(connection, tables, "1") == {"a/b": found}


def test_sql_has_points_while_the_run_goes_on(tmp_path):
    url = f"sqlite:///{tmp_path}/runs.db"
    stores.prepare(url)
    observer, host = SqlObserver(url), dict.fromkeys(("hostname", "cpu", "python_version")) | {"os": ["", ""]}
    about = {key: [] for key in ("sources", "dependencies", "repositories")} | {"name": "x", "base_dir": "."}
    observer.started_event(about, "main", host, datetime(2026, 1, 1), {}, {}, "tiny")
    logger = MetricsLogger()
    with live.sent_to(logger.log_scalar_metric):
        lab.curves("tiny")({"loss": 2.5, "bad": float("nan")}, 7)
    logged = linearize_metrics(logger.get_last_metrics())
    beat = threading.Thread(target=observer.log_metrics, args=(logged, {}))  # as Sacred's own every ten seconds
    beat.start()
    beat.join()
    with stores._connected(url) as (connection, tables):
        found = metrics.read(connection, tables, "tiny")
    observer.session.close()
    observer.engine.dispose()
    assert [(name, curve["values"], curve["steps"]) for name, curve in found.items()] == [("tiny/loss", [2.5], [7])]


def test_points_of_another_process_are_replayed_in_order():
    got = []
    with live.collected() as points:
        lab.curves("a")({"x": 1.0, "y": float("inf")}, 1)
        lab.curves("b")({"x": 2.0}, 1)
    lab.curves("c")({"x": 3.0}, 1)  # nobody listens
    with live.sent_to(lambda *point: got.append(point)):
        live.replay(points)
    assert got == points == [("a/x", 1.0, 1), ("b/x", 2.0, 1)]
