"""Every case of every kernel: Triton, in its interpreter, gives what the reference gives."""

import pytest
import torch
from helpers import by_dtype

from slth.kernels.cases import TOLERANCE, all_cases, differences
from slth.kernels.listing import modules

pytest.importorskip("triton")

SMALL = [case for case in all_cases() if not case.large]


@pytest.mark.parametrize(("case", "dtype"), by_dtype(SMALL))
def test_triton_is_the_reference(case, dtype):
    for output, difference in differences(case, dtype, torch.device("cpu")).items():
        assert difference <= (0.0 if case.exact else TOLERANCE[dtype]), output


def test_every_folder_has_cases():
    for module in modules("cases"):
        assert [case for case in module.CASES if not case.large], module.__name__
