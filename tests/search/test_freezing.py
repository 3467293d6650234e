"""What is frozen is an exact share of each part, at places that follow from seed and name."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

from slth.masking.masks import count_kept
from slth.masking.parameters import Part
from slth.search.freezing import Freezing

ALONE = (Part(),)
THREE = tuple(Part(i, 3, 1) for i in range(3))
shares = st.integers(0, 99).map(lambda percent: percent / 100)


@given(st.integers(1, 300), shares, shares, st.integers(0, 2**40))
def test_shares_are_exact_and_apart(n, pruned_share, locked_share, seed):
    if not 0 < round(100 * pruned_share) + round(100 * locked_share) < 100:
        with pytest.raises(ValueError, match=r"pruned \+ locked"):
            Freezing(pruned_share, locked_share, seed)
        return
    freezing = Freezing(pruned_share, locked_share, seed)
    pruned, locked = freezing.places(torch.Size([n]), ALONE, "weight")
    assert not (pruned & locked).any()
    assert int(pruned.sum()) == (n - count_kept(n, freezing.open) if pruned_share else 0)
    assert int(locked.sum()) == (count_kept(n, locked_share) if locked_share else 0)
    assert freezing.open == round(1 - pruned_share, 2)
    # what keep may be at its ends is then just what the two counts leave
    assert int(locked.sum()) <= count_kept(n, freezing.open) == n - int(pruned.sum())


def test_each_part_has_the_same_shares():
    pruned, locked = Freezing(0.25, 0.5, 0).places(torch.Size([8, 12]), THREE, "qkv")
    for part in THREE:
        assert (int(part.of(pruned).sum()), int(part.of(locked).sum())) == (8, 16)
    assert not part.of(locked).equal(THREE[0].of(locked))


def test_places_follow_from_seed_and_name():
    shape = torch.Size([30, 40])
    pruned, locked = Freezing(0.3, 0.3, 1).places(shape, ALONE, "a")
    again = Freezing(0.3, 0.3, 1).places(shape, ALONE, "a")
    assert (pruned.dtype, pruned.shape) == (torch.bool, shape)
    assert pruned.equal(again[0])
    assert locked.equal(again[1])
    for other in (Freezing(0.3, 0.3, 2).places(shape, ALONE, "a"), Freezing(0.3, 0.3, 1).places(shape, ALONE, "b")):
        assert 0.5 < (pruned == other[0]).float().mean() < 0.7  # 0.58 by chance
        assert 0.5 < (locked == other[1]).float().mean() < 0.7


def test_one_share_alone():
    for freezing in (Freezing(0.0, 0.4, 0), Freezing(0.4, 0, 0)):
        pruned, locked = freezing.places(torch.Size([10]), ALONE, "w")
        assert (int(pruned.sum()), int(locked.sum())) == ((0, 4) if freezing.locked else (4, 0))


@one_case
@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, math.nan, math.inf, True, "0.1", None])
def test_other_shares_are_refused(share):
    with pytest.raises(ValueError, match=r"pruned=.*: must be a number in \[0, 1\)"):
        Freezing(share, 0.1, 0)
    with pytest.raises(ValueError, match=r"locked=.*: must be a number in \[0, 1\)"):
        Freezing(0.1, share, 0)


@pytest.mark.parametrize("pair", [(0.0, 0.0), (0.5, 0.5), (0.7, 0.6)])
def test_something_must_be_frozen_and_something_free(pair):
    with pytest.raises(ValueError, match=r"pruned \+ locked = .*: must be in \(0, 1\)"):
        Freezing(*pair, seed=0)
