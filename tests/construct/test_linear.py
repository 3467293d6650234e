import numpy as np
import pytest
from helpers import subset_sums
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case

from slth.construct import subset_sum
from slth.construct.factors import SIDES, FactorMasks, better_side, blocks, reach
from slth.construct.factors import solve as linear

each_side = pytest.mark.parametrize("side", SIDES)
few = settings(max_examples=50)
FIELDS = ("mask_first", "mask_second", "unreachable")


def draw(seed, d_in, d_out, hidden, *batch, reach=1.0):
    """A target and two random factors, leading axes first."""
    rng = np.random.default_rng(seed)
    shapes = [(*batch, d_in, d_out), (*batch, d_in, hidden), (*batch, hidden, d_out)]
    target, first, second = (rng.uniform(-1, 1, shape) for shape in shapes)
    return reach * target, first, second


@st.composite
def problems(draw_value):
    """Target, first and second that either side can take."""
    d_in, d_out = draw_value(st.integers(1, 4)), draw_value(st.integers(1, 4))
    hidden = draw_value(st.integers(max(d_in, d_out), 26))
    return draw(draw_value(st.integers(0, 2**32 - 1)), d_in, d_out, hidden, reach=draw_value(st.sampled_from([1, 3])))


def product(ticket, first, second):
    return (first * ticket.mask_first) @ (second * ticket.mask_second)


def assert_same(a: FactorMasks, b: FactorMasks):
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)
    assert (a.side, a.candidates) == (b.side, b.candidates)


def units_of_entries(ticket):
    """For each entry (i, j), the hidden units that its candidates come from, read off the structural mask."""
    structural = ticket.mask_first if ticket.side == "input" else ticket.mask_second.T
    d_in, d_out = ticket.unreachable.shape
    row = (lambda i, j: i) if ticket.side == "input" else (lambda i, j: j)
    return {(i, j): np.flatnonzero(structural[row(i, j)]) for i in range(d_in) for j in range(d_out)}


# ---------------------------------------------------------------- structure


@given(st.integers(1, 200), st.integers(1, 40))
def test_blocks_cover_the_units_and_the_first_ones_are_longer(hidden, parts):
    made = blocks(hidden, parts)
    assert [unit for block in made for unit in range(hidden)[block]] == list(range(hidden))
    sizes = [block.stop - block.start for block in made]
    assert len(sizes) == parts
    assert sorted(sizes, reverse=True) == sizes
    assert sizes[0] - sizes[-1] <= 1


@given(problems(), st.sampled_from(SIDES))
@few
def test_one_mask_is_block_structured(problem, side):
    target, first, second = problem
    ticket = linear(target, first, second, side=side)
    structural = ticket.mask_first if side == "input" else ticket.mask_second.T
    rows, hidden = structural.shape
    expected = np.zeros((rows, hidden), bool)
    for row, units in enumerate(np.array_split(np.arange(hidden), rows)):  # numpy spreads a remainder the same way
        expected[row, units] = True
    assert np.array_equal(structural, expected)
    assert ticket.candidates == hidden // rows
    assert ticket.side == side
    assert (ticket.mask_first.shape, ticket.mask_second.shape) == (first.shape, second.shape)
    assert ticket.unreachable.shape == target.shape
    assert {getattr(ticket, name).dtype for name in FIELDS} == {np.dtype(bool)}


@pytest.mark.parametrize(("d_in", "d_out", "side"), [(2, 1, "output"), (1, 2, "input"), (3, 3, "input")])
def test_better_side_leaves_more_candidates(d_in, d_out, side):
    assert better_side(d_in, d_out) == side
    problem = draw(0, d_in, d_out, 12)
    offered = {s: linear(*problem, side=s).candidates for s in SIDES}
    assert offered[side] == max(offered.values())


# ---------------------------------------------------------------- accuracy


@given(problems(), st.sampled_from(SIDES))
@few
def test_every_entry_is_the_best_its_candidates_allow(problem, side):
    target, first, second = problem
    ticket = linear(target, first, second, side=side)
    achieved = np.abs(product(ticket, first, second) - target)
    for (i, j), units in units_of_entries(ticket).items():
        solved = subset_sum.solve([first[i, units] * second[units, j]], [target[i, j]])
        assert achieved[i, j] == pytest.approx(solved.errors[0], abs=1e-13)
        chosen = ticket.mask_second[units, j] if side == "input" else ticket.mask_first[i, units]
        assert np.array_equal(chosen, solved.masks[0])


@given(problems(), st.sampled_from(SIDES))
@few
def test_unreachable_entries_are_those_outside_all_sums(problem, side):
    target, first, second = problem
    ticket = linear(target, first, second, side=side)
    low, high = reach(first, second, side=side)
    for (i, j), units in units_of_entries(ticket).items():
        if len(units) > 13:
            continue
        sums = subset_sums(first[i, units] * second[units, j])
        assert (low[i, j], high[i, j]) == pytest.approx((sums.min(), sums.max()), abs=1e-13)
        outside = target[i, j] < sums.min() or target[i, j] > sums.max()
        assert ticket.unreachable[i, j] == outside


@each_side
def test_a_planted_ticket_is_found(side):
    _, first, second = draw(0, 3, 3, 25)
    planted = linear(*draw(1, 3, 3, 25), side=side)
    target = product(planted, first, second)
    ticket = linear(target, first, second, side=side)
    assert np.abs(product(ticket, first, second) - target).max() < 1e-15


@each_side
def test_error_falls_by_half_with_each_candidate(side):
    """Median error over 256 entries in reach: about 2^-n for n candidates, theory.md's own check."""

    def median(candidates):
        target, first, second = draw(0, 16, 16, 16 * candidates, reach=0.5)
        ticket = linear(target, first, second, side=side)
        return np.median(np.abs(product(ticket, first, second) - target))

    bits = np.log2(median(6) / median(14))
    assert 6 < bits < 11


@each_side
def test_one_candidate_an_entry_is_enough_to_run(side):
    target, first, second = draw(0, 3, 3, 3)
    ticket = linear(target, first, second, side=side)
    only = first[:, :, None] * second
    single = np.array([[only[i, i if side == "input" else j, j] for j in range(3)] for i in range(3)])
    expected = np.where(np.abs(single - target) < np.abs(target), single, 0)
    assert np.array_equal(product(ticket, first, second), expected)


# ---------------------------------------------------------------- symmetries


@given(problems())
@few
def test_output_side_is_the_input_side_transposed(problem):
    target, first, second = problem
    there = linear(target, first, second, side="output")
    here = linear(target.T, second.T, first.T, side="input")
    assert np.array_equal(there.mask_first, here.mask_second.T)
    assert np.array_equal(there.mask_second, here.mask_first.T)
    assert np.array_equal(there.unreachable, here.unreachable.T)
    assert there.candidates == here.candidates


@each_side
@pytest.mark.parametrize("hidden", [3, 11, 12])
def test_leading_axes_are_problems_of_their_own(side, hidden):
    problem = draw(0, 3, 2, hidden, 2, 4)
    together = linear(*problem, side=side)
    for index in np.ndindex(2, 4):
        alone = linear(*(array[index] for array in problem), side=side)
        assert_same(alone, FactorMasks(*(getattr(together, name)[index] for name in FIELDS), side, alone.candidates))
    assert together.candidates == alone.candidates


@each_side
def test_threads_and_layout_change_nothing(side):
    problem = draw(0, 4, 3, 26)
    ticket = linear(*problem, side=side, threads=1)
    assert_same(ticket, linear(*problem, side=side, threads=2))
    assert_same(ticket, linear(*(np.asfortranarray(array) for array in problem), side=side))


@each_side
def test_inputs_are_left_alone(side):
    problem = draw(0, 3, 2, 9)
    before = [array.copy() for array in problem]
    linear(*problem, side=side)
    assert all(np.array_equal(a, b) for a, b in zip(problem, before, strict=True))


# ---------------------------------------------------------------- errors, before any work


@pytest.fixture
def no_work(monkeypatch):
    def solve(*args, **options):
        pytest.fail("a subset sum was solved")

    monkeypatch.setattr(subset_sum, "solve", solve)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("side", "hidden", "needed"), [("input", 3, 4), ("output", 1, 2), ("input", 0, 4)])
def test_hidden_too_small_says_what_is_needed(side, hidden, needed):
    with pytest.raises(ValueError, match=f"hidden={hidden}: must be >= .*{needed}"):
        linear(*draw(0, 4, 2, hidden), side=side)


@pytest.mark.usefixtures("no_work")
def test_other_side():
    with pytest.raises(ValueError, match="side='left': must be one of input, output"):
        linear(*draw(0, 2, 2, 4), side="left")


@one_case
@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("target", "first", "second"),
    [
        ((2, 3), (2, 8), (7, 3)),
        ((2, 3), (3, 8), (8, 3)),
        ((2, 3), (2, 8), (8, 2)),
        ((5, 2, 3), (2, 8), (8, 3)),
        ((2, 3), (5, 2, 8), (5, 8, 3)),
    ],
)
def test_shapes_that_do_not_fit(target, first, second):
    with pytest.raises(ValueError, match=r"must be \(..., d_in, hidden\) and \(..., hidden, d_out\)"):
        linear(np.ones(target), np.ones(first), np.ones(second))


@one_case
@pytest.mark.usefixtures("no_work")
@each_side
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_target_that_is_not_finite(side, bad):
    target, first, second = draw(0, 2, 2, 8)
    target[1, 0] = bad
    with pytest.raises(ValueError, match="target holds NaN or infinite values: all must be finite"):
        linear(target, first, second, side=side)


@each_side
def test_factors_that_are_not_finite(side):
    for which in (1, 2):
        problem = draw(0, 2, 2, 8)
        problem[which][0, 0] = np.nan
        with pytest.raises(ValueError, match="NaN or infinite values: all must be finite"):
            linear(*problem, side=side)
