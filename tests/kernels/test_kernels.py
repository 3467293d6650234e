"""The kernels' public face: which form a call takes, what is refused, and what the references compute."""

import logging
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from kernel_inputs import bits, numbers, qkv
from tables import one_case
from torch.nn.functional import scaled_dot_product_attention

from slth import kernels
from slth.kernels import Cut, dispatch
from slth.kernels.attention.masks import attended, check_attended
from slth.weights.recipes import Draw

attention, masked_linear = (import_module(f"slth.kernels.{name}") for name in ("attention", "masked_linear"))


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
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="triton is not installed"):
        linear(impl="triton")
    assert torch.equal(linear(), linear(impl="reference"))


def test_an_unknown_form_is_refused():
    for call in (lambda: linear(impl="cuda"), lambda: kernels.use("cuda")):
        with pytest.raises(ValueError, match="impl='cuda': must be one of auto, reference, cpu, triton"):
            call()


def test_auto_says_what_it_took(monkeypatch, caplog):
    calls = {
        "masked_linear": (masked_linear._MASKED_LINEAR, linear, "reference"),
        "attention": (attention._ATTENTION, lambda: kernels.attention(*qkv(1, 3, 8)), "cpu"),
    }
    with caplog.at_level(logging.INFO, logger="slth.kernels"):
        for kernel, call, _ in calls.values():
            monkeypatch.setattr(kernel, "_logged", set())
            call()
            with kernels.use("reference"):
                call()
            call()
    assert [record.getMessage() for record in caplog.records] == [
        f'{name} with impl="auto" takes {taken}: tensors on the CPU' for name, (_, _, taken) in calls.items()
    ]


def test_a_kernel_without_a_form_of_its_own_for_the_cpu_says_so():
    with pytest.raises(ValueError, match='masked_linear with impl="cpu": it has none, must be auto, reference or tri'):
        linear(impl="cpu")


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


@pytest.mark.parametrize("version", ["3.5.1", "2.9"])
def test_triton_that_is_too_old_is_named(monkeypatch, version):
    dispatch._triton.cache_clear()
    monkeypatch.setattr(dispatch.importlib.metadata, "version", lambda name: version)
    try:
        with pytest.raises(RuntimeError, match=rf"triton is of version {version[:3]}, must be >= 3\.6"):
            linear(impl="triton")
        assert torch.equal(linear(), linear(impl="reference"))
    finally:
        dispatch._triton.cache_clear()


@one_case
@pytest.mark.parametrize(
    ("gpu", "hip", "lacks"),
    [
        ({"major": 9, "minor": 0, "shared_memory_per_block_optin": 232448}, None, ""),
        ({"major": 8, "minor": 0, "shared_memory_per_block_optin": 166912}, None, ""),
        ({"major": 8, "minor": 0}, None, ""),
        ({"major": 7, "minor": 5}, None, "compute capability 7.5, must be >= 8.0"),
        ({"major": 8, "minor": 9, "shared_memory_per_block_optin": 101376}, None, "has 101376 bytes of shared memory"),
        ({"major": 9, "minor": 0, "shared_memory_per_block_optin": 232448}, "6.0", "is not of NVIDIA's"),
    ],
)
def test_auto_takes_gpus_that_the_kernels_are_made_for(monkeypatch, gpu, hip, lacks):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name="some", **gpu))
    tensor = SimpleNamespace(
        device=torch.device("cuda", 3), dtype=torch.float32, is_floating_point=lambda: True, is_cpu=False
    )
    dispatch._lacking.cache_clear()
    try:
        assert lacks in dispatch._misfit(tensor.device)
        for impl in ("auto", "triton"):
            with kernels.counted() as counts:
                masked_linear._MASKED_LINEAR.choose(impl, tensor)
            ((_, taken),) = counts
            assert taken == ("reference" if lacks and impl == "auto" else "triton")
    finally:
        dispatch._lacking.cache_clear()


# ---------------------------------------------------------------- autocast

FLOATS = {
    "attention": lambda **o: kernels.attention(*qkv(2, 9, 8), causal=True, **o),
    "merged_attention": lambda **o: kernels.merged_attention(
        numbers("x", 9, 8), numbers("b", 2, 8, 8), numbers("c", 2, 8, 6), **o
    ),
    "mhla": lambda **o: kernels.mhla(*(t.abs() for t in qkv(2, 9, 8)), torch.ones(3, 3), block=4, causal=True, **o),
    "masked_linear": lambda **o: linear(bias=numbers("bias", 5), **o),
    "masked_linear by scores": lambda **o: kernels.masked_linear(
        numbers("x", 3, 10), numbers("w", 5, 10), (numbers("s", 5, 10), 0.5), **o
    ),
    "masked_mha": lambda **o: kernels.masked_mha(
        numbers("x", 9, 4), kernels.Factors(*(numbers(n, 2, 4, 6) for n in "qkv"), numbers("o", 2, 6, 5)), **o
    ),
    "seeded_linear": lambda **o: kernels.seeded_linear(
        numbers("x", 3, 10), Draw("sign", 1.0, 0, "w"), bits(5, 10), **o
    ),
}


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("name", FLOATS)
def test_autocast_says_in_which_dtype(name, impl):
    wanted = FLOATS[name](impl="reference")
    with torch.autocast("cpu", torch.float16):
        found = FLOATS[name](impl=impl)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-2 * float(wanted.abs().max()))


def test_autocast_takes_tensors_of_several_dtypes():
    q, k, v = qkv(2, 9, 8)
    with torch.autocast("cpu", torch.float16):
        found = kernels.attention(q.half(), k, v.half(), impl="triton")
        assert found.equal(kernels.attention(q.half(), k.half(), v.half(), impl="triton"))
        wide = kernels.attention(q.double(), k.double(), v.double())
    assert wide.dtype == torch.float64


def test_autocast_of_another_device_casts_nothing():
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        assert linear().dtype == torch.float32
    finally:
        torch.set_autocast_enabled("cuda", before)


def test_gradients_within_autocast():
    def gradients():
        leaves = [t.abs().requires_grad_() for t in (*qkv(1, 9, 8), numbers("mixing", 3, 3))]
        out = kernels.mhla(*leaves, block=4, causal=True, impl="triton")
        with torch.autocast("cpu", torch.float16, enabled=inside):
            return torch.autograd.grad(out.square().sum(), leaves)

    inside = False
    wanted = gradients()
    inside = True
    assert all(found.equal(one) for found, one in zip(gradients(), wanted, strict=True))


# ---------------------------------------------------------------- what is refused


@one_case
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
            lambda **o: kernels.attention(*qkv(4, 3, 8), torch.ones(3, 3).tril(-1).bool(), **o),
            r"mask row \(0,\) has no True",
        ),
        (
            lambda **o: kernels.attention(*qkv(4, 3, 8), (torch.arange(3)[:, None] != 1).repeat(1, 3), True, **o),
            r"mask row \(1,\) has no True",
        ),
        (
            lambda **o: kernels.merged_attention(
                numbers("x", 3, 8), numbers("b", 2, 8, 8), numbers("c", 2, 8, 8), torch.ones(3, 3).tril(-1).bool(), **o
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
            lambda **o: kernels.seeded_linear(numbers("x", 3, 10), Draw("sign", 1.0, 0, "w"), bits(5, 17), **o),
            r"uint8 \(\.\.\., 2\) for 10 columns",
        ),
        (
            lambda **o: kernels.seeded_linear(numbers("x", 3, 10), Draw("normal", 1.0, 0, "w"), bits(5, 10), **o),
            "distribution='normal': must be one of uniform, uniform16, sign",
        ),
        (lambda **o: kernels.seeded_weight((0, 4), Draw("sign", 1.0, 0, "w"), **o), r"shape=\(0, 4\)"),
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


@one_case
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
        found = Cut(float(value), int(last_tie))
        order = sorted(range(77), key=lambda i: (-abs(float(scores.flatten()[i])), i))
        kept = torch.zeros(77, dtype=torch.bool)
        kept[order[:k]] = True
        assert torch.equal(found.mask(scores).flatten(), kept)


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
    found = kernels.masked_mha(x, kernels.Factors(query, key, value, output), some, impl="reference")
    q, k, v, o = (torch.where(w > 0, w, 0) for w in (query, key, value, output))
    heads = scaled_dot_product_attention(*(x.unsqueeze(1) @ w for w in (q, k, v)))
    torch.testing.assert_close(found, (heads @ o).sum(1), rtol=1e-12, atol=1e-12)


@one_case
@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("keys", [40, 44])
@pytest.mark.parametrize("queries", [16, 20, 40])
def test_causal_blocks_leave_out_the_rows_that_their_entries_leave_out(queries, keys, turn):
    blocks = numbers(f"blocks {turn}", 2, -(-queries // 16), -(-keys // 16)) > (0.6, -0.4, -3.0, -9.0)[turn]
    mask = kernels.BlockMask(blocks, 16)
    shape, cpu = (2, queries, keys), torch.device("cpu")
    empty = ~attended(mask, True, queries, keys, cpu).any(-1)
    if not empty.any():
        check_attended(mask, True, shape, cpu)
        return
    row = tuple(int(i) for i in empty.nonzero()[0])
    with pytest.raises(ValueError, match=rf"mask row \({row[0]}, {row[1]}\) has no True"):
        check_attended(mask, True, shape, cpu)


def test_causal_blocks_are_not_spread(monkeypatch):
    monkeypatch.setattr(kernels.BlockMask, "dense", None)
    check_attended(kernels.BlockMask(torch.ones(3, 3).bool(), 16), True, (2, 40, 40), torch.device("cpu"))


def test_block_masks_are_masks():
    blocks = torch.tensor([[True, False], [True, True]])
    dense = kernels.BlockMask(blocks, 16).dense(20, 30)
    assert dense.shape == (20, 30)
    assert dense[:16, :16].all()
    assert not dense[:16, 16:].any()
    assert dense[16:].all()
