"""Masks become bits and come back, all of them, and damaged bits never take the process with them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

from slth.ticket import bits
from slth.ticket.bits import CHUNK, decode, encode, pack, unpack

WAYS = [(pack, unpack), (encode, decode)]
both_ways = pytest.mark.parametrize(("there", "back"), WAYS, ids=["packed", "coded"])


def random(size, keep, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(size) < keep)


def entropy(mask):
    """Bytes for a mask that is known but for the places of its ones, each as likely as any other."""
    share = float(mask.double().mean())
    return -mask.numel() * sum(p * np.log2(p) for p in (share, 1 - share)) / 8


def returns(there, back, masks):
    found = back(there(masks), [mask.numel() for mask in masks])
    assert len(found) == len(masks)
    for mask, other in zip(masks, found, strict=True):
        assert other.dtype == torch.bool
        assert other.equal(mask.reshape(-1))


@st.composite
def some_masks(draw):
    """Masks from rare to common ones, the empty and the even ones among them."""
    keeps = st.sampled_from([0.0, 0.001, 0.05, 0.3, 0.5, 0.9, 0.999, 1.0])
    kinds = draw(st.lists(st.tuples(st.integers(0, 3000), keeps, st.integers(0, 2**32)), max_size=5))
    return [random(*kind) for kind in kinds]


# ---------------------------------------------------------------- round trips


@both_ways
@given(masks=some_masks())
def test_masks_come_back(there, back, masks):
    returns(there, back, masks)


@both_ways
@given(mask=st.lists(st.booleans(), max_size=40))
def test_any_few_bits_come_back(there, back, mask):
    returns(there, back, [torch.tensor(mask, dtype=torch.bool)])


@one_case
@both_ways
@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_single_bits_and_even_masks_come_back(there, back, size):
    for value in (False, True):
        even = torch.full((size,), value)
        returns(there, back, [even])
        for odd in {0, size // 2, size - 1} & set(range(size)):
            mask = even.clone()
            mask[odd] = not value
            returns(there, back, [mask])


@both_ways
def test_zeros_before_ones_come_back(there, back):
    # these lie at the top of the coder's interval, where 17 of them carry over in the very last step
    returns(there, back, [torch.arange(zeros + ones) >= zeros for zeros in range(1, 65) for ones in range(1, 65)])


@both_ways
def test_masks_of_any_shape_and_order_come_back(there, back):
    mask = random(120, 0.4).reshape(2, 3, 20)
    returns(there, back, [mask, mask.transpose(0, 2), mask[..., ::3], torch.tensor(True), torch.empty(0, 3).bool()])


@both_ways
def test_masks_have_memory_of_their_own(there, back):
    first, second = back(there([torch.ones(5).bool()] * 2), [5, 5])
    assert first.untyped_storage().nbytes() == 5
    first.zero_()
    assert second.all()


# ---------------------------------------------------------------- packed


def test_the_lowest_index_is_the_lowest_bit():
    masks = [torch.tensor([True, False, False]), torch.tensor([True] * 6)]
    assert pack(masks).tolist() == [0b11111001, 0b1]
    assert pack([]).tolist() == []


def test_packed_bits_must_fit():
    packed = pack([torch.ones(11).bool()])
    for sizes in ([8], [17], [16, 1], []):
        with pytest.raises(ValueError, match=r"2 bytes: must be \d for"):
            unpack(packed, sizes)
    with pytest.raises(ValueError, match="bits set behind the last of 10: must be zeros"):
        unpack(packed, [4, 6])


# ---------------------------------------------------------------- coded


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.3, 0.7, 0.95])
def test_random_masks_take_their_entropy(keep):
    mask = random(10**6, keep)
    assert encode([mask]).numel() <= 1.001 * entropy(mask) + 8


@given(st.integers(2, 5000), st.floats(0, 1), st.integers(0, 2**32))
def test_no_mask_takes_much_more_than_its_entropy(size, keep, seed):
    mask = random(size, keep, seed)
    mask[:2] = torch.tensor([True, False])
    assert encode([mask]).numel() <= entropy(mask) + 8 + 3


def test_each_mask_is_coded_by_its_own_share_of_ones():
    masks = [random(50_000, 0.02), random(50_000, 0.98, 1)]
    assert encode(masks).numel() <= sum(entropy(mask) for mask in masks) + 2 * (8 + 3)


def test_even_masks_take_eight_bytes_a_chunk():
    assert encode([torch.ones(3 * CHUNK).bool(), torch.zeros(9).bool()]).numel() == 8 * 4


def test_coded_bytes_by_hand():
    # one of two bits: the interval of [True, False] is [1/4, 1/2), and 0x40 = 1/4 begins it
    assert encode([torch.tensor([True, False])]).tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0x40]


def test_coded_bits_do_not_depend_on_the_number_of_cores(monkeypatch):
    masks = [random(CHUNK + 77, 0.1), random(5, 0.5), random(2 * CHUNK, 0.7)]
    together = encode(masks)
    monkeypatch.setattr(bits, "in_parallel", lambda work, count: work(slice(0, count)))
    assert encode(masks).equal(together)


def survives(coded, sizes):
    """Decoding ends with masks of the right sizes, or with a ValueError."""
    try:
        assert [mask.numel() for mask in decode(coded, sizes)] == sizes
    except ValueError:
        return False
    return True


@given(st.data())
def test_damaged_bytes_do_no_harm(data):
    masks = data.draw(some_masks())
    coded = encode(masks).numpy().copy()
    for _ in range(data.draw(st.integers(1, 4))):
        if coded.size:
            coded[data.draw(st.integers(0, coded.size - 1))] ^= data.draw(st.integers(1, 255))
    survives(torch.from_numpy(coded), [mask.numel() for mask in masks])


@given(st.binary(max_size=120), st.lists(st.integers(0, 3000), max_size=5))
def test_arbitrary_bytes_do_no_harm(data, sizes):
    survives(torch.from_numpy(np.frombuffer(data, np.uint8).copy()), sizes)


def test_nothing_is_read_behind_the_coded_bytes():
    mask = random(5000, 0.3)
    coded = encode([mask]).numpy()
    for length in range(1, coded.size - 8, 37):
        for behind in (0, 255):  # a chunk cut short within a larger memory
            memory = np.full(coded.size + 64, behind, np.uint8)
            memory[: length + 8] = coded[: length + 8]
            out = np.empty(5000, np.bool_)
            bits._decode(memory[8 : length + 8], int(mask.sum()), out)
            if behind == 0:
                first = out
        assert np.array_equal(first, out)


def test_coded_bytes_must_fit():
    coded = encode([random(1000, 0.3)])
    for changed, match in [
        (coded[:7], "7 bytes: must be at least 8"),
        (coded[:-1], "bytes of chunks: must be"),
        (torch.cat([coded, coded[:1]]), "bytes of chunks: must be"),
    ]:
        with pytest.raises(ValueError, match=match):
            decode(changed, [1000])
    with pytest.raises(ValueError, match="cannot be"):
        decode(coded, [100])
    with pytest.raises(ValueError, match="cannot be"):
        decode(torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 9], dtype=torch.uint8), [100])  # no ones, yet a byte
    with pytest.raises(ValueError, match=r"must be at least \d+ for masks of 1\d+ bits"):
        decode(coded, [10**30])


def test_a_changed_number_of_ones_is_noticed():
    mask = torch.zeros(1000).bool()
    mask[500] = True
    coded = encode([mask])
    coded[8:] = 0  # the lowest number of all stands for ones throughout
    with pytest.raises(ValueError, match="damaged, its bits are not the 1 ones"):
        decode(coded, [1000])


# ---------------------------------------------------------------- what is refused


@both_ways
def test_bad_arguments_are_named(there, back):
    with pytest.raises(ValueError, match=r"mask of torch\.uint8: must be torch\.bool"):
        there([torch.ones(3).bool(), torch.ones(3, dtype=torch.uint8)])
    for tensor in (torch.ones(1), torch.ones(1, 1, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="with one axis"):
            back(tensor, [1])
    for size in (-1, 1.0, True, "1", None):
        with pytest.raises(ValueError, match=r"size .*: must be an int >= 0"):
            back(there([]), [8, size])
