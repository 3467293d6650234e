"""Scores become masks: exact counts against a stable sort, whatever the values and however they lie in memory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import one_case

from slth.kernels import Cut, Selector, masked_weight, pruned_weight, rows, score_gradient
from slth.kernels.select import cpu
from slth.masking.masks import count_kept


def oracle(tensors, kept):
    """Masks of the `kept` largest magnitudes of all tensors together, the lower index first among equals."""
    flat = np.concatenate([np.abs(t.detach().numpy()).reshape(-1) for t in tensors])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:kept]] = True
    parts = np.split(mask, np.cumsum([t.numel() for t in tensors])[:-1])
    return [torch.from_numpy(part).reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]


def check(tensors, keep, selector=None):
    """The cut keeps what a stable sort keeps, however it is applied; torch's operations alone find the same cut."""
    kept = count_kept(sum(t.numel() for t in tensors), keep)
    cut = (selector or Selector()).cut(tensors, kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_hold", cpu._DeviceScores)
        assert Selector().cut(tensors, kept) == cut
    sorted_out, offset = Selector().cut(tensors, kept, impl="reference"), 0
    for tensor, wanted in zip(tensors, oracle(tensors, kept), strict=True):
        assert cut.mask(tensor, offset).equal(wanted)
        assert sorted_out.mask(tensor, offset).equal(wanted)
        ones = torch.ones_like(tensor)
        assert masked(ones, tensor, cut, offset).equal(wanted.float())
        assert pruned_weight(ones, (tensor, as_tensors(cut).after(offset))).equal(wanted.float())
        offset += tensor.numel()
    return cut


def found(tensors, keep, selector=None):
    """The cut that keeps a share of all tensors together."""
    return (selector or Selector()).cut(tensors, count_kept(sum(t.numel() for t in tensors), keep))


def masked(weight, scores, cut, offset=0):
    out = torch.full_like(weight, math.nan)
    return pruned_weight(weight, (scores, cut.after(offset)), out=out)


def as_tensors(cut):
    return Cut(*cut.tensors(torch.device("cpu")))


@pytest.fixture
def three_threads(monkeypatch):
    """Three threads share the work on however few scores."""
    monkeypatch.setattr(rows, "ALONE", 1)
    monkeypatch.setattr(rows, "PART", 5)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


# ---------------------------------------------------------------- which

FLOATS = st.floats(width=32, allow_nan=False)  # with infinities, denormals and both zeros
FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, 1.1754942e-38, math.inf, -math.inf])
KEEPS = st.integers(1, 100).map(lambda k: k / 100)


@given(st.lists(st.lists(FLOATS | FEW, min_size=1, max_size=40), min_size=1, max_size=4), KEEPS)
def test_any_values_in_any_groups(groups, keep):
    check([torch.tensor(group, dtype=torch.float32) for group in groups], keep)


@given(st.lists(st.tuples(st.lists(FEW, min_size=12, max_size=12), KEEPS), min_size=2, max_size=6))
def test_a_selector_that_saw_other_scores_is_as_exact(steps):
    selector = Selector()
    for values, keep in steps:
        check([torch.tensor(values).reshape(3, 4)], keep, selector)


@one_case
@pytest.mark.parametrize("keep", [1e-6, 0.01, 0.3, 0.5, 0.9, 0.99999, 1.0])
@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 300_001])
def test_sizes_and_keeps(n, keep):
    check([random(n)], keep)


@one_case
@pytest.mark.parametrize("keep", [0.001, 0.5, 0.999, 1.0])
def test_many_ties(keep):
    check([torch.full((40, 250), -0.25)], keep)  # constant
    check([torch.zeros(10_000)], keep)
    check([(random(10_000) * 2).round()], keep)  # few values
    check([torch.cat((torch.zeros(9000), random(1000)))], keep)
    check([torch.full((700,), 1e-45), torch.full((700,), -1e-45)], keep)  # the smallest there is
    check([random(5000) * 1e-42], keep)
    check([torch.full((600_000,), 3.0), torch.full((5,), -3.0)], keep)  # too many for a bracket


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.97])
def test_infinite_and_very_large_scores(keep):
    scores = random(2000)
    scores[::3] = math.inf
    scores[1::6] = -math.inf
    selector = Selector()
    for _ in range(3):
        check([scores], keep, selector)
    for _ in range(3):
        check([torch.linspace(0.9, 1.0, 2000) * 3.4e38], keep, selector)
    check([random(2000)], keep, selector)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_slices_and_groups(keep):
    wide = random(60, 4, 50)
    views = [
        wide[:, 0, 10:30],  # columns of a wider tensor
        wide[:, 1, 7:8],  # a single column
        wide[5, 2],
        wide[:, :, 40:],  # of three axes
        wide[:, 3].t(),
        wide[::2, 0, 30:40:3],
        torch.tensor(0.3),
        random(3, 1, 1),
    ]
    selector = Selector()
    check(views, keep, selector)
    check(views, keep, selector)
    for view in views:
        check([view], keep)
    tall = random(200_000, 3)  # many short rows, more than a thread takes at a time
    check([tall[:, 1:], tall[:7, :1]], keep)
    check([random(3, 300_000)[:, :290_000]], keep)


def test_an_empty_tensor_in_a_group_takes_nothing():
    check([random(9), torch.empty(0), torch.empty(3, 0), random(2, 2)], 0.5)


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9])
def test_a_warm_selector_follows_scores_that_move_or_jump(keep):
    scores, selector = random(4000), Selector()
    for step in range(8):
        check([scores], keep, selector)
        scores = scores + 1e-3 * random(4000, seed=step + 1)
    for factor in (1.0, 1e-30, 0.0, 1e30, 1.0, -1.0):
        check([scores * factor], keep, selector)


def test_the_cut_of_a_warm_selector_is_that_of_a_cold_one():
    warm = Selector()
    for seed in range(5):
        scores = [random(500, seed=seed), random(30, 20, seed=seed + 100)]
        assert found(scores, 0.3, warm) == found(scores, 0.3)


@one_case
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("many", [1, 30, 1000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_refused_cold_and_warm(keep, many, sign):
    scores, selector = random(1000), Selector()
    found([scores], keep, selector)
    bad = scores.clone()
    bad[-many:] = math.copysign(math.nan, sign)
    for each in (Selector(), selector):
        with pytest.raises(ValueError, match="scores hold NaN: all must be numbers"):
            found([scores, bad], keep, each)
    check([scores], keep, selector)  # and nothing of it is remembered


@one_case
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "there are none; at least one"),
        ([torch.empty(0)], "there are none; at least one"),
        ([torch.zeros(1).expand(2**32), torch.zeros(1)], r"there are 4294967297; .* at most 2\^32"),
        ([torch.ones(2), torch.ones(2, dtype=torch.float64)], "dtype torch.float64: must be torch.float32"),
        ([torch.ones(2, dtype=torch.int32)], "dtype torch.int32: must be torch.float32"),
        ([torch.ones(2, dtype=torch.bfloat16)], "dtype torch.bfloat16: must be torch.float32"),
    ],
)
def test_scores_that_cannot_be_cut(scores, message):
    with pytest.raises(ValueError, match=message):
        Selector().cut(scores, 1)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k={k}: must be from 1 to the number of scores, 3"):
            Selector().cut([torch.ones(3)], k)


@pytest.fixture(params=["_HostScores", "_DeviceScores"])
def passes(request, monkeypatch):
    """How many scores each pass over a group has picked out."""
    picked, real = [], cpu._hold
    hold = getattr(cpu, request.param)

    def spied(tensors):
        held = hold(tensors) if hold is cpu._DeviceScores else real(tensors)
        census = held.census

        def spy(low, high):
            above, keys = census(low, high)
            picked.append(keys.size)
            return above, keys

        held.census = spy
        return held

    monkeypatch.setattr(cpu, "_hold", spied)
    return picked


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_a_warm_cut_takes_one_pass_and_few_scores_twice(passes, keep):
    scores, selector = random(1_000_000), Selector()
    for _ in range(12):
        found([scores[:300_000], scores[300_000:]], keep, selector)
        scores *= 1.0 - 1e-3
    assert len(passes) == 12
    assert max(passes[8:]) < 2500


def test_a_cold_cut_takes_one_pass_whatever_the_order(passes):
    scores = random(1 << 20)
    columns = scores.reshape(-1, 16) * torch.arange(16)  # a sample at every 16th place would see one of them alone
    for each in (scores, scores.abs().sort().values, columns, columns.t().contiguous()):
        found([each], 0.5)
    assert len(passes) == 4
    assert max(passes) < 60_000


@pytest.mark.usefixtures("three_threads")
@given(st.lists(st.lists(FEW, min_size=1, max_size=30), min_size=1, max_size=5), KEEPS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_threads_share_groups_of_small_pieces(groups, keep):
    check([torch.tensor(group, dtype=torch.float32) for group in groups], keep)


def test_a_cut_names_an_index_only_for_equals_that_part():
    scores = torch.tensor([1.0, 2.0, -2.0, 2.0, 0.0, -0.0, 3.0, -1.0])
    below = float(np.nextafter(np.float32(2.0), np.float32(0.0)))
    assert check([scores], 0.5) == Cut(below, -1)
    assert check([scores], 0.375) == Cut(2.0, 2)
    assert check([scores], 0.875) == Cut(0.0, 4)
    assert check([scores], 1.0) == Cut(-1.0, -1)
    assert check([torch.full((5,), 1e-45)], 0.4) == Cut(1.401298464324817e-45, 1)


# ---------------------------------------------------------------- masked weights


def views(seed):
    """Tensors (8, 6) float32 of the same values: contiguous, transposed and sliced."""
    plain = random(8, 6, seed=seed)
    wide = torch.full((8, 20), 77.0)
    wide[:, 3:9] = plain
    return plain, plain.t().contiguous().t(), wide[:, 3:9]


def test_kept_weights_keep_their_bits_and_pruned_ones_are_plus_zero():
    for weight in views(1):
        weight[0, 0], weight[1, 1], weight[2, 2], weight[3, 3] = 1e-45, -0.0, math.inf, math.nan
        for scores in views(2):
            cut = found([scores], 0.4)
            out, mask = masked(weight, scores, cut), cut.mask(scores)
            bits, wanted = out.contiguous().view(torch.int32), weight.contiguous().view(torch.int32)
            assert int(mask.sum()) == count_kept(48, 0.4)
            assert bits[mask].equal(wanted[mask])
            assert (bits[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_types(dtype):
    weight, scores = random(8, 6).to(dtype), random(8, 6, seed=1)
    cut = found([scores], 0.5)
    out = masked(weight, scores, cut)
    assert out.dtype == dtype
    assert out.equal(torch.where(cut.mask(scores), weight, torch.zeros((), dtype=dtype)))


def test_ties_are_cut_by_the_index_in_the_group():
    cut = Cut(1.0, 5)
    scores = torch.tensor([[1.0, -1.0, 0.5], [2.0, 1.0, 1.0]])
    assert cut.mask(scores).tolist() == [[True, True, False], [True, True, True]]
    assert cut.mask(scores, 4).tolist() == [[True, True, False], [True, False, False]]
    assert cut.mask(scores, 6).tolist() == [[False, False, False], [True, False, False]]
    for offset in (0, 4, 6):
        assert masked(torch.ones(2, 3), scores, cut, offset).equal(cut.mask(scores, offset).float())


def test_blocks_are_written_where_they_belong_and_nothing_else_is():
    weight, scores = random(6, 4, 10), random(6, 4, 10, seed=1)
    cut = found([scores], 0.4)
    places = [
        (slice(None), slice(None), slice(3, 7)),
        (slice(2, 5),),
        (slice(None), 1),
        (slice(None), slice(None), 4),
        (slice(None, None, 2), slice(1, 3), slice(2, 9)),
        (0, 0, 0),
    ]
    for place in places:
        out = torch.full_like(weight, 7.0)
        pruned_weight(weight[place], (scores[place], cut), out=out[place])
        wanted = torch.full_like(weight, 7.0)
        wanted[place] = weight[place] * cut.mask(scores)[place]
        assert out.equal(wanted)
    pruned_weight(weight[:0], (scores[:0], cut), out=weight[:0])


def test_autograd_sees_that_out_is_written_to():
    weight, scores, out = random(8, 6), random(8, 6, seed=1), torch.ones(8, 6)
    learned = torch.ones(8, 6, requires_grad=True)
    product = (learned * out).sum()  # out is saved for the backward pass
    pruned_weight(weight, (scores, Cut(0.5, -1)), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        out = torch.empty(8, 6)
        pruned_weight(weight, (scores, Cut(0.5, -1)), out=out)
    assert out.equal(weight * (scores.abs() > 0.5))


def test_shapes_that_differ_are_refused():
    a, b = torch.ones(2, 3), torch.ones(3, 2)
    for call in (
        lambda: pruned_weight(a, (b, Cut(0.5, -1)), out=a),
        lambda: pruned_weight(a, (a, Cut(0.5, -1)), out=b),
        lambda: pruned_weight(a.double(), (a, Cut(0.5, -1)), out=b.double()),
        lambda: score_gradient(b, a, a),
    ):
        with pytest.raises(ValueError, match=r"\(\d, \d\).*must be .*\(\d, \d\)"):
            call()


def test_parameters_that_learn_are_read_as_they_are():
    weight, scores = (torch.nn.Parameter(random(8, 6, seed=seed)) for seed in (1, 2))
    cut = found([scores], 0.5)
    for w, s in ((weight, scores), (weight.double(), scores)):
        out = torch.empty_like(w.detach())
        pruned_weight(w, (s, cut), out=out)
        assert out.equal(w.detach() * cut.mask(scores))


def test_gradients_carry_the_sign_of_the_score():
    for scores in views(2):
        scores[0, 0], scores[0, 1] = 0.0, -0.0
        for weight in views(1):
            for grad in views(3):
                wanted = grad * weight * torch.where(scores < 0, -1.0, 1.0)
                assert score_gradient(grad, weight, scores).equal(wanted)
            slope = score_gradient(random(8, 6).bfloat16(), weight, scores)
            assert slope.dtype == torch.float32


@pytest.mark.usefixtures("three_threads")
def test_tensors_are_worked_on_in_parts():
    weight, scores = random(30, 201), random(30, 201, seed=1)
    for values in (scores, (scores * 2).round()):
        cut = found([values], 0.25)
        mask = oracle([values], count_kept(values.numel(), 0.25))[0]
        assert masked(weight, values, cut).equal(weight * mask)
        assert masked(weight[:, 5:90], values[:, 5:90], Cut(cut.value, -1)).equal(
            weight[:, 5:90] * (values[:, 5:90].abs() > cut.value)
        )
        assert score_gradient(weight, weight, values).equal(weight * weight * torch.where(values < 0, -1.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_traced_graph_outlives_its_cut(dtype):
    compiled = torch.compile(masked_weight, backend="eager", fullgraph=True)
    weight, scores = random(8, 6).to(dtype), (random(8, 6, seed=1) * 2).round()
    with torch.compiler.set_stance("default"):
        for keep in (0.2, 0.5, 0.9, 1.0):
            cut = found([scores], keep)
            with torch._dynamo.config.patch(error_on_recompile=keep > 0.2):
                out = compiled(weight, (scores, as_tensors(cut)))
            assert out.dtype == dtype
            assert out.equal(masked(weight, scores, cut))
