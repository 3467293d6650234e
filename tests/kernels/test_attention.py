"""Attention in Triton's interpreter against the reference: values, gradients, masks, layouts, what is left unread."""

import os

import pytest
import torch
from tables import one_case

from slth.kernels import BlockMask, attention, merged_attention, timing
from slth.kernels.attention import bench as timed
from slth.kernels.attention import triton as triton_attention
from slth.kernels.cases import normal

pytest.importorskip("triton")


pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
CPU = torch.device("cpu")


def heads(queries=19, keys=37, groups=2, width=16):
    """q, k and v of 4 heads."""
    shapes = {"q": (4, queries, width), "k": (groups, keys, width), "v": (groups, keys, width)}
    return [normal(f"test {name}", *shape, device=CPU).requires_grad_() for name, shape in shapes.items()]


def with_gradients(out, inputs):
    """The output and the gradients of its squares' sum."""
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


@pytest.fixture
def poison(monkeypatch):
    """Memory that is handed out is full of NaN."""
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(made):
        return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(0x7F)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))


def test_all_that_is_returned_is_written(poison):
    inputs = heads()
    mask = normal("test mask", 4, 19, 37, device=CPU) > 0
    for found in with_gradients(attention(*inputs, mask=mask, causal=True, impl="triton"), inputs):
        assert found.isfinite().all()


def test_all_that_merged_attention_returns_is_written(poison):
    x = normal("test x", 35, 16, device=CPU).requires_grad_()
    qk, vo = (normal(f"test {name}", 2, 16, 16, device=CPU).requires_grad_() for name in ("qk", "vo"))
    for found in with_gradients(merged_attention(x, qk, vo, impl="triton"), (x, qk, vo)):
        assert found.isfinite().all()


def test_twice_the_same_in_every_bit():
    inputs = heads()
    first, second = (with_gradients(attention(*inputs, impl="triton"), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_keys_that_nobody_sees_do_not_matter():
    """Tiles that are wholly masked, in the middle and at either end, as entries and as blocks: never NaN, exactly 0."""
    q, k, v = heads(queries=40, keys=160, groups=4)
    blocks = torch.zeros(3, 10, dtype=torch.bool)
    blocks[:, 5] = True
    far = torch.ones(160, 1)
    far[80:96] = 0
    seen = [t[:, 80:96].detach().requires_grad_() for t in (k, v)]
    wanted = with_gradients(attention(q, *seen, impl="reference"), (q, *seen))
    for mask in (BlockMask(blocks, 16), BlockMask(blocks, 16).dense(40, 160)):
        inputs = q, (k + 1e4 * far).detach().requires_grad_(), (v + 1e4 * far).detach().requires_grad_()
        out, dq, dk, dv = with_gradients(attention(*inputs, mask=mask, impl="triton"), inputs)
        for found, expected in zip((out, dq, dk[:, 80:96], dv[:, 80:96]), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for gradient in (dk, dv):
            assert not (gradient * far).any()


def test_blocks_are_their_dense_mask():
    """Blocks smaller than tiles, and larger in one direction or in both, with and without the causal mask."""
    q, k, v = heads(queries=90, keys=100)
    for size, causal in ((16, False), (32, True), (64, False), (128, True)):
        blocks = normal(f"test {size}", 4, -(-90 // size), -(-100 // size), device=CPU) > 0.5
        blocks[..., 0] = True
        mask = BlockMask(blocks, size)
        found = attention(q, k, v, mask=mask, causal=causal, impl="triton")
        wanted = attention(q, k, v, mask=mask.dense(90, 100), causal=causal, impl="reference")
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@one_case
@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("by_keys", [False, True])
def test_lists_name_the_tiles_that_are_not_empty(size, causal, by_keys):
    queries, keys = 150, 200
    tiles = triton_attention.Tiles(64, 32, 4, 2)
    blocks = normal(f"test lists {size}", 1, 1, -(-queries // size), -(-keys // size), device=CPU) > 0.7
    lists = triton_attention._Mask(blocks, size).lists(tiles, queries, keys, causal, by_keys)[0, 0]
    full = BlockMask(blocks, size).dense(queries, keys)[0, 0]
    tile = [(row, column) for row in range(0, queries, 64) for column in range(0, keys, 32)]
    below = {(r, c) for r, c in tile if not causal or c < min(r + 64, queries) + keys - queries}
    wanted = {(r, c) for r, c in below if full[r : r + 64, c : c + 32].any()}
    found = {(i, other) for i, row in enumerate(lists.tolist()) for other in row[1 : 1 + row[0]]}
    assert {(r * 64, c * 32) for r, c in (pair[::-1] if by_keys else pair for pair in found)} == wanted


@one_case
@pytest.mark.parametrize(("heads", "programs", "parts"), [(8, 32, 8), (8, 70, 4), (8, 264, 1), (6, 100, 3), (1, 1, 1)])
def test_shared_keys_are_divided_where_programs_are_few(heads, programs, parts):
    assert triton_attention._split(heads, programs) == parts


def test_undivided_groups_are_as_divided_ones(monkeypatch):
    inputs = heads(groups=1)
    divided = with_gradients(attention(*inputs, impl="triton"), inputs)
    monkeypatch.setattr(triton_attention, "PROGRAMS", 1)
    for found, wanted in zip(with_gradients(attention(*inputs, impl="triton"), inputs), divided, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_only_what_is_asked_for_has_a_gradient():
    q, k, v = heads()
    out = attention(q.detach(), k, v.detach(), impl="triton")
    (dk,) = torch.autograd.grad(out.square().sum(), k)
    wanted = torch.autograd.grad(attention(q, k, v, impl="reference").square().sum(), k)[0]
    torch.testing.assert_close(dk, wanted, rtol=1e-4, atol=1e-5)


def test_layouts_that_are_no_copies():
    """Every other entry, keys as columns, a gradient that is one number for all, a mask the wrong way round."""
    q, k, v = (t.detach() for t in heads(width=32))
    mask = (normal("test turned", 37, 19, device=CPU) > 0).mT
    mask[:, 0] = True
    found, wanted = [], []
    for impl, results in (("triton", found), ("reference", wanted)):
        inputs = [t.detach().requires_grad_() for t in (q[..., ::2], k.mT.contiguous().mT[..., 1::2], v)]
        out = attention(*inputs, mask=mask, impl=impl)
        results += [out, *torch.autograd.grad(out.sum(), inputs)]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_output_lies_as_the_queries_do():
    q, k, v = (t.detach()[None] for t in heads())
    turned = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert attention(q, k, v, impl="triton").is_contiguous()
    assert attention(turned, k, v, impl="triton").transpose(1, 2).is_contiguous()


def test_far_strides_are_copied():
    far = torch.empty(2**22 + 1, dtype=torch.bool).as_strided((1, 1, 2, 1), (1, 1, 2**22, 1))
    assert triton_attention._near(far).stride(-2) < 2**22
    near = torch.empty(2, 2, 3, 4).mT
    assert triton_attention._near(near) is near


def test_what_cannot_be_done_is_refused():
    q, k, v = heads()
    with pytest.raises(ValueError, match="has no True"):
        attention(q, k, v, mask=torch.arange(19)[:, None].expand(19, 37) != 4, impl="triton")
    wide = torch.zeros(1, 4, 257)
    with pytest.raises(ValueError, match="a head of width 257, must be at most 256"):
        attention(wide, wide, wide, impl="triton")


def test_the_timed_comparison_runs_and_agrees():
    """At tiny sizes, without a GPU: its rows are whole and its errors small; never how fast anything is."""
    found = timed.rows(CPU, 1, 0, sizes=((8, 16, 20, 2), (8, 20, 2, True)))
    assert [row["peer"] for row in found] == ["sdpa direct", "sdpa merged", "flex merged"] * 2 + ["sdpa"] * 2
    for row in found:
        assert set(timing.COLUMNS) < set(row)
        assert row["floor_s"] > 0
        assert row["error_ours"] < 1e-4
        if not row["note"]:
            assert row["error_peer"] < 1e-4
    assert not any(row["note"] for row in found if "sdpa" in row["peer"])
