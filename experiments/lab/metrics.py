"""Sacred's metrics in SQL databases, for which its SQL observer has no table: one row per logged point."""

import json
from collections.abc import Mapping
from typing import Any

from slth.experiments.lab.border import SqlObserver

TABLE = "metric"
COLUMNS = ("values", "steps", "timestamps")  # of a curve in the file observer's metrics.json


def declare(metadata: Any) -> None:
    """Add the table to Sacred's, which creates all of them when a run starts."""
    import sqlalchemy as sql

    if TABLE not in metadata.tables:
        sql.Table(
            TABLE,
            metadata,
            sql.Column("metric_id", sql.Integer, primary_key=True),
            sql.Column("run_id", sql.String(24), sql.ForeignKey("run.run_id"), index=True),
            sql.Column("name", sql.Text),
            sql.Column("step", sql.BigInteger),
            sql.Column("value", sql.Double),
            sql.Column("timestamp", sql.DateTime),
        )


def insert(connection: Any, tables: Any, run_id: str, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Add points to a run's curves: curve -> lists of values, steps and timestamps (datetime). Creates the table."""
    rows = [
        {"run_id": run_id, "name": name, "value": value, "step": step, "timestamp": timestamp}
        for name, curve in curves.items()
        for value, step, timestamp in zip(*(curve[key] for key in COLUMNS), strict=True)
    ]
    if rows:
        tables[TABLE].create(connection, checkfirst=True)
        connection.execute(tables[TABLE].insert(), rows)


def read(connection: Any, tables: Any, run_id: str) -> dict[str, dict[str, list[Any]]]:
    """Return a run's curves in the form of the file observer's metrics.json; none if an old database has no table."""
    import sqlalchemy as sql

    curves: dict[str, dict[str, list[Any]]] = {}
    if sql.inspect(connection).has_table(TABLE):
        metric = tables[TABLE]
        chosen = metric.select().where(metric.c.run_id == run_id).order_by(metric.c.metric_id)
        for row in connection.execute(chosen):
            curve = curves.setdefault(row.name, {key: [] for key in COLUMNS})
            for key, value in zip(COLUMNS, (row.value, row.step, row.timestamp.isoformat()), strict=True):
                curve[key].append(value)
    return curves


def to_json(curves: Mapping[str, Any]) -> bytes:
    """Convert curves to the content of metrics.json."""
    return (json.dumps(curves, indent=2) + "\n").encode()


def _log_metrics(self: SqlObserver, metrics_by_name: Mapping[str, Mapping[str, Any]], info: Any) -> None:
    """Store metrics at each heartbeat of the observer, in its own thread and connection."""
    if not metrics_by_name:
        return
    import sqlalchemy as sql

    from slth.experiments.lab.stores import sql_tables

    tables = sql_tables()
    run, (key,) = tables["run"], sql.inspect(self.run).identity
    with self.engine.begin() as connection:
        run_id = connection.execute(run.select().with_only_columns(run.c.run_id).where(run.c.id == key)).scalar_one()
        insert(connection, tables, run_id, metrics_by_name)


SqlObserver.log_metrics = _log_metrics
