"""What the tests of tickets share."""

import pytest
from ticketing import found

from slth import Ticket


@pytest.fixture(scope="module")
def data():
    """A ticket of a search, its mask coded."""
    return Ticket.of(found(keep=0.2)).to_bytes()
