"""Selection on the device, in Triton's interpreter: exact, whatever the ties and wherever it starts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slth.kernels import Cut, Selector, select_threshold
from slth.kernels.cases import normal
from slth.kernels.select import bench
from slth.kernels.select import triton as triton_select
from slth.kernels.timing import COLUMNS, SPREAD

pytest.importorskip("triton")


CPU = torch.device("cpu")


@pytest.fixture
def many_stretches(monkeypatch):
    """Stretches as short as can be, so that few scores make many of several blocks."""
    monkeypatch.setattr(triton_select, "BLOCK", 64)
    monkeypatch.setattr(triton_select, "FIND_BLOCK", 64)
    monkeypatch.setattr(triton_select, "PROGRAMS", 8)


def found(scores, k, near=None):
    return select_threshold(scores, k, near=near, impl="triton")


def assert_same(one, other):
    assert one.value.equal(other.value)
    assert one.last_tie.equal(other.last_tie)


def near_to(threshold, factor):
    return Cut(threshold.value * factor, threshold.last_tie)


@pytest.mark.usefixtures("many_stretches")
@given(st.data())
@settings(max_examples=8)
def test_the_threshold_is_the_references(data):
    length = data.draw(st.integers(1, 1100))
    levels = data.draw(st.sampled_from([1, 2, 5, 10**6]))
    scores = (normal(f"levels {levels}", length, device=CPU) * levels).round() / levels
    k = data.draw(st.integers(1, length))
    wanted = select_threshold(scores, k, impl="reference")
    assert_same(found(scores, k), wanted)
    assert_same(found(scores, k, near_to(wanted, data.draw(st.sampled_from([1.0, 0.998, 1.002, 3.0, 0.0])))), wanted)


@pytest.mark.usefixtures("many_stretches")
@pytest.mark.parametrize("room", [1, 4096], ids=["a stretch overflows", "all find room"])
def test_a_bracket_that_holds_too_much(room, monkeypatch):
    monkeypatch.setattr(triton_select, "ROOM", room)
    monkeypatch.setattr(triton_select, "_stretches", lambda n: (8, 192, 192 // room))
    scores = 1 + 1e-4 * normal("crowded", 1500, device=CPU)  # all in the bracket
    wanted = select_threshold(scores, 700, impl="reference")
    assert_same(found(scores, 700, wanted), wanted)


@pytest.mark.usefixtures("many_stretches")
@pytest.mark.parametrize("start", [None, 1.0, 1.002, 7.0])
def test_a_hit_looks_at_two_digits_and_a_miss_at_four(start, monkeypatch):
    states = []
    monkeypatch.setattr(triton_select.torch, "zeros", lambda *a, zeros=torch.zeros, **k: kept(zeros(*a, **k)))

    def kept(state):
        states.append(state)
        return state

    scores = normal("digits", 1000, device=CPU)
    wanted = select_threshold(scores, 500, impl="reference")
    assert_same(found(scores, 500, start and near_to(wanted, start)), wanted)
    (state,) = states
    counted = state[16:1040].reshape(4, 256).sum(1) > 0
    assert counted.tolist() == [start not in (1.0, 1.002)] * 2 + [True] * 2


@pytest.mark.usefixtures("many_stretches")
def test_what_the_memory_held_before_does_not_matter(monkeypatch):
    scores = normal("poison", 900, device=CPU).mul(3).round()
    wanted = select_threshold(scores, 300, impl="reference")

    def poisoned(*args, empty=torch.empty, **kwargs):
        return empty(*args, **kwargs).fill_(float("nan") if kwargs["dtype"].is_floating_point else 0x7F7F7F7F)

    monkeypatch.setattr(triton_select.torch, "empty", poisoned)
    for near in (None, wanted, near_to(wanted, 9.0)):
        assert_same(found(scores, 300, near), wanted)


def test_layouts_and_axes_do_not_matter_and_nothing_is_written_to():
    scores = normal("layouts", 30, 20, device=CPU)
    before = scores.clone()
    wanted = select_threshold(scores, 77, impl="reference")
    assert_same(found(scores.mT.contiguous().mT, 77), wanted)
    assert_same(found(scores.reshape(2, 3, 100).requires_grad_(), 77), wanted)
    assert scores.equal(before)


def test_the_mask_is_that_of_the_cut():
    scores = normal("cut", 40, 25, device=CPU).mul(4).round()
    for keep in (0.001, 0.3, 0.5, 1.0):
        k = max(1, int(keep * 1000 + 0.5))
        assert found(scores, k).mask(scores).equal(Selector().cut([scores], k).mask(scores))


def test_nothing_travels_to_the_host(monkeypatch):
    scores = normal("host", 100, device=CPU)
    wanted = select_threshold(scores, 50, impl="reference")
    for name in ("item", "tolist", "cpu", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(triton_select.torch.Tensor, name, None)
    launched = []
    for name in ("_pick_out", "_count_digit", "_find"):
        monkeypatch.setattr(triton_select, name, Recorder(name, launched))
    found(scores, 50)
    found(scores, 50, wanted)
    cold = ["_count_digit"] * 4 + ["_find"]
    assert launched == [*cold, "_pick_out", *cold]


class Recorder:
    """Stands for a kernel that is launched over a grid, and does nothing."""

    def __init__(self, name, launched):
        self.name, self.launched = name, launched

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launched.append(self.name)


def test_the_rows_of_the_table():
    rows = bench.rows(CPU, 2, 0, sizes=(500,))
    assert {row["peer"] for row in rows} == {"torch.sort", "torch.topk"}
    assert {row["size"] for row in rows} == {"n=500 cold", "n=500 warm", "n=500 selector"}
    assert {row["size"] for row in rows if row["what"] == bench.WRAPPED} == {"n=500 selector"}
    for row in rows:
        assert list(row)[: len(COLUMNS + SPREAD)] == COLUMNS + SPREAD
        assert row["error_ours"] == 0.0
        assert row["floor_s"] == pytest.approx(500 * 4 / 3.0e12)


@pytest.mark.parametrize("tie", [0, 40_000, 209_998, 210_500])
def test_a_mask_made_in_pieces_is_that_of_tensors(tie):
    scores = normal("pieces", 300, 700, device=CPU).round()
    for part in (scores, scores.mT, scores.flatten(), scores[:, 100:600]):
        cut = Cut(1.0, tie)
        assert cut.mask(part, 5).equal(Cut(*cut.tensors(CPU)).mask(part, 5))
