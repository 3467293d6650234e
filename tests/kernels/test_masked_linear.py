"""Masked weights and their products, in Triton's interpreter against the reference."""

import pytest
import torch
from tables import one_case

from slth.kernels import (
    Cut,
    counted,
    masked_linear,
    masked_weight,
    pack_mask,
    score_gradient,
    select_threshold,
    unpack_mask,
    use,
)
from slth.kernels.cases import normal
from slth.kernels.masked_linear import bench, product
from slth.kernels.masked_linear import reference as linear_reference
from slth.kernels.masked_linear import triton as triton_masked_linear
from slth.kernels.masked_weight import reference
from slth.kernels.masked_weight import triton as triton_masked_weight
from slth.kernels.timing import COLUMNS, SPREAD

pytest.importorskip("triton")


CPU = torch.device("cpu")


def numbers(name, *shape):
    return normal(f"test {name}", *shape, device=CPU)


def scored(rows, columns, k):
    """Scores with ties, and the threshold that keeps k."""
    scores = numbers("scores", rows, columns).mul(2).round()
    return scores, select_threshold(scores, k, impl="reference")


@pytest.mark.parametrize(
    ("tokens", "impl", "form", "writes"),
    [
        ((3, 5), "auto", "triton", False),
        ((4, 4), "auto", "triton", True),
        ((4, 4), "triton", "triton", False),
        ((4, 4), "auto", "reference", False),
    ],
)
def test_for_many_tokens_the_masked_weight_is_written_first(tokens, impl, form, writes, monkeypatch):
    monkeypatch.setattr(product, "MANY", 16)
    (scores, cut), bias = scored(7, 10, 30), numbers("bias", 7)
    x, weight = numbers("x", *tokens, 10).requires_grad_(), numbers("weight", 7, 10)
    scores.requires_grad_()
    with use(form), counted() as counts:
        y = masked_linear(x, weight, (scores, cut), bias=bias, impl=impl)
    assert counts["masked_linear", form] == 1
    assert counts["masked_weight", "triton"] == writes
    wanted = masked_linear(x, weight, (scores, cut), bias=bias, impl="reference")
    torch.testing.assert_close(y, wanted)
    grads, those = (torch.autograd.grad(each.square().sum(), (x, scores)) for each in (y, wanted))
    torch.testing.assert_close(grads, those)


# ---------------------------------------------------------------- what a mask keeps


def identity(mask, rows, columns):
    """The masked weight of ones, as the product of the identity with it."""
    ones = torch.ones(rows, columns)
    return masked_linear(torch.eye(columns), ones, mask, impl="triton").mT, masked_weight(ones, mask, impl="triton")


@one_case
@pytest.mark.parametrize("k", [1, 33, 500, 34 * 45])
def test_exactly_k_are_kept_whatever_the_ties(k):
    mask = scored(34, 45, k)
    for found in identity(mask, 34, 45):
        assert found.sum() == k
        assert found.bool().equal(reference.kept(mask, 45))


@one_case
@pytest.mark.parametrize("last_tie", [-1, 0, 44, 45, 700, 34 * 45 - 1, 2**40])
def test_ties_are_kept_up_to_the_last(last_tie):
    scores = torch.where(numbers("equal", 34, 45) < 0, -0.5, 0.5)
    mask = scores, Cut(torch.tensor(0.5), torch.tensor(last_tie))
    for found in identity(mask, 34, 45):
        assert found.flatten().bool().equal(torch.arange(34 * 45) <= last_tie)


@one_case
@pytest.mark.parametrize("threshold", [0.5, -1.0, 0.0, float("inf"), torch.tensor(0.5)])
def test_a_threshold_may_be_a_number(threshold):
    scores = numbers("number", 20, 30)
    for found in identity((scores, threshold), 20, 30):
        assert found.bool().equal(scores.abs() > threshold)


@pytest.mark.parametrize("columns", [1, 7, 8, 31, 32, 64, 100])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "off by a byte"])
def test_bits_of_any_width_and_place(columns, offset):
    kept = numbers(f"bits {columns}", 33, columns) > 0
    packed = pack_mask(kept)
    memory = torch.empty(packed.numel() + offset, dtype=torch.uint8)
    bits = memory[offset:].view(packed.shape).copy_(packed)
    for found in identity(bits, 33, columns):
        assert found.bool().equal(kept)


def test_the_bits_that_fill_up_a_row_are_not_looked_at():
    bits = torch.full((5, 2), 255, dtype=torch.uint8)  # 11 columns
    for found in identity(bits, 5, 11):
        assert found.eq(1).all()
    x, weight = numbers("x", 3, 11), numbers("w", 5, 11)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(masked_linear(x, weight, bits, impl="triton").sum(), x)
    torch.testing.assert_close(grad, weight.sum(0).expand(3, 11))


@pytest.mark.parametrize("kind", ["bits", "scores"])
def test_what_is_pruned_is_not_seen_and_what_is_kept_is_the_weight_itself(kind):
    mask = scored(20, 40, 300)
    kept = reference.kept(mask, 40)
    weight = torch.where(kept, numbers("w", 20, 40), float("nan"))
    given = pack_mask(kept) if kind == "bits" else mask
    found = masked_weight(weight, given, impl="triton")
    assert found.equal(torch.where(kept, weight, 0.0))
    assert not found[~kept].signbit().any()
    x = numbers("x", 6, 40).requires_grad_()
    y = masked_linear(x, weight, given, impl="triton")
    torch.testing.assert_close(y, x @ found.mT)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.isfinite().all()


# ---------------------------------------------------------------- gradients


def test_the_scores_gradient_is_that_of_the_masks():
    scores, threshold = scored(20, 30, 200)
    scores[3, :4] = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    weight, grad = numbers("w", 20, 30), numbers("g", 20, 30)
    leaf = scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(masked_weight(weight, (leaf, threshold), impl="triton"), leaf, grad)
    assert found.equal(score_gradient(grad, weight, scores))
    assert found.equal(triton_masked_weight.score_gradient(grad, weight.mT.contiguous().mT, scores))


def test_pruned_weights_get_score_gradients_too():
    scores, threshold = scored(16, 16, 10)
    leaf, weight = scores.clone().requires_grad_(), torch.ones(16, 16)
    y = masked_linear(torch.eye(16), weight, (leaf, threshold), impl="triton")
    (found,) = torch.autograd.grad(y.sum(), leaf)
    assert found.equal(torch.where(scores < 0, -1.0, 1.0))


@pytest.mark.parametrize(
    ("wanted", "calls"), [("x", ["_product", "_product"]), ("scores", ["_product", "_score_gradient"]),
                          ("bias", ["_product"])]
)  # fmt: skip
def test_gradients_that_nobody_wants_are_not_made(wanted, calls, monkeypatch):
    made = []
    for name in ("_product", "_score_gradient"):
        monkeypatch.setattr(triton_masked_linear, name, noted(getattr(triton_masked_linear, name), name, made))
    scores, threshold = scored(20, 30, 200)
    tensors = {"x": numbers("x", 4, 30), "scores": scores, "bias": numbers("b", 20)}
    tensors[wanted].requires_grad_()
    mask = tensors["scores"], threshold
    y = masked_linear(tensors["x"], numbers("w", 20, 30), mask, bias=tensors["bias"], impl="triton")
    torch.autograd.grad(y.sum(), tensors[wanted])
    assert made == calls


def noted(function, name, made):
    """The function, whose calls are noted down."""

    def call(*args, **kwargs):
        made.append(name)
        return function(*args, **kwargs)

    return call


def test_the_weight_gets_no_gradient():
    weight = numbers("w", 8, 16).requires_grad_()
    bits = pack_mask(torch.ones(8, 16, dtype=torch.bool))
    scores = numbers("s", 8, 16)
    assert not masked_linear(numbers("x", 2, 16), weight, (scores, 0.5), impl="triton").requires_grad
    assert not masked_weight(weight, bits, impl="triton").requires_grad
    assert not masked_linear(numbers("x", 2, 16), weight, bits, impl="triton").requires_grad


# ---------------------------------------------------------------- memory


def everything(tokens=5, inner=300):
    """A product in parts, and one that is not, with all gradients."""
    scores, threshold = scored(20, inner, 2000)
    x, weight, bias = (numbers(name, *shape) for name, shape in
                       (("x", (tokens, inner)), ("w", (20, inner)), ("b", (20,))))  # fmt: skip
    leaves = [t.clone().requires_grad_() for t in (x, scores, bias)]
    y = masked_linear(leaves[0], weight, (leaves[1], threshold), bias=leaves[2], impl="triton")
    masked = masked_weight(weight, (leaves[1], threshold), impl="triton")
    (slope,) = torch.autograd.grad(masked.square().sum(), leaves[1])
    return [y.detach(), masked.detach(), slope, *torch.autograd.grad(y.square().sum(), leaves)]


def test_what_the_memory_held_before_does_not_matter(monkeypatch):
    wanted = everything()
    empty, empty_like = torch.empty, torch.empty_like
    made = []

    def poisoned(function):
        def call(*args, **kwargs):
            made.append(function(*args, **kwargs).fill_(float("nan")))
            return made[-1]

        return call

    monkeypatch.setattr(triton_masked_linear.torch, "empty", poisoned(empty))
    monkeypatch.setattr(triton_masked_linear.torch, "empty_like", poisoned(empty_like))
    found = everything()
    assert len(made) >= 7  # outputs, gradients and parts
    assert all(one.equal(other) for one, other in zip(found, wanted, strict=True))


def test_the_same_every_time():
    assert all(one.equal(other) for one, other in zip(everything(), everything(), strict=True))


def test_a_product_in_parts_is_a_product():
    for tokens, inner in ((1, 300), (3, 129), (64, 257)):
        tile = triton_masked_linear._tile(tokens, 20, 4)
        parts, length = triton_masked_linear._split(tokens, 20, inner, tile)
        assert parts > 1
        assert length % tile.depth == 0
        assert (parts - 1) * length < inner <= parts * length
        found, *_ = everything(tokens, inner)
        scores, threshold = scored(20, inner, 2000)
        wanted = linear_reference.masked_linear(
            numbers("x", tokens, inner).double(), numbers("w", 20, inner).double(), (scores, threshold),
            numbers("b", 20).double(),
        )  # fmt: skip
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


def test_the_result_is_laid_out_like_the_weight():
    weight = numbers("w", 30, 20).mT
    found = masked_weight(weight, pack_mask(weight > 0), impl="triton")
    assert found.stride() == weight.stride()
    assert found.equal(weight.relu())


@pytest.mark.parametrize(
    ("shape", "out"), [((0, 16), 8), ((2, 0, 16), 8), ((3, 16), 0), ((2,), 8), ((16,), 8), ((2, 3, 0), 8)]
)
def test_nothing_and_single_vectors(shape, out):
    x = numbers("x", *shape)
    weight, bias = numbers("w", out, shape[-1]), numbers("b", out)
    bits = torch.full((out, -(-shape[-1] // 8)), 255, dtype=torch.uint8)
    found = masked_linear(x, weight, bits, bias=bias, impl="triton")
    assert found.shape == (*shape[:-1], out)
    torch.testing.assert_close(found, x @ weight.mT + bias)


def test_masks_of_heads():
    kept = numbers("heads", 2, 3, 5, 40) > 0
    weight = numbers("w", 2, 3, 5, 40)
    assert masked_weight(weight, pack_mask(kept), impl="triton").equal(torch.where(kept, weight, 0.0))
    assert unpack_mask(pack_mask(kept), 40).equal(kept)


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (3, 4, 140), (2, 3, 4, 40), (9, 1, 3)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "turned"])
def test_stacks_of_any_shape(shape, layout):
    """As one matrix where memory allows it, else as they are: ties are counted row by row in any case."""
    scores = numbers("stack", *shape).mul(2).round()
    threshold = select_threshold(scores, scores.numel() // 3, impl="reference")
    weight, grad = numbers("w", *shape), numbers("g", *shape)
    out = torch.full_like(weight, 7.0)
    if layout == "turned":
        weight, out = (t.movedim(0, -1).contiguous().movedim(-1, 0) for t in (weight, out))
    wanted = torch.where(reference.kept((scores, threshold), shape[-1]), weight, 0.0)
    assert masked_weight(weight, (scores, threshold), impl="triton").equal(wanted)
    assert masked_weight(weight, (scores, threshold), out=out, impl="triton").equal(wanted)
    assert out.equal(wanted)
    assert triton_masked_weight.score_gradient(grad, weight, scores).equal(
        reference.score_gradient(grad, weight, scores)
    )


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (1, 0, 2, 3)], ids=["one matrix", "a stack"])
def test_large_convolutions_fit_into_the_grid(axes, monkeypatch):
    weight = torch.empty(256, 257, 3, 3, device="meta").permute(*axes)
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: grids.append(grid)

    monkeypatch.setattr(triton_masked_weight, "_slope", Recorder())
    scores = torch.empty(weight.shape, device="meta")
    triton_masked_weight.score_gradient(weight, weight, scores)
    ((programs,),) = grids  # of other axes a grid has 65535 at most
    assert programs == (8 * 19 if axes[0] == 0 else 257 * 256)
    assert programs < 2**31


# ---------------------------------------------------------------- tiles


@one_case
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 65, 1000, 8192])
def test_tiles_fit_their_tokens(size, tokens):
    tile = triton_masked_linear._tile(tokens, 768, size)
    parts, length = triton_masked_linear._split(tokens, 768, 3072, tile)
    assert parts == 1 or tokens <= triton_masked_linear.FEW
    assert parts * length >= 3072
    assert length % tile.depth == 0 or parts == 1
    if tokens <= 16:
        assert tile.columns == 16


def test_the_rows_of_the_table():
    rows = bench.rows(CPU, 1, 0, sizes=((3, 20, 24),))
    assert len(rows) == 12
    assert {row["peer"] for row in rows} == {"dense", "materialised"}
    for row in rows:
        assert list(row)[: len(COLUMNS + SPREAD)] == COLUMNS + SPREAD
        assert row["error_ours"] < 2e-5
        assert row["floor_s"] > 0
