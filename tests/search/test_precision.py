"""The precision of a training, as far as it can be seen without a GPU."""

import pytest
import torch

from slth.search.precision import arithmetic


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", True), ("float32", False)])
def test_tf32_is_allowed_or_forbidden_inside_and_as_before_outside(precision, allowed, monkeypatch):
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    for backend in backends:
        monkeypatch.setattr(backend, "allow_tf32", not allowed)
    with arithmetic(precision, torch.device("cuda")):
        assert [backend.allow_tf32 for backend in backends] == [allowed] * 2
    assert [backend.allow_tf32 for backend in backends] == [not allowed] * 2
