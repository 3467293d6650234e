"""Tables of which every row is another wording of one check."""

import functools
import inspect
import itertools

import pytest


def one_case(test):
    """Make one case of all rows of a test's tables, the product where it has several; every row that fails is told.

    Stands above pytest.mark.parametrize, for rows without marks. Fixtures are the same for all rows, but each row has a
    tmp_path of its own.
    """
    tables = [mark.args for mark in test.pytestmark if mark.name == "parametrize"]
    names = [name for columns, _ in tables for name in _names(columns)]
    points = [sum(point, ()) for point in itertools.product(*(_rows(*table) for table in tables))]
    assert points, "there is no row"

    @functools.wraps(test)
    def rows(**fixtures):
        failed, folder = [], fixtures.get("tmp_path")
        for i, point in enumerate(points):
            given = dict(zip(names, point, strict=True))
            if folder:
                fixtures["tmp_path"] = folder / str(i)
                fixtures["tmp_path"].mkdir()
            try:
                test(**given, **fixtures)
            except (Exception, pytest.fail.Exception) as error:
                error.add_note(f"at the row {given}")
                failed.append(error)
        if failed:
            raise BaseExceptionGroup(f"{len(failed)} of {len(points)} rows fail", failed)

    signature = inspect.signature(test)
    left = [parameter for name, parameter in signature.parameters.items() if name not in names]
    rows.__signature__ = signature.replace(parameters=left)
    rows.pytestmark = [mark for mark in test.pytestmark if mark.name != "parametrize"]
    return rows


def _names(columns):
    return [name.strip() for name in columns.split(",")] if isinstance(columns, str) else list(columns)


def _rows(columns, rows):
    """The values of each row, as a tuple."""
    for row in rows:
        if isinstance(row, type(pytest.param())):
            assert not row.marks, "a row with marks is a case of its own"
            yield tuple(row.values)
        else:
            yield tuple(row) if len(_names(columns)) > 1 else (row,)
