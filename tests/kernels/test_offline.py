"""Every kernel is compiled for a GPU that is not there (sm_90), and what comes of it stays within its bounds.

In each of its dtypes once; all cases with -m slow.
"""

import json
import os
import subprocess
import sys

import pytest

from slth.kernels import offline
from slth.kernels.listing import modules
from slth.kernels.offline import SHARED_LIMIT

KINDS = {module.__name__.split(".")[-2] for module in modules("cases")}

pytestmark = pytest.mark.xdist_group("offline")  # compiled once for all of these tests


def one_of_each():
    """The name of the first case of every kernel in every dtype."""
    names = {}
    for case in offline.cases():
        sixteen = {"*bf16", "*fp16"} & {*case.types.values()}
        names.setdefault((case.kernel.__name__, *sixteen), case.name)
    return [*names.values()]


@pytest.fixture(scope="module", params=["one of each", pytest.param("all", marks=pytest.mark.slow)])
def compiled(request):
    """What `python -m slth.kernels.offline` finds: in a process of its own, without the interpreter."""
    names = one_of_each() if request.param == "one of each" else [case.name for case in offline.cases()]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "slth.kernels.offline", "--json", *names]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = {one["name"]: one for one in json.loads(ran.stdout)}  # and others whose names hold one of these
    return [found[name] for name in names]


def test_every_kernel_compiles_within_its_bounds(compiled):
    over = [
        f"{one['name']}: {one['spills']} spills of {one['allowed_spills']}, {one['registers']} registers, "
        f"{one['shared']} bytes shared"
        for one in compiled
        if one["spills"] > one["allowed_spills"] or one["registers"] > 255 or one["shared"] > SHARED_LIMIT
    ]
    assert not over, "\n".join(over)


def test_every_folder_has_cases_of_different_names():
    names = [case.name for case in offline.cases()]
    assert len(names) == len(set(names))
    for kind in KINDS:
        assert any(name.startswith(kind) for name in names), kind


def test_sixteen_bits_do_not_spill():
    """Forward kernels in 16 bits, and backward up to head width 128, are given no spills at all."""
    for case in offline.cases():
        words = case.name.split()
        sixteen = "bf16" in words or "fp16" in words
        narrow = "backward" not in words or "256" not in words
        if sixteen and narrow:
            assert case.spills == 0, case.name


def test_products_use_the_tensor_cores(compiled):
    """In both dtypes of 16 bits, in each folder that makes products."""
    products = [one for one in compiled if one["products"]]
    found = {(one["name"].split()[0], dtype) for one in products for dtype in ("bf16", "fp16") if dtype in one["name"]}
    makers = {case.name.split()[0] for case in offline.cases() if case.products}
    assert {"attention", "masked_linear", "mhla"} <= makers
    for maker in makers:
        for dtype in ("bf16", "fp16"):
            assert (maker, dtype) in found, f"{maker}: no {dtype} case has products=True"
    idle = [one["name"] for one in products if one["tensor_cores"] == 0]
    assert not idle


def test_tensor_cores_are_counted_where_there_are_none(compiled):
    """So that the count above can tell: exact products in float32 use none, nor does what makes no product."""
    assert any(one["tensor_cores"] == 0 for one in compiled if "fp32" in one["name"].split())
    assert all(one["tensor_cores"] == 0 for one in compiled if one["name"].startswith("select"))


def test_an_unknown_case_is_refused(capsys):
    assert offline.main(["no such case"]) == 1
    assert "no case holds no such case" in capsys.readouterr().err
