"""Weights made inside kernels: the same bits as `slth.weights.inits`, and products that never see them in memory."""

import importlib

import numpy as np
import pytest
import torch
from helpers import thinned

from slth import kernels
from slth.kernels.cases import normal
from slth.weights import inits, philox
from slth.weights.distributions import SIGN, UNIFORM, UNIFORM16
from slth.weights.recipes import Draw

triton_philox = pytest.importorskip("slth.kernels.seeded.philox")
triton = pytest.importorskip("triton")
tl = triton.language
block_words, element, uniform16 = triton_philox.block_words, triton_philox.element, triton_philox.uniform16

CPU = torch.device("cpu")
DRAW = {"uniform": inits.uniform, "uniform16": inits.uniform16, "sign": inits.sign}


def made(distribution, shape, scale=0.1, stream=0, bits=None, **options):
    return kernels.seeded_weight(shape, Draw(distribution, scale, 5, "many", stream), bits=bits, **options)


@pytest.mark.parametrize("distribution", DRAW)
@pytest.mark.parametrize("scale", [2.0**-101, 1 / 3, 1e30])
def test_scales_and_streams_of_all_sizes_in_every_bit(distribution, scale):
    shape = (64, 512)
    wanted = DRAW[distribution](shape, scale, seed=5, name="many", stream=(1 << 32) - 1)
    found = made(distribution, shape, scale, (1 << 32) - 1, impl="triton")
    assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))


@pytest.mark.parametrize("distribution", thinned(DRAW, len(DRAW)))
def test_ten_million_weights_in_every_bit(monkeypatch, distribution):
    """By the kernel itself, in tiles as large as suit an interpreter."""
    module = importlib.import_module("slth.kernels.seeded.triton")
    monkeypatch.setattr(module, "_write_tile", lambda: {"R": 64, "C": 4096, "num_warps": 4})
    shape = (2560, 4096)
    wanted = DRAW[distribution](shape, 0.1, seed=5, name="many")
    assert wanted.numel() > 10**7
    assert torch.equal(made(distribution, shape, impl="triton").view(torch.int32), wanted.view(torch.int32))


@triton.jit
def _words_kernel(out, first, stream, key0, key1, N: tl.constexpr):
    """The words of N blocks from number `first` on, which is read: a tensor can count further than a weight is long."""
    block = tl.load(first) + tl.arange(0, N)
    w0, w1, w2, w3 = block_words(block, stream, key0, key1, True)
    tl.store(out + tl.arange(0, N), w0)
    tl.store(out + N + tl.arange(0, N), w1)
    tl.store(out + 2 * N + tl.arange(0, N), w2)
    tl.store(out + 3 * N + tl.arange(0, N), w3)


@triton.jit
def _elements_kernel(out, first, stream, key0, key1, scale, DISTRIBUTION: tl.constexpr, N: tl.constexpr):
    index = tl.load(first) + tl.arange(0, N)
    tl.store(out + tl.arange(0, N), element(index, stream, key0, key1, scale, DISTRIBUTION))


@triton.jit
def _halves_kernel(out, scale, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), uniform16(tl.arange(0, N).to(tl.uint32), scale))


FAR = [0, (1 << 32) - 500, (1 << 32) - 5, 1 << 40, (1 << 60) + 12345]


@pytest.mark.parametrize("first", FAR)
def test_words_of_far_blocks(first):
    key = philox.stream_key(11, "far")
    out = torch.full((4, 1024), -1, dtype=torch.int32)
    _words_kernel[(1,)](out, torch.tensor(first), 9, *map(triton_philox.signed, key), N=1024)
    wanted = philox.words(key, 9, first, 1024, CPU).reshape(1024, 4).T
    assert torch.equal(out.to(torch.int64) & 0xFFFFFFFF, wanted)


@pytest.mark.parametrize("first", FAR)
@pytest.mark.parametrize("distribution", DRAW)
def test_elements_far_beyond_32_bits(distribution, first):
    key, per = philox.stream_key(11, "far"), triton_philox.PER_BLOCK[distribution]
    first -= first % per
    found = torch.full((1024,), float("nan"))
    factor = triton_philox.factor(distribution, 0.3)
    _elements_kernel[(1,)](found, torch.tensor(first), 3, *map(triton_philox.signed, key), factor, distribution, 1024)
    words = philox.words(key, 3, first // per, 1024 // per, CPU)
    convert = {"uniform": UNIFORM, "uniform16": UNIFORM16, "sign": SIGN}[distribution].of
    assert torch.equal(found.view(torch.int32), convert(words, 0.3).view(torch.int32))


def test_all_halves_give_what_inits_gives():
    """Each of the 2^16 numbers of a half word, by the trick that needs no conversion."""
    halves = torch.arange(1 << 16)
    words = halves[::2] | (halves[1::2] << 16)
    wanted = UNIFORM16.of(words, 0.7)

    found = torch.full((1 << 16,), float("nan"))
    _halves_kernel[(1,)](found, triton_philox.factor("uniform16", 0.7), N=1 << 16)
    assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))


@pytest.mark.parametrize("distribution", DRAW)
def test_what_is_pruned_is_zero_and_what_is_kept_is_what_it_was(distribution):
    mask = normal("mask", 9, 256, device=CPU) > 0
    bare, masked = (made(distribution, (9, 256), bits=bits, impl="triton") for bits in (None, kernels.pack_mask(mask)))
    assert torch.equal(masked.view(torch.int32), torch.where(mask, bare, 0.0).view(torch.int32))


def product(distribution="uniform16", tokens=3, outward=9, dtype=torch.float32, impl="triton", first=False, inward=256):
    shape = (inward, outward) if first else (outward, inward)
    bits = kernels.pack_mask(normal("mask", *shape, device=CPU) > 0)
    x = normal("x", tokens, inward, device=CPU).to(dtype).requires_grad_()
    bias = normal("bias", outward, device=CPU).to(dtype).requires_grad_()
    columns = outward if first else None
    y = kernels.seeded_linear(x, Draw(distribution, 0.1, 5, "many"), bits, columns=columns, bias=bias, impl=impl)
    return [y.detach(), *torch.autograd.grad((y * y.detach().cos()).sum(), (x, bias))]


@pytest.mark.parametrize(("tokens", "inward", "first"), [(1, 256, False), (3, 256, True), (3, 250, False)])
def test_all_that_is_allocated_is_written(monkeypatch, tokens, inward, first):
    expected = product(tokens=tokens, inward=inward, first=first)
    module = importlib.import_module("slth.kernels.seeded.triton")
    empty = torch.empty
    monkeypatch.setattr(module.torch, "empty", lambda *args, **options: empty(*args, **options).fill_(float("nan")))
    for found, wanted in zip(product(tokens=tokens, inward=inward, first=first), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("first", [False, True])
def test_inputs_shared_between_programs_add_up(first):
    """Few outputs and many inputs: each output is summed by several programs."""
    options = {"outward": 128, "inward": 520, "first": first, "tokens": 2}
    for found, wanted in zip(product(**options), product(impl="reference", **options), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_uses_the_rounded_weight():
    """One input at a time: y is the float16 weight itself."""
    bits = torch.full((6, 32), 255, dtype=torch.uint8)
    y = kernels.seeded_linear(torch.eye(256).half(), Draw("uniform", 0.1, 5, "many"), bits, impl="triton")
    assert torch.equal(y.T, made("uniform", (6, 256)).half())


@pytest.mark.parametrize("distribution", DRAW)
def test_one_token_uses_the_rounded_weight(distribution):
    bits = torch.full((6, 32), 255, dtype=torch.uint8)
    for place in (0, 1, 129, 255):
        x = torch.eye(256)[place].half()
        y = kernels.seeded_linear(x, Draw(distribution, 0.1, 5, "many"), bits, impl="triton")
        assert torch.equal(y, made(distribution, (6, 256))[:, place].half())


def test_words_begin_where_memory_does():
    """Bits whose memory, not their offset in it, is off by a byte: numpy's, say."""
    bits = torch.from_numpy(np.arange(6 * 32 + 1, dtype=np.uint8)[1:].reshape(6, 32))
    assert bits.storage_offset() == 0
    assert bits.data_ptr() % 4
    triton_seeded = importlib.import_module("slth.kernels.seeded.triton")
    assert triton_seeded._lines(bits, True).data_ptr() % 4 == 0
    x = normal("words", 3, 256, device=CPU)
    found, wanted = (
        kernels.seeded_linear(x, Draw("sign", 0.1, 5, "many"), bits, impl=impl) for impl in ("triton", "reference")
    )
    torch.testing.assert_close(found, wanted)


def test_no_tokens_give_none():
    assert product(tokens=0)[0].shape == (0, 9)


@pytest.mark.parametrize(("options", "message"), [({"scale": 0.0}, "scale=0.0"), ({"stream": -1}, "stream=-1")])
def test_a_draw_that_inits_refuses_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made("uniform", (2, 4), impl="triton", **options)


def test_int32_has_the_bits_of_uint32():
    for word in (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        assert np.int32(triton_philox.signed(word)).view(np.uint32) == word


def test_the_table_for_a_gpu_is_whole():
    from slth.kernels.seeded import bench as timed

    rows = timed.rows(CPU, rounds=1, seed=0, sizes=[(1, 128, 8), (2, 24, 8)], dtype=torch.float32)
    assert [row["size"] for row in rows[:3]] == [f"{one} 1x128x8" for one in DRAW]
    assert len(rows) == 6
    for row in rows:
        assert row["what"] == "seeded_linear"
        assert row["peer"] == "dense float32"
        assert row["floor_s"] > 0
        assert row["error_ours"] < 1e-5
