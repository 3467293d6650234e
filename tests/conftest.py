"""Settings for all tests."""

import gc
import importlib.util
import os
import sys
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; Triton reads it when it is imported

import pytest
from hypothesis import settings

from slth.threads import one_torch_thread

settings.register_profile("slth", deadline=None)  # numba compiles on a first call, and a busy machine is slow
settings.load_profile("slth")


# Not by sys.path: beside proofs_check lies kernels, and transformers would take that for another package of the name.
SPEC = importlib.util.spec_from_file_location(
    "proofs_check", Path(__file__).parents[1] / "proofs_check" / "__init__.py"
)
sys.modules["proofs_check"] = importlib.util.module_from_spec(SPEC)


def pytest_collection_finish():
    """Put what has been imported beyond the garbage collector, which some refusals ask for all modules there are."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    """Kernels call many small functions, and Triton's interpreter does more at each call than the function."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from interpreting import can_patch, patching_at_launches

    with patching_at_launches() if can_patch() else nullcontext():
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests are small: torch's own threads would only get in each other's way."""
    with one_torch_thread():
        yield
