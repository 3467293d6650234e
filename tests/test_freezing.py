"""Weights that are frozen at random places: exact shares in each part, told by seed and name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slth.freezing import Freezing
from slth.masks import count_kept
from slth.targets import Part

FUSED = tuple(Part(i, 3, 1) for i in range(3))


@given(st.integers(0, 90), st.integers(0, 90), st.integers(1, 5), st.integers(1, 7), st.integers(0, 99))
def test_each_part_has_the_exact_shares_and_no_weight_both(pruned, locked, rows, columns, seed):
    if not 0 < pruned + locked < 100:
        pruned, locked = 30, 20
    freezing = Freezing(pruned / 100, locked / 100, seed)
    out, kept = freezing.places(torch.Size((rows, 3 * columns)), FUSED, "w")
    assert not (out & kept).any()
    for part in FUSED:
        size = rows * columns
        gone = int(part.of(out).sum())
        assert gone == (size - count_kept(size, (100 - pruned) / 100) if pruned else 0)
        assert part.of(kept).sum() == (min(size - gone, count_kept(size, locked / 100)) if locked else 0)


def test_places_follow_from_seed_and_name():
    shape = torch.Size((40, 50))
    first = Freezing(0.3, 0.2, seed=1).places(shape, (Part(),), "a")
    again = Freezing(0.3, 0.2, seed=1).places(shape, (Part(),), "a")
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))
    for other in (
        Freezing(0.3, 0.2, seed=2).places(shape, (Part(),), "a"),
        Freezing(0.3, 0.2, seed=1).places(shape, (Part(),), "b"),
    ):
        for one, two, share in zip(first, other, (0.3, 0.2), strict=True):
            assert abs((one & two).float().mean() - share**2) < 0.05  # as two draws that know nothing of each other


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), True, "0.5", None])
@pytest.mark.parametrize("name", ["pruned", "locked"])
def test_a_share_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=rf"{name}={value!r}: must be a number in \[0, 1\)"):
        Freezing(**{"pruned": 0.2, "locked": 0.2} | {name: value}, seed=0)


@pytest.mark.parametrize(("pruned", "locked"), [(0.5, 0.5), (0.75, 0.5), (0, 0.0)])
def test_shares_that_leave_nothing_to_search_or_nothing_frozen(pruned, locked):
    with pytest.raises(ValueError, match=r"pruned \+ locked = .*: must be in \(0, 1\)"):
        Freezing(pruned, locked, seed=0)
