"""Settings for all tests."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; Triton reads it when it is imported

import pytest
from hypothesis import settings

from slth.threads import one_torch_thread

settings.register_profile("slth", deadline=None)  # numba compiles on a first call, and a busy machine is slow
settings.load_profile("slth")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests are small: torch's own threads would only get in each other's way."""
    with one_torch_thread():
        yield
