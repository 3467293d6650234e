"""What the tests of sweeps share."""

import pytest
from sweeping import two_nodes


@pytest.fixture(scope="session")
def nodes(tmp_path_factory):
    """One cluster of two nodes for all."""
    with two_nodes(tmp_path_factory.mktemp("nodes") / "log") as nodes:
        yield nodes
