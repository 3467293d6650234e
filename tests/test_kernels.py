"""The kernels' public face: which form a call takes, what is refused, and what the references compute."""

import logging

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from slth import inits, kernels, masks
from slth.kernels import choice


def numbers(name, *shape, dtype=torch.float32):
    return inits.normal(shape, 1.0, seed=1, name=name).to(dtype)


def bits(*shape):
    return kernels.pack_mask(numbers("mask", *shape) > 0)


def qkv(*shape):
    return [numbers(name, *shape) for name in "qkv"]


def linear(x=(3, 10), w=(5, 10), mask=(5, 10), **options):
    return kernels.masked_linear(numbers("x", *x), numbers("w", *w), bits(*mask), **options)


@pytest.fixture
def no_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")


# ---------------------------------------------------------------- which form


def test_triton_on_a_cpu_tensor_is_refused(no_interpreter):
    with pytest.raises(ValueError, match='masked_linear with impl="triton": tensors on cpu, must be on a CUDA device'):
        linear(impl="triton")


def test_triton_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="triton is not installed"):
        linear(impl="triton")
    assert torch.equal(linear(), linear(impl="reference"))


def test_an_unknown_form_is_refused():
    for call in (lambda: linear(impl="cuda"), lambda: kernels.use("cuda")):
        with pytest.raises(ValueError, match="impl='cuda': must be one of auto, reference, triton"):
            call()


def test_auto_says_what_it_took(monkeypatch, caplog):
    monkeypatch.setattr(choice, "_told", set())
    with caplog.at_level(logging.INFO, logger="slth.kernels"):
        linear()
        linear()
    assert [record.getMessage() for record in caplog.records] == [
        'masked_linear with impl="auto" takes the reference: tensors on the CPU'
    ]


def test_use_says_what_auto_stands_for(no_interpreter):
    with kernels.use("triton"):
        with pytest.raises(ValueError, match="must be on a CUDA device"):
            linear()
        with kernels.use("reference"):
            linear()
        with pytest.raises(ValueError, match="must be on a CUDA device"):
            linear()
    linear()


def test_float64_has_no_triton_form():
    x, w = numbers("x", 3, 10, dtype=torch.float64), numbers("w", 5, 10, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"dtype torch\.float64, must be one of torch\.float32"):
        kernels.masked_linear(x, w, bits(5, 10), impl="triton")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda **o: linear(mask=(5, 17), **o),
            r"uint8 \(\.\.\., 2\)",
        ),
        (
            lambda **o: linear(mask=(4, 10), **o),
            r"of \(4,\) rows",
        ),
        (
            lambda **o: linear(x=(3, 9), **o),
            r"must be \(\.\.\., in\)",
        ),
        (
            lambda **o: kernels.masked_linear(numbers("x", 3, 10).half(), numbers("w", 5, 10), bits(5, 10), **o),
            r"weight of dtype torch\.float32: must be torch\.float16 as x is",
        ),
        (
            lambda **o: kernels.masked_linear(numbers("x", 3, 10), torch.empty(5, 10, device="meta"), bits(5, 10), **o),
            "weight on meta: must be on cpu as x is",
        ),
        (
            lambda **o: kernels.masked_weight(numbers("w", 5, 10), (numbers("s", 5, 9), 0.5), **o),
            r"scores: torch\.float32 \(5, 9\), must be torch\.float32 \(5, 10\)",
        ),
        (
            lambda **o: kernels.select_threshold(numbers("s", 5), 6, **o),
            "k=6: must be from 1 to the number of",
        ),
        (lambda **o: kernels.select_threshold(numbers("s", 5), 0, **o), "k=0: must be"),
        (lambda **o: kernels.select_threshold(numbers("s", 5).half(), 2, **o), "must be torch.float32"),
        (
            lambda **o: kernels.attention(*qkv(4, 3, 8), torch.zeros(3, 3).bool(), **o),
            r"mask row \(0,\) has no True",
        ),
        (
            lambda **o: kernels.attention(*qkv(4, 3, 8), torch.ones(3, 3).bool().triu(1), True, **o),
            r"mask row \(0,\) has no True",
        ),
        (
            lambda **o: kernels.merged_attention(
                numbers("x", 3, 8), numbers("b", 2, 8, 8), numbers("c", 2, 8, 8), torch.zeros(3, 3).bool(), **o
            ),
            "has no True",
        ),
        (lambda **o: kernels.attention(*qkv(4, 3, 8), torch.ones(3, 4).bool(), **o), "must broadcast to"),
        (lambda **o: kernels.attention(*qkv(4, 3, 8), torch.ones(3, 3), **o), "must be torch.bool"),
        (
            lambda **o: kernels.attention(numbers("q", 4, 3, 8), numbers("k", 3, 3, 8), numbers("v", 3, 3, 8), **o),
            "must divide the heads of q",
        ),
        (
            lambda **o: kernels.attention(*qkv(1, 20, 8), kernels.BlockMask(torch.ones(2, 2).bool(), 12), **o),
            "size 12, must be a power of two >= 16",
        ),
        (
            lambda **o: kernels.attention(
                numbers("q", 2, 4, 8), numbers("k", 2, 3, 8), numbers("v", 2, 3, 8), None, True, **o
            ),
            "4 queries of 3 keys: the first attend to nothing",
        ),
        (
            lambda **o: kernels.mhla(*qkv(1, 9, 4), torch.ones(2, 2), block=4, **o),
            r"mixing \(2, 2\): must be at least \(3, 3\)",
        ),
        (lambda **o: kernels.mhla(*qkv(1, 9, 4), torch.ones(9, 9), block=0, **o), "block=0"),
        (
            lambda **o: kernels.seeded_linear(numbers("x", 3, 10), 0, "w", bits(5, 17), "sign", scale=1.0, **o),
            r"uint8 \(\.\.\., 2\) for 10 columns",
        ),
        (
            lambda **o: kernels.seeded_linear(numbers("x", 3, 10), 0, "w", bits(5, 10), "normal", scale=1.0, **o),
            "distribution='normal': must be one of uniform, uniform16, sign",
        ),
        (lambda **o: kernels.seeded_weight((0, 4), 0, "w", "sign", scale=1.0, **o), r"shape=\(0, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused_alike(call, message, impl):
    with pytest.raises(ValueError, match=message):
        call(impl=impl)


def test_triton_refuses_heads_that_are_too_wide():
    q, k, v = (numbers(name, 1, 4, 300) for name in "qkv")
    with pytest.raises(ValueError, match="a head of width 300, must be at most 256"):
        kernels.attention(q, k, v, impl="triton")
    x, b = numbers("x", 4, 300), numbers("b", 1, 300, 300)
    with pytest.raises(ValueError, match="a head of width 300, must be at most 256"):
        kernels.merged_attention(x, b, b, impl="triton")
    with pytest.raises(ValueError, match="block=200, must be at most 128"):
        kernels.mhla(*qkv(1, 9, 4), torch.ones(1, 1), block=200, impl="triton")
    kernels.attention(q, k, v)


# ---------------------------------------------------------------- what the references compute


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64])
def test_bits_hold_a_mask(columns):
    mask = numbers("mask", 3, 5, columns) > 0
    packed = kernels.pack_mask(mask)
    assert packed.shape == (3, 5, -(-columns // 8))
    assert torch.equal(kernels.unpack_mask(packed, columns), mask)


def test_selection_keeps_what_the_rule_keeps():
    scores = numbers("s", 7, 11).mul(3).round()  # many ties
    for k in range(1, scores.numel() + 1):
        value, last_tie = kernels.select_threshold(scores, k, impl="reference")
        cut = masks.Cut(float(value), int(last_tie))
        order = sorted(range(77), key=lambda i: (-abs(float(scores.flatten()[i])), i))
        kept = torch.zeros(77, dtype=torch.bool)
        kept[order[:k]] = True
        assert torch.equal(cut.mask(scores).flatten(), kept)


def test_reference_attention_is_torchs():
    q, k, v = numbers("q", 2, 6, 9, 8), numbers("k", 2, 3, 12, 8), numbers("v", 2, 3, 12, 8)
    mask = (numbers("m", 9, 12) > 0) | torch.eye(9, 12).bool()
    wide = (t.repeat_interleave(2, dim=1) for t in (k, v))
    wanted = scaled_dot_product_attention(q, *wide, attn_mask=mask)
    torch.testing.assert_close(kernels.attention(q, k, v, mask, impl="reference"), wanted)


def test_masked_mha_merges_without_a_difference():
    x = numbers("x", 2, 7, 4, dtype=torch.float64)
    query, key, value = (numbers(n, 3, 4, 10, dtype=torch.float64) for n in ("query", "key", "value"))
    output = numbers("output", 3, 10, 6, dtype=torch.float64)
    some = tuple(kernels.pack_mask(w > 0) for w in (query, key, value, output))
    found = kernels.masked_mha(x, query, key, value, output, some, impl="reference")
    q, k, v, o = (torch.where(w > 0, w, 0) for w in (query, key, value, output))
    heads = scaled_dot_product_attention(*(x.unsqueeze(1) @ w for w in (q, k, v)))
    torch.testing.assert_close(found, (heads @ o).sum(1), rtol=1e-12, atol=1e-12)


def test_block_masks_are_masks():
    blocks = torch.tensor([[True, False], [True, True]])
    dense = kernels.BlockMask(blocks, 16).dense(20, 30)
    assert dense.shape == (20, 30)
    assert dense[:16, :16].all()
    assert not dense[:16, 16:].any()
    assert dense[16:].all()
