"""Operations on all masked weights of a model at once: what they give is what one weight after the other gives."""

import copy
import pickle
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posing import posing

from slth.kernels import Cut, Cuts, Segment, Selector, Table, pruned_weight, score_gradient, use
from slth.kernels.cases import normal
from slth.kernels.grouped import bench, cutting, tables
from slth.kernels.grouped import triton as on_gpu
from slth.kernels.timing import COLUMNS, SPREAD

pytest.importorskip("triton")

IMPLS = ["reference", "triton"]
CPU = torch.device("cpu")
LEVELS = {
    "plain": lambda s: s,
    "ties": lambda s: s.mul(2).round(),
    "equal": torch.ones_like,
    "zeros of both signs": lambda s: torch.where(s < 0, -0.0, 0.0),
    "infinite": lambda s: torch.where(s.abs() > 1, torch.inf * s, s),
}


def parts_of(tensor, count, dim):
    """Equal parts along an axis, views."""
    return tensor.chunk(count, dim)


@st.composite
def models(draw):
    """Segments of some weights, in parts that are rows or columns, of groups with one part or several; and kept."""
    groups = draw(st.integers(1, 4))
    pruned_dtype = draw(st.sampled_from([torch.float32, torch.float16]))
    segments = []
    for i in range(draw(st.integers(groups, 5))):
        count, dim = draw(st.sampled_from([(1, 0), (3, 0), (3, 1)]))
        shape = [draw(st.integers(1, 9)), draw(st.integers(1, 20))]
        shape[dim] *= count
        weight = normal(f"weight {i}", *shape, device=CPU)
        scores = LEVELS[draw(st.sampled_from([*LEVELS]))](normal(f"scores {i}", *shape, device=CPU))
        free = weight > -1 if draw(st.booleans()) else None
        pruned = torch.full_like(weight, torch.nan, dtype=pruned_dtype)
        for part in range(count):
            each = [parts_of(t, count, dim)[part] for t in (weight, scores, pruned)]
            group = i if i < groups else draw(st.integers(0, groups - 1))
            segments.append(Segment(*each, group, free if free is None else parts_of(free, count, dim)[part]))
    sizes = [sum(s.scores.numel() for s in segments if s.group == g) for g in range(groups)]
    kept = [draw(st.integers(1, size)) for size in sizes]
    return segments, torch.tensor(kept)


def cuts_one_by_one(segments, kept):
    """Of each segment, the cut of its group as it is counted from the segment on."""
    found = [None] * len(segments)
    for group, k in enumerate(kept.tolist()):
        members = [i for i, s in enumerate(segments) if s.group == group]
        cut, offset = Selector().cut([segments[i].scores for i in members], k, impl="reference"), 0
        for i in members:
            found[i], offset = cut.after(offset), offset + segments[i].scores.numel()
    return found


def assert_same_bits(one, other):
    assert one.dtype == other.dtype
    bits = {4: torch.int32, 2: torch.int16}[one.element_size()]
    assert torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))


def assert_one_by_one(model, impl, growth):
    """Cuts and masked weights of two steps, between which scores have grown; and score gradients."""
    segments, kept = model
    table = Table(segments, len(kept))
    for _ in range(2):
        cuts = table.cut(kept, impl=impl)
        table.write(cuts, impl=impl)
        assert cuts.nan == 0
        for segment, cut in zip(segments, cuts_one_by_one(segments, kept), strict=True):
            wanted = pruned_weight(segment.weight, (segment.scores, cut)).to(segment.pruned.dtype)
            assert_same_bits(segment.pruned, wanted)
        for segment in segments:
            segment.scores.mul_(growth)
    grads = [s.pruned.add(1) for s in segments]
    out = [torch.full_like(s.scores, torch.nan) for s in segments]
    squares = table.slope(grads, out, impl=impl)
    for segment, grad, found in zip(segments, grads, out, strict=True):
        wanted = score_gradient(grad, segment.weight, segment.scores, impl="reference")
        assert_same_bits(found, wanted if segment.free is None else torch.where(segment.free, wanted, 0.0))
    assert squares.dtype == torch.float32
    torch.testing.assert_close(squares, sum(slope.square().sum() for slope in out), rtol=1e-5, atol=0)


@given(models())
@settings(max_examples=25)
def test_all_at_once_is_one_by_one(model):
    assert_one_by_one(model, "reference", 1.01)


# ---------------------------------------------------------------- on a GPU


@pytest.fixture
def small_pieces(monkeypatch):
    """Blocks, stretches and pieces as short as can be, so that few scores make many."""
    for module, names in ((cutting, ("BLOCK", "FIND_BLOCK")), (on_gpu, ("BLOCK",))):
        for name in names:
            monkeypatch.setattr(module, name, 32)
    monkeypatch.setattr(cutting, "STRETCHES", 4)
    monkeypatch.setattr(on_gpu, "PIECE", 64)


@pytest.mark.usefixtures("small_pieces")
@given(models(), st.sampled_from([1.0, 1.001, 3.0]), st.sampled_from([1, 1 << 30]), st.sampled_from([1, 32]))
@settings(max_examples=4)
def test_programs_find_what_one_by_one_is_found(model, growth, narrow, room):
    """Wherever the search starts, in 64 bits and in 32, and where the bracket holds more than there is room for."""
    with patch.object(tables, "NARROW", narrow), patch.object(cutting, "ROOM", room):
        assert_one_by_one(model, "triton", growth)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("growth", "digits"), [(1.0, 2), (1.001, 2), (2.0, 4)])
def test_scores_are_read_again_where_the_cut_has_left_the_bracket(growth, digits):
    segments = [one_segment((10, 40), group) for group in range(2)]
    table, kept = Table(segments, 2), torch.tensor([200, 7])
    for segment in segments:
        segment.scores.copy_(normal("digits", 10, 40, device=CPU))
    table.cut(kept, impl="triton")
    segments[1].scores.mul_(growth)
    table.cut(kept, impl="triton")
    (operations,) = (form for form in table._forms.values() if isinstance(form, on_gpu.Operations))
    counted = operations._cutting._state.view(2, -1)[:, 16:].reshape(2, 4, 256).sum(2) > 0
    assert counted.sum(1).tolist() == [2, digits]


@pytest.mark.usefixtures("small_pieces")
def test_a_crowded_bracket_is_left(monkeypatch):
    """More scores lie in it than a stretch has room for: all are equal."""
    segment = one_segment((10, 40), scores=torch.ones(10, 40))
    table, kept = Table([segment], 1), torch.tensor([123])
    for room in (1, 32):
        monkeypatch.setattr(cutting, "ROOM", room)
        for _ in range(2):
            value, last_tie, _ = table.cut(kept, impl="triton")
            assert (value.item(), last_tie.item()) == (1.0, 122)


def test_launches_do_not_grow_with_the_weights(monkeypatch):
    launched = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **options: launched.append(self.name)

    for module, names in ((cutting, ("_pick_out", "_count_digit", "_find")), (on_gpu, ("_write", "_slope"))):
        for name in names:
            monkeypatch.setattr(module, name, Recorder(name))
    segments = [one_segment(group=i % 7) for i in range(30)]
    with use("triton"):
        table = Table(segments, 7)  # makes what no later call has to make
    grads, out = [s.pruned for s in segments], [s.scores.clone() for s in segments]
    kept = torch.full((7,), 5)
    for name in ("item", "tolist", "cpu", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, None)  # nothing travels to the host
    table.write(table.cut(kept, impl="triton"), impl="triton")
    table.slope(grads, out, impl="triton")
    assert launched == ["_pick_out", *["_count_digit"] * 4, "_find", "_write", "_slope"]


def test_gradients_are_found_wherever_they_lie():
    segment = one_segment()
    table = Table([segment], 1)
    for turn in range(3 * on_gpu.KNOWN):
        grad, out = torch.full((4, 6), float(turn)), torch.empty(4, 6)
        table.slope([grad], [out], impl="triton")
        assert torch.equal(out, score_gradient(grad, segment.weight, segment.scores, impl="reference"))


def test_a_captured_graph_is_told_where_its_gradients_lie(monkeypatch):
    """Nothing is copied to the device while a graph is captured, and no other call may take the graph's table."""
    segment = one_segment()
    table = Table([segment], 1)
    grad, other, out = torch.ones(4, 6), torch.ones(4, 6), torch.empty(4, 6)
    with posing():
        table.slope([grad], [out], impl="triton")
        (operations,) = (form for form in table._forms.values() if isinstance(form, on_gpu.Operations))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        operations._gradients([grad], [out])
        assert not operations._owed  # the table that the call above has filled
        empty = operations._gradients([other], [out]).table
        assert len(operations._owed) == len(operations._known) == 1
        operations.point()
        assert not operations._owed
        assert int(empty[0, 0]) == other.data_ptr()


# ---------------------------------------------------------------- what all forms do


def one_segment(shape=(4, 6), group=0, **tensors):
    names = ("weight", "scores", "pruned")
    return Segment(*(tensors.get(name, normal(name, *shape, device=CPU)) for name in names), group)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_is_flagged(impl):
    segments = [one_segment(), one_segment(group=1)]
    table, kept = Table(segments, 2), torch.tensor([5, 24])
    assert table.cut(kept, impl=impl).nan == 0
    segments[1].scores[3, 5] = torch.nan
    assert table.cut(kept, impl=impl).nan != 0
    segments[1].scores[3, 5] = -torch.inf
    assert table.cut(kept, impl=impl).nan == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_a_gradient_that_is_not_finite_shows_in_the_sum(impl):
    segment = one_segment()
    for bad in (torch.nan, torch.inf):
        grad = torch.ones(4, 6)
        grad[2, 3] = bad
        assert not Table([segment], 1).slope([grad], [torch.empty(4, 6)], impl=impl).isfinite()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_leaf_is_written_to_and_autograd_knows(impl):
    leaf = torch.zeros(4, 6, requires_grad=True)
    segment = one_segment(pruned=leaf.detach())
    square = leaf.square().sum()
    table = Table([segment], 1)
    table.write(table.cut(torch.tensor([24]), impl=impl), impl=impl)
    assert torch.equal(leaf, segment.weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


@pytest.mark.parametrize("impl", IMPLS)
def test_weights_of_any_number_of_axes(impl):
    for shape in [(), (7,), (2, 3, 2, 2), (4, 0)]:
        segments = [one_segment(), one_segment(shape)]
        table = Table(segments, 1)
        table.write(Cuts(torch.zeros(1), torch.tensor([-1]), torch.tensor(0)), impl=impl)
        assert torch.equal(segments[1].pruned, segments[1].weight)
        grads = [s.pruned for s in segments]
        table.slope(grads, [s.scores for s in segments], impl=impl)


# ---------------------------------------------------------------- the table


def test_a_table_tells_whether_its_tensors_lie_where_they_did():
    segment = one_segment()
    table = Table([segment], 1)
    same = segment._replace(weight=segment.weight.view(4, 6), scores=segment.scores.detach())
    assert table.holds([same])
    for other in (
        segment._replace(scores=segment.scores.clone()),
        segment._replace(group=1),
        segment._replace(free=torch.ones(4, 6, dtype=torch.bool)),
        segment._replace(weight=segment.weight.view(6, 4).mT),
    ):
        assert not table.holds([other])
    assert not table.holds([segment, segment])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_a_copy_writes_to_copies(copied):
    whole = torch.zeros(4, 12)
    segments = [one_segment(pruned=part) for part in whole.chunk(2, 1)]
    table = copied(Table(segments, 1))
    table.write(Cuts(torch.zeros(1), torch.tensor([-1]), torch.tensor(0)))
    assert not whole.any()
    assert not table.holds(segments)
    twins = table._segments
    assert torch.equal(twins[1].pruned, segments[1].weight)


@pytest.mark.parametrize(
    ("segments", "groups", "message"),
    [
        (lambda: [one_segment()], 0, "groups=0: must be at least 1"),
        (list, 1, "group 0 has no scores: must have some"),
        (lambda: [one_segment(), one_segment((0, 3), 1)], 2, "group 1 has no scores"),
        (lambda: [one_segment(group=2)], 2, "segment 0: group=2, must be from 0 to 1"),
        (lambda: [one_segment(scores=torch.ones(4, 6).half())], 1, "segment 0: scores and free of torch.float16"),
        (lambda: [one_segment()._replace(free=torch.ones(4, 6))], 1, "of torch.float32, torch.float32, must be"),
        (lambda: [one_segment(weight=torch.ones(4, 6).int())], 1, "segment 0 of dtype torch.int32"),
        (lambda: [one_segment(pruned=torch.ones(4, 5))], 1, r"shapes \(4, 6\), \(4, 6\), \(4, 5\), must be of one"),
        (lambda: [one_segment(pruned=torch.ones(6, 4).mT)], 1, r"segment 0: \(4, 6\) with strides .* contiguous rows"),
        (lambda: [one_segment(), one_segment(weight=torch.ones(4, 6, device="meta"))], 1, "segment 1: on meta, cpu"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments, groups, message):
    with pytest.raises(ValueError, match=message):
        Table(segments(), groups)


@pytest.mark.parametrize("kept", [torch.ones(2).long(), torch.ones(1), torch.ones((), dtype=torch.int64)])
def test_other_counts_are_refused(kept):
    with pytest.raises(ValueError, match=r"kept: .* must be torch.int64 \(1,\)"):
        Table([one_segment()], 1).cut(kept)


@pytest.mark.parametrize(
    ("grads", "out", "message"),
    [
        ([], [torch.ones(4, 6)], "grads: there are 0, must be 1"),
        ([torch.ones(4, 6)], [], "out: there are 0, must be 1"),
        ([torch.ones(4, 6).half()], [torch.ones(4, 6)], r"grads\[0\]: torch.float16 \(4, 6\) on cpu, must be torch.fl"),
        ([torch.ones(4, 6)], [torch.ones(6, 4)], r"out\[0\]: torch.float32 \(6, 4\) on cpu"),
        ([torch.ones(6, 4).mT], [torch.ones(4, 6)], r"grads\[0\]: strides \(1, 4\), must have contiguous rows of 24"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(grads, out, message):
    with pytest.raises(ValueError, match=message):
        Table([one_segment()], 1).slope(grads, out)


def test_gradients_are_looked_at_wherever_they_lie_anew():
    table = Table([one_segment()], 1)
    grad, out = torch.ones(4, 6), torch.ones(4, 6)
    for _ in range(2):
        table.slope([grad], [out])
    with pytest.raises(ValueError, match="must have contiguous rows of 24"):
        table.slope([grad.view(6, 4).mT], [out])


def test_weights_in_float64_are_for_the_reference():
    weight = normal("double", 4, 6, device=CPU).double()
    segment = one_segment(weight=weight, pruned=weight.clone())
    table = Table([segment], 1)
    with pytest.raises(ValueError, match=r'grouped with impl="triton": weights of dtype torch.float64'):
        table.cut(torch.tensor([3]), impl="triton")
    table.write(table.cut(torch.tensor([3])))
    assert int(segment.pruned.count_nonzero()) == 3


def test_a_threshold_alone_keeps_no_ties():
    segment = one_segment(
        scores=torch.tensor([[1.0, -2.0, 2.0], [3.0, 2.0, 0.0]]), weight=torch.ones(2, 3), pruned=torch.ones(2, 3)
    )
    table = Table([segment], 1)
    value, last_tie, _ = table.cut(torch.tensor([2]))
    assert (value.item(), last_tie.item()) == (2.0, 1)
    assert Cut(value[0], last_tie[0]).mask(segment.scores).tolist() == [[False, True, False], [True, False, False]]


def test_the_rows_of_the_table(monkeypatch):
    monkeypatch.setattr(bench, "interleave", partial(bench.interleave, warmups=0))
    rows = bench.rows(CPU, 1, 0, sizes={"a tiny block": (1, 4, 0)})
    assert [row["size"].split(": ")[1] for row in rows[::2]] == [
        f"{what}, {how}"
        for what in ("cut", "cut from afar", "masked weights", "gradients")
        for how in ("launched", "captured")
    ]
    assert {row["peer"] for row in rows} == {"each", "torch"}
    for row in rows:
        assert list(row)[: len(COLUMNS + SPREAD)] == COLUMNS + SPREAD
        assert row["error_ours"] == row["error_peer"] == 0.0
    entries = 12 * 4 * 4
    assert rows[0]["floor_s"] == pytest.approx(entries * 4 / 3.0e12)
    assert rows[-1]["floor_s"] == pytest.approx(entries * 14 / 3.0e12)
