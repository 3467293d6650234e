import subprocess
import sys

import numpy as np
import pytest
from helpers import brute_force
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from tables import one_case

from slth.construct.subset_sum import MAX_EXACT, solve


def assert_exact(candidates, targets, **options):
    """The answer is that of brute force: same masks, same sums, same errors, to the last bit."""
    solved = solve(candidates, targets, **options)
    masks, sums, errors = brute_force(np.asarray(candidates, float), np.asarray(targets, float))
    assert np.array_equal(solved.masks, masks)
    assert np.array_equal(solved.sums, sums)
    assert np.array_equal(solved.errors, errors)


def index_order_sums(candidates, masks):
    """Sums of the masked candidates (P, n), each added in index order."""
    sums = np.zeros(len(candidates))
    for i in range(candidates.shape[1]):
        sums = np.where(masks[:, i], sums + candidates[:, i], sums)
    return sums


# ---------------------------------------------------------------- up to 16: brute force


def uniform(rng, shape):
    return rng.uniform(-1, 1, shape)


def products(rng, shape):
    """What a construction offers: products of two uniform weights."""
    return rng.uniform(-1, 1, shape) * rng.uniform(-1, 1, shape)


def integers(rng, shape):
    return rng.integers(-9, 10, shape).astype(float)


def tenths(rng, shape):
    """Sums that are equal on paper and differ by rounding."""
    return 0.1 * rng.integers(-9, 10, shape)


def few_values(rng, shape):
    return rng.choice(rng.uniform(-1, 1, 3), shape)


def zeros(rng, shape):
    return rng.uniform(-1, 1, shape) * rng.integers(0, 2, shape)


def positive(rng, shape):
    return rng.uniform(0, 1, shape)


def negative(rng, shape):
    return -rng.uniform(0, 1, shape)


def many_sizes(rng, shape):
    return rng.uniform(-1, 1, shape) * 10.0 ** rng.integers(-18, 18, shape)


def near_rounding(rng, shape):
    """A few units in the last place of 1, beside 1 itself: the order of addition decides."""
    return rng.choice([1.0, -1.0, 2.0**-53, 2.0**-52, -(2.0**-53), 3 * 2.0**-53], shape)


KINDS = [uniform, products, integers, tenths, few_values, zeros, positive, negative, many_sizes, near_rounding]


def targets_for(rng, candidates):
    """Targets of each kind: anywhere, a reachable sum, next to one, halfway between two, 0, out of reach."""
    sums = [index_order_sums(candidates, rng.integers(0, 2, candidates.shape) == 1) for _ in range(2)]
    span = np.abs(candidates).sum(axis=1) + 1e-3
    kinds = [rng.uniform(-1, 1, len(span)) * span, sums[0], np.nextafter(sums[0], np.inf), 0.5 * (sums[0] + sums[1])]
    return np.choose(rng.integers(0, 6, len(span)), [*kinds, np.zeros(len(span)), 3 * span])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(n=st.integers(0, 11), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_equals_brute_force(kind, n, seed):
    rng = np.random.default_rng(seed)
    candidates = kind(rng, (16, n))
    assert_exact(candidates, targets_for(rng, candidates))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("n", [12, 13, 14, 15, 16])
def test_equals_brute_force_up_to_16(kind, n):
    rng = np.random.default_rng(n)
    candidates = kind(rng, (6, n))
    assert_exact(candidates, targets_for(rng, candidates))


@given(
    st.lists(st.floats(-1e6, 1e6), max_size=9),
    st.floats(-1e7, 1e7),
)
def test_equals_brute_force_on_any_numbers(values, target):
    assert_exact(np.array([values]).reshape(1, -1), [target])


@given(st.integers(1, 10), st.floats(-3, 3), st.integers(-40, 40))
def test_equal_candidates_take_the_lowest_bits(n, value, tenth):
    solved = solve(np.full((1, n), value), [0.1 * tenth])
    assert_exact(np.full((1, n), value), [0.1 * tenth])
    taken = int(solved.masks.sum())
    assert solved.masks[0, :taken].all()


def test_ties_go_to_the_smallest_mask():
    candidates = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 0.0, 1.0], [1.0, -1.0, 5.0]])
    solved = solve(candidates, [3.0, 3.0, 1.0, 0.0])
    assert solved.masks.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]
    below_or_above = solve([[1.0, 2.0]], [1.5])
    assert below_or_above.masks.tolist() == [[1, 0]]


def test_order_of_addition_counts():
    """(1 + 2^-53) + 2^-53 is 1 in float64, though 2^-53 + 2^-53 is 2^-52 and 1 + 2^-52 is not 1."""
    candidates = np.array([[1.0, 5.0, 2.0**-53, 2.0**-53, 2.0**-52]])
    assert_exact(candidates, [1 + 2.0**-52])
    assert solve(candidates, [1 + 2.0**-52]).masks.tolist() == [[1, 0, 0, 0, 1]]


def test_no_candidates():
    solved = solve(np.empty((3, 0)), [0.5, -1.0, 0.0])
    assert solved.masks.shape == (3, 0)
    assert solved.sums.tolist() == [0, 0, 0]
    assert solved.errors.tolist() == [0.5, 1.0, 0.0]


def test_no_problems():
    solved = solve(np.empty((0, 5)), [])
    assert (solved.masks.shape, solved.sums.shape, solved.errors.shape) == ((0, 5), (0,), (0,))


# ---------------------------------------------------------------- beyond 16


@pytest.mark.parametrize("n", [17, 18, 19, 20, 21])
@pytest.mark.parametrize("kind", [products, tenths], ids=lambda kind: kind.__name__)
def test_equals_brute_force_beyond_16(kind, n):
    rng = np.random.default_rng(n)
    candidates = kind(rng, (2, n))
    assert_exact(candidates, rng.uniform(-2, 2, 2))


def milp_error(values, target):
    """The least |sum - target| that HiGHS finds: minimise e with -e <= sum - target <= e, bits in {0, 1}."""
    n = len(values)
    cost = np.append(np.zeros(n), 1.0)
    rows = np.array([[*values, 1.0], [*values, -1.0]])
    limits = optimize.LinearConstraint(rows, [target, -np.inf], [np.inf, target])
    bounds = optimize.Bounds(np.zeros(n + 1), np.append(np.ones(n), np.inf))
    found = optimize.milp(cost, constraints=limits, bounds=bounds, integrality=np.append(np.ones(n), 0))
    assert found.status == 0, found.message
    return abs(values @ np.round(found.x[:n]) - target)


@pytest.mark.parametrize(("n", "seed"), [(18, 0), (20, 1), (22, 2), (24, 1), (24, 5)])
def test_never_worse_than_milp(n, seed):
    rng = np.random.default_rng(seed)
    values, target = products(rng, n), rng.uniform(-1, 1)
    assert solve([values], [target]).errors[0] <= milp_error(values, target) + 1e-9


@pytest.mark.parametrize(("n", "seed"), [(18, 0), (24, 1), (30, 2)])
def test_equals_milp_on_coarse_numbers(n, seed):
    """Even numbers and an odd target: the optimum is 1, 3, ... and HiGHS can prove it."""
    rng = np.random.default_rng(seed)
    values = 2.0 * rng.integers(-8, 9, n)
    target = float(2 * rng.integers(-20, 20) + 1)
    assert solve([values], [target]).errors[0] == milp_error(values, target) == 1
    far = np.abs(values).sum() + 7
    assert solve([values], [far]).errors[0] == milp_error(values, far)


def meet_in_the_middle(values, target):
    """The least |sum - target|, up to rounding, by binary search of one half's sums for the other's."""
    half = len(values) // 2
    low, high = (np.sort(sums_of(part)) for part in (values[:half], values[half:]))
    at = np.searchsorted(low, target - high).clip(1, len(low) - 1)
    return min(np.abs(low[at - k] + high - target).min() for k in (0, 1))


def sums_of(values):
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


@pytest.mark.parametrize("n", [27, 32, 37, 40])
def test_is_the_optimum_up_to_rounding_at_large_n(n):
    rng = np.random.default_rng(n)
    values, target = products(rng, n), rng.uniform(-2, 2)
    solved = solve([values], [target])
    assert solved.errors[0] == abs(solved.sums[0] - target)
    assert solved.sums[0] == index_order_sums(values[None], solved.masks)[0]
    assert solved.errors[0] == pytest.approx(meet_in_the_middle(values, target), abs=1e-14)


def test_a_planted_subset_of_40_is_found():
    rng = np.random.default_rng(0)
    values = rng.integers(-(2**37), 2**37, 40) / 2.0**37  # 2^40 sums on few more places, all exact in float64
    planted = rng.integers(0, 2, 40) == 1
    solved = solve([values], [values[planted].sum()])
    assert solved.errors[0] == 0


def test_equal_sums_cost_no_search():
    """2^20 equal sums in either half: only one of them is tried (all pairs would take days)."""
    candidates = np.array([[0.0] * MAX_EXACT, [1.0] * MAX_EXACT])
    solved = solve(candidates, [0.25, 13.0])
    assert solved.masks.sum(axis=1).tolist() == [0, 13]
    assert solved.masks[1, :13].all()
    assert solved.errors.tolist() == [0.25, 0.0]


# ---------------------------------------------------------------- more than 40: the surplus


def lattice(rng, n, places=20):
    """Numbers whose sums are exact in float64 in any order."""
    return rng.integers(-(2**places), 2**places, n) / 2.0**places


@pytest.mark.parametrize("n", [41, 45, 60])
def test_surplus_moves_the_target_and_the_first_40_meet_the_rest(n):
    rng = np.random.default_rng(n)
    values = lattice(rng, n)
    target = float(rng.integers(-8, 9) + 2.0**-30)
    solved = solve([values], [target])
    core, surplus = np.split(values, [MAX_EXACT])
    mask, taken = np.split(solved.masks[0], [MAX_EXACT])
    rest = target - surplus[taken].sum()
    assert solve([core], [rest]).masks[0].tolist() == mask.tolist()
    assert solved.sums[0] == values[solved.masks[0]].sum()
    assert solved.errors[0] == abs(solved.sums[0] - target)
    assert np.array_equal(taken, greedy(target, core, surplus))


def greedy(target, core, surplus):
    """Which of the surplus to take: the largest first, where it brings the target nearer to the middle of the core."""
    left = target - core.sum() / 2
    taken = np.zeros(surplus.shape, bool)
    for k in sorted(range(len(surplus)), key=lambda k: -abs(surplus[k])):
        if abs(left - surplus[k]) < abs(left):
            taken[k] = True
            left -= surplus[k]
    return taken


@pytest.mark.parametrize("sign", [1, -1])
def test_surplus_brings_a_far_target_into_reach(sign):
    rng = np.random.default_rng(0)
    values = sign * rng.uniform(0, 1, (1, 60))
    target = 0.9 * values.sum(axis=1)
    alone = solve(values[:, :MAX_EXACT], target)
    solved = solve(values, target)
    assert solved.errors[0] < 1e-6 < 1 < alone.errors[0]
    assert solved.sums[0] == index_order_sums(values, solved.masks)[0]


def test_surplus_stops_where_even_all_are_too_few():
    values = np.linspace(0.5, 1.5, 44)[None]
    solved = solve(values, [100.0])
    assert solved.masks.all()
    assert solved.errors[0] == 100 - index_order_sums(values, solved.masks)[0]


# ---------------------------------------------------------------- many at a time


@pytest.mark.parametrize("n", [0, 1, 7, 16])
def test_threads_and_batches_change_nothing(n):
    rng = np.random.default_rng(n)
    candidates = tenths(rng, (97, n))
    targets = targets_for(rng, candidates)
    one = solve(candidates, targets, threads=1)
    for threads in (None, 2, 3):
        many = solve(candidates, targets, threads=threads)
        for name in ("masks", "sums", "errors"):
            assert np.array_equal(getattr(one, name), getattr(many, name))
    for p in range(0, 97, 12):
        alone = solve(candidates[p : p + 1], targets[p : p + 1])
        assert np.array_equal(alone.masks[0], one.masks[p])


def test_any_layout_and_number_type():
    rng = np.random.default_rng(0)
    candidates = rng.integers(-99, 99, (8, 9))
    targets = rng.integers(-99, 99, 8)
    expected = solve(candidates.astype(float), targets.astype(float))
    given = [
        (candidates.tolist(), targets.tolist()),
        (candidates.astype(np.float32), targets),
        (np.asfortranarray(candidates), targets),
        (np.repeat(candidates, 2, axis=0)[::2], np.repeat(targets, 2)[::2]),
    ]
    for c, t in given:
        assert np.array_equal(solve(c, t).masks, expected.masks)
    assert (expected.masks.dtype, expected.sums.dtype, expected.errors.dtype) == (bool, float, float)


def test_inputs_are_left_alone():
    candidates, targets = np.random.default_rng(0).uniform(-1, 1, (5, 42)), np.full(5, 30.0)
    before = candidates.copy(), targets.copy()
    solve(candidates, targets)
    assert np.array_equal(candidates, before[0])
    assert np.array_equal(targets, before[1])


MEMORY = """
import resource
import numpy as np
from slth.construct.subset_sum import solve

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

rng = np.random.default_rng(0)
solve(rng.uniform(-1, 1, (100, 20)), rng.uniform(-1, 1, 100))  # compiled and loaded
ballast = np.ones(max(0, peak() - now()), np.uint8)  # whatever comes on top of this is a new peak
before = peak()
candidates, targets = rng.uniform(-1, 1, (25_000, 20)), rng.uniform(-1, 1, 25_000)
solve(candidates, targets)
print((peak() - before) / 25_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_memory_for_a_million_problems_of_20_stays_under_2_gib():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    bytes_per_problem = float(done.stdout)
    assert 20 * 8 <= bytes_per_problem < 2 * 2**30 / 1e6  # at least the candidates themselves: the measure works


# ---------------------------------------------------------------- errors


@one_case
@pytest.mark.parametrize(
    ("candidates", "targets"),
    [
        (np.zeros(3), np.zeros(3)),
        (np.zeros((2, 3)), np.zeros(3)),
        (np.zeros((2, 3)), np.zeros((2, 1))),
        (np.zeros((2, 3)), 0.0),
        (np.zeros((1, 2, 3)), np.zeros(1)),
    ],
)
def test_shapes_that_do_not_fit(candidates, targets):
    with pytest.raises(ValueError, match=r"candidates of shape .* and targets .*: must be \(P, n\) and \(P,\)"):
        solve(candidates, targets)


@one_case
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["candidates", "targets"])
def test_values_that_are_not_finite(name, bad):
    given = {"candidates": np.ones((3, 4)), "targets": np.ones(3)}
    given[name].flat[2] = bad
    with pytest.raises(ValueError, match=f"{name} hold NaN or infinite values: all must be finite"):
        solve(**given)
