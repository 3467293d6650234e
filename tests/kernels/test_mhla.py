"""Linear attention in chunks by Triton: its cases, and what the sums over blocks must do at their edges."""

import importlib

import numpy as np
import pytest
import torch

from slth import kernels
from slth.kernels.cases import TOLERANCE, differences, normal
from slth.kernels.mhla import cases

CPU = torch.device("cpu")


@pytest.fixture
def tensor_cores(monkeypatch):
    """The interpreter's products in tf32 as a GPU makes them: the last 13 bits of float32 are not looked at."""
    builder = importlib.import_module("triton.runtime.interpreter").InterpreterBuilder
    exact = builder.create_dot

    def cut(handle):
        data = handle.data
        if data.dtype != np.float32:
            return handle
        return type(handle)((data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32), handle.dtype)

    def create_dot(self, a, b, d, input_precision, most):
        if input_precision.name == "TF32":
            a, b = cut(a), cut(b)
        return exact(self, a, b, d, input_precision, most)

    monkeypatch.setattr(builder, "create_dot", create_dot)


@pytest.mark.parametrize("name", ["causal, last block shorter", "two blocks of 100", "wide keys"])
def test_products_on_tensor_cores_are_exact_enough(tensor_cores, name):
    """Where a gradient to mixing is what is left of sums that nearly cancel."""
    (case,) = (case for case in cases.CASES if case.name == f"mhla {name}")
    assert max(differences(case, torch.float16, CPU).values()) <= TOLERANCE[torch.float16]


def inputs(length=21, block=8, heads=2, n=8, m=5):
    q, k = (normal(name, 1, heads, length, n, device=CPU).abs() for name in "qk")
    v = normal("v", 1, heads, length, m, device=CPU)
    blocks = -(-length // block)
    return [q, k, v, normal("mixing", blocks, blocks, device=CPU).abs()]


def results(tensors, **options):
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = kernels.mhla(*leaves, **({"block": 8, "causal": True, "impl": "triton"} | options))
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)]


@pytest.mark.parametrize(("causal", "normalise"), [(False, True), (True, False)])
def test_all_that_is_allocated_is_written(monkeypatch, causal, normalise):
    expected = results(inputs(), causal=causal, normalise=normalise)
    module = importlib.import_module("slth.kernels.mhla.triton")

    def poisoned(make):
        return lambda *args, **options: make(*args, **options).fill_(float("nan"))

    monkeypatch.setattr(module.torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(module.torch, "empty_like", poisoned(torch.empty_like))
    for found, wanted in zip(results(inputs(), causal=causal, normalise=normalise), expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_future_is_not_seen():
    q, k, v, mixing = inputs()
    out = kernels.mhla(q, k, v, mixing, block=8, causal=True, impl="triton")
    k[..., 13:, :] = v[..., 13:, :] = 1e4
    assert torch.equal(
        kernels.mhla(q, k, v, mixing, block=8, causal=True, impl="triton")[..., :13, :], out[..., :13, :]
    )


def test_a_token_that_attends_to_nothing_gets_zeros():
    q, k, v, mixing = inputs()
    q[..., 3, :] = 0
    triton, reference = (results([q, k, v, mixing], impl=impl) for impl in ("triton", "reference"))
    assert not triton[0][..., 3, :].any()
    for found, wanted in zip(triton, reference, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_entries_above_the_diagonal_and_beyond_the_blocks_are_not_read():
    q, k, v, mixing = inputs()
    wide = torch.full((5, 5), float("nan"))
    wide[:3, :3] = mixing.where(torch.ones(3, 3).tril() > 0, float("nan"))
    out, dq, dk, dv, dmixing = results([q, k, v, wide])
    expected = results([q, k, v, mixing.tril()])
    for found, wanted in zip((out, dq, dk, dv, dmixing[:3, :3]), expected, strict=True):
        assert torch.equal(found, wanted)
    assert not dmixing[3:].any()
    assert not dmixing[:, 3:].any()


def test_negative_weights_and_a_sum_of_minus_one():
    """A normaliser of -1 is one to divide by, not a sign that there is none."""
    q = torch.ones(1, 1, 2, 4)
    k = torch.full((1, 1, 2, 4), -0.25)
    v = normal("v", 1, 1, 2, 3, device=CPU)
    mixing = torch.ones(1, 1)
    triton = results([q, k, v, mixing])
    for found, wanted in zip(triton, results([q, k, v, mixing], impl="reference"), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("cast", [False, True], ids=["halves", "autocast"])
def test_a_gradient_beyond_float16_is_float32(impl, cast):
    """q, k, v in float16, mixing in float32: its sums go over all tokens and heads."""
    tensors = [t.abs().half() for t in inputs()[:3]] + [inputs()[3]]
    q, k, v, mixing = (t.clone().requires_grad_() for t in (t.float() if cast else t for t in tensors))
    with torch.autocast("cpu", torch.float16, enabled=cast):
        out = kernels.mhla(q, k, v, mixing, block=8, causal=True, normalise=False, impl=impl)
        (found,) = torch.autograd.grad(out, mixing, torch.full_like(out, 100.0))
    wide = [t.double() for t in tensors]
    wide[3].requires_grad_()
    sums = kernels.mhla(*wide, block=8, causal=True, normalise=False, impl="reference")
    (wanted,) = torch.autograd.grad(sums, wide[3], torch.full_like(sums, 100.0))
    assert out.dtype == torch.float16
    assert found.dtype == torch.float32
    assert float(wanted.abs().max()) > 2 * torch.finfo(torch.float16).max
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()))


def test_mixing_of_another_dtype_is_refused():
    q, k, v, mixing = inputs()
    for others, one in (
        (torch.float32, torch.float16),
        (torch.float16, torch.bfloat16),
        (torch.float64, torch.float32),
    ):
        with pytest.raises(ValueError, match=f"mixing of dtype {one}: must be {others} as q is"):
            kernels.mhla(q.to(others), k.to(others), v.to(others), mixing.to(one), block=8)


def test_no_tokens_give_none():
    q, k, v, _ = inputs(length=0)
    assert kernels.mhla(q, k, v, torch.ones(1, 1), block=8, impl="triton").shape == v.shape


@pytest.mark.parametrize(("options", "message"), [({"block": 129}, "at most 128"), ({"n": 257}, "at most 256")])
def test_what_does_not_fit_is_refused(options, message):
    q, k, v, mixing = inputs(n=options.pop("n", 8))
    with pytest.raises(ValueError, match=message):
        kernels.mhla(q, k, v, mixing, **({"block": 8, "impl": "triton"} | options))


def test_the_layer_says_the_same():
    from slth.attention import MultiHeadLinearAttention

    layer = MultiHeadLinearAttention(6, 5, 2, 4, length=30, block=8, causal=True)
    x = normal("x", 2, 21, 6, device=CPU)
    q, k = (layer._features(x, weight) for weight in (layer.query, layer.key))
    v = x.unsqueeze(-3) @ layer.value
    heads = kernels.mhla(q, k, v, layer.mixing_matrix(), block=8, causal=True, impl="triton")
    torch.testing.assert_close((heads @ layer.output).sum(-3), layer(x))


def test_the_table_for_a_gpu_is_whole():
    from slth.kernels.mhla import bench as timed

    rows = timed.rows(CPU, rounds=1, seed=0, sizes=[(1, 2, 40, 8, 16)], dtype=torch.float32)
    assert {row["peer"] for row in rows} == {"causal SDPA", "chunks in torch"}
    for row in rows:
        assert row["what"] == "mhla"
        assert row["floor_s"] > 0
        assert row["error_ours"] < 1e-5
