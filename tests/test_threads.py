import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slth.threads import cores, in_parallel, one_torch_thread


def test_at_least_one_core():
    assert cores() >= 1


@given(st.integers(0, 300), st.sampled_from([None, 1, 2, 3, 7]))
def test_every_item_is_worked_on_once(count, threads):
    parts = []
    in_parallel(parts.append, count, threads)
    items = sorted(i for part in parts for i in range(count)[part])
    assert items == list(range(count))


def test_one_thread_works_in_one_piece_where_it_is_called():
    calls = []
    in_parallel(lambda part: calls.append((part, threading.current_thread())), 100, 1)
    assert calls == [(slice(0, 100), threading.current_thread())]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_work_at_the_same_time_and_are_no_more_than_asked_for(threads):
    together = threading.Barrier(threads, timeout=60)  # passes only where that many are at work at once
    names = set()

    def work(part):
        names.add(threading.current_thread().name)
        together.wait()

    in_parallel(work, 8 * threads, threads)
    assert len(names) == threads


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_thread_is_raised(threads):
    def work(part):
        if part.start <= 50 < part.stop:
            raise KeyError(50)

    with pytest.raises(KeyError, match="50"):
        in_parallel(work, 100, threads)


def test_one_torch_thread_inside_and_as_before_outside():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3

        with pytest.raises(KeyError), one_torch_thread():
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
