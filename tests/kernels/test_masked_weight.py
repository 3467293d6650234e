"""Masked weights are written where they shall be."""

import pytest
import torch
from kernel_inputs import bits, numbers

from slth import kernels
from slth.kernels import cut

# ---------------------------------------------------------------- masked weights


@pytest.mark.parametrize("impl", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("kind", ["bits", "scores"])
def test_a_masked_weight_is_written_where_it_shall_be(kind, impl):
    weight, scores = numbers("w", 6, 30), numbers("s", 6, 30).requires_grad_()
    mask = bits(6, 10) if kind == "bits" else (scores[:, 10:20], 0.5)
    memory = torch.full((6, 30), 7.0)
    part, version = memory[:, 10:20], memory._version
    assert kernels.masked_weight(weight[:, 10:20], mask, out=part, impl=impl) is part
    assert part.equal(kernels.masked_weight(weight[:, 10:20], mask, impl="reference"))
    assert memory._version > version
    assert not memory.requires_grad
    assert memory[:, :10].eq(7).all()
    assert memory[:, 20:].eq(7).all()


@pytest.mark.parametrize(
    ("out", "message"), [(torch.ones(5, 9), r"out \(5, 9\): must be"), (torch.ones(5, 10).half(), "out of dtype")]
)
def test_an_out_that_does_not_fit_is_refused(out, message):
    with pytest.raises(ValueError, match=message):
        kernels.masked_weight(numbers("w", 5, 10), bits(5, 10), out=out)


@pytest.mark.parametrize(
    ("weight", "scores", "message"),
    [
        (numbers("w", 5, 10).long(), numbers("s", 5, 10), "weight"),
        (numbers("w", 5, 10), torch.empty(5, 10, device="meta"), "scores"),
    ],
)
def test_what_cannot_be_masked_is_refused(weight, scores, message):
    with pytest.raises(ValueError, match=message):
        kernels.masked_weight(weight, (scores, 0.5))


def test_numbers_are_not_copied_to_a_device(monkeypatch):
    monkeypatch.setattr(cut.torch, "as_tensor", None)
    monkeypatch.setattr(cut.torch, "tensor", None)
    weight, scores = numbers("w", 5, 10), numbers("s", 5, 10)
    kernels.masked_weight(weight, (scores, 0.5), impl="reference")
    assert kernels.score_gradient(weight, weight, scores).equal(weight * weight * scores.sign())
