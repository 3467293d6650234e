"""What the tests of experiments share."""

import logging

import pytest
from sweeping import two_nodes

from slth.experiments.lab import storage


@pytest.fixture(scope="session")
def nodes(tmp_path_factory):
    """One cluster of two nodes for all."""
    with two_nodes(tmp_path_factory.mktemp("nodes") / "log") as nodes:
        yield nodes


@pytest.fixture(scope="module")
def blank_figures():
    """Runs store empty files for figures: three formats take seconds, and test_lab.py looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        kinds = ("png", "svg", "pdf")
        patch.setattr(storage, "render", lambda figures: {f"{name}.{k}": b"" for name in figures for k in kinds})
        yield


@pytest.fixture(scope="module")
def text(request, tmp_path_factory):
    """A file that holds the TEXT of the module whose tests ask for it."""
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(request.module.TEXT)
    return path


@pytest.fixture(autouse=True)
def logs():
    """A sweep's server disables logs in its process, which in tests is the tests' own."""
    yield
    logging.disable(logging.NOTSET)
