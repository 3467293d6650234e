"""How many weights are kept: of a share, and along a schedule."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

from slth.masking.masks import SCHEDULES, as_keep, count_kept, scheduled_keep

# ---------------------------------------------------------------- how many


@given(st.integers(1, 10**6), st.decimals(0, 1, places=4).filter(bool))
def test_the_count_is_that_of_the_decimal(n, keep):
    exact = Fraction(keep) * n
    kept = count_kept(n, float(keep))
    assert 1 <= kept <= n
    assert kept == max(1, math.floor(exact + Fraction(1, 2)))


def test_counts_by_hand():
    assert [count_kept(n, 0.5) for n in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]  # halves are rounded up
    assert [count_kept(n, 0.1) for n in (1, 4, 5, 15, 25)] == [1, 1, 1, 2, 3]
    assert count_kept(7, 1) == count_kept(7, 1.0) == 7
    assert count_kept(10**6, 1e-9) == 1


@one_case
@pytest.mark.parametrize("keep", [0, 0.0, -0.1, 1.0001, math.nan, math.inf, True, "0.5", None, Fraction(1, 2)])
def test_a_bad_keep_is_named(keep):
    for call in (as_keep, lambda k: count_kept(10, k), lambda k: scheduled_keep(k, "linear", 0.5)):
        with pytest.raises(ValueError, match=r"keep=.*: must be a number in"):
            call(keep)


@one_case
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("keep", [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_schedules_end_at_keep_exactly(schedule, keep):
    shares = [scheduled_keep(keep, schedule, i / 64) for i in range(65)]
    assert all(after <= before for before, after in pairwise(shares))
    assert all(0 < share <= 1 for share in shares)
    assert shares[0] == (keep if schedule == "constant" else 1.0)
    assert shares[-1] == keep
    assert all(count_kept(n, shares[-1]) == count_kept(n, keep) for n in range(1, 200))
    assert scheduled_keep(keep, schedule, -1.0) == shares[0]
    assert scheduled_keep(keep, schedule, 2.0) == shares[-1]


def test_schedules_in_between():
    assert scheduled_keep(0.2, "linear", 0.25) == pytest.approx(0.8)
    assert scheduled_keep(0.2, "cubic", 0.5) == pytest.approx(1 - 0.8 * 0.875)
    with pytest.raises(ValueError, match="schedule='step': must be one of constant, linear, cubic"):
        scheduled_keep(0.2, "step", 0.5)
