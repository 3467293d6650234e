"""The precision of a training, as far as it can be seen without a GPU."""

import pytest
import torch

from slth.search.precision import arithmetic, products


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", True), ("float32", False)])
def test_tf32_is_allowed_or_forbidden_inside_and_as_before_outside(precision, allowed, monkeypatch):
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    for backend in backends:
        monkeypatch.setattr(backend, "allow_tf32", not allowed)
    with arithmetic(precision, torch.device("cuda")):
        assert [backend.allow_tf32 for backend in backends] == [allowed] * 2
    assert [backend.allow_tf32 for backend in backends] == [not allowed] * 2


@pytest.mark.parametrize(("precision", "word", "name"), [("tf32", "high", "tf32"), ("float32", "highest", "ieee")])
@pytest.mark.parametrize("outside", ["highest", "high", "medium", "newer"])
def test_either_of_torchs_ways_to_allow_tf32_is_followed_and_put_back(precision, word, name, outside):
    matmul, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = matmul.fp32_precision, mkldnn.fp32_precision
    try:
        if outside == "newer":  # alone, after which torch does not read the older way any more
            matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision(outside)
        found = matmul.fp32_precision, mkldnn.fp32_precision
        with products(precision, torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == word
            assert matmul.fp32_precision == name
        assert (matmul.fp32_precision, mkldnn.fp32_precision) == found
        if outside != "newer":
            assert torch.get_float32_matmul_precision() == outside
        with products(precision, torch.device("cpu")), products("bf16", torch.device("cuda")):
            assert (matmul.fp32_precision, mkldnn.fp32_precision) == found
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision, mkldnn.fp32_precision = before
