"""A search on two processes is the search on one: same masks, same scores but for rounding."""

import contextlib
import os
import socket
import subprocess
import sys

import parallel_run
import pytest
import torch
from sweeping import wait_for

from slth.search import parallel

pytestmark = pytest.mark.xdist_group("parallel")  # one pair of processes for all of these tests


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found, which met over a file and loopback: no name of this machine need be known."""
    folder = tmp_path_factory.mktemp("parallel")
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(folder, rank)) for rank in range(2)]
        for process in processes:
            stack.callback(process.kill)  # before it is waited for
        wait_for(lambda: any(p.poll() for p in processes) or all(p.poll() == 0 for p in processes), 240)
    told = [(folder / f"{rank}.log").read_text()[-3000:] for rank in range(2)]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(told)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def started(folder, rank):
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}  # as torchrun sets them
    settings = {"GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"} | {key: str(n) for key, n in here.items()}
    with open(folder / f"{rank}.log", "wb") as log:
        command = [sys.executable, parallel_run.__file__, str(folder)]
        return subprocess.Popen(command, env=os.environ | settings, stdin=subprocess.DEVNULL, stderr=log)


def assert_same(found, wanted, tolerance):
    assert found["masks"].keys() == wanted["masks"].keys()
    for path, mask in wanted["masks"].items():
        assert torch.equal(found["masks"][path], mask)
        torch.testing.assert_close(found["scores"][path], wanted["scores"][path], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(wanted["losses"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", parallel_run.METHODS)
def test_two_processes_find_what_one_finds(ranks, method):
    alone = parallel_run.state_of(*parallel_run.searched(method, 8))
    for found in ranks:
        assert_same(found[method], alone, 1e-5)


@pytest.mark.parametrize("kind", ["uneven", "ddp", "accelerate"])
def test_rows_that_do_not_divide_are_weighed(ranks, kind):
    if kind not in ranks[0]:
        pytest.skip(f"{kind} is not installed: pip install 'slth[train]'")
    alone = parallel_run.state_of(*parallel_run.searched("edge_popup", 5))
    for found in ranks:
        assert_same(found[kind], alone, 1e-5)


def test_both_processes_hold_the_same_bits(ranks):
    one, other = ranks
    for kind in (*parallel_run.METHODS, "uneven", "ddp", "resumed"):
        assert_same(one[kind], other[kind], 0.0)


def test_the_first_process_alone_tells_a_tracker(ranks):
    assert [found["logged"] for found in ranks] == [list(range(1, parallel_run.STEPS + 1)), []]


def test_score_gradients_travel_and_a_loss(ranks):
    scores = sum(t.numel() for t in ranks[0]["edge_popup"]["scores"].values())
    assert [found["sent"] for found in ranks] == [parallel_run.STEPS * (scores + 1)] * 2


def test_a_search_of_two_goes_on_from_its_checkpoint(ranks):
    for found in ranks:
        assert found["resumed"]["at"] == 4
        assert_same(found["resumed"], found["edge_popup"] | {"losses": found["resumed"]["losses"]}, 0.0)


def test_what_cannot_be_shared_is_refused_in_every_process(ranks):
    for found in ranks:
        assert "processes [1] begin with another model, seed or settings than process 0" in found["seeds"]
        assert found["few rows"] == "batch of 1 rows: must have one or more for each of 2 processes"
        assert "No such file" in found["no folder"]
        assert "DistributedSampler shares them out" in found["sampler"]
        assert "batch of str: must be tensors" in found["no tensors"]


def test_what_breaks_in_one_process_ends_the_other_and_both_can_go_on(ranks):
    assert ranks[1]["broken"] == ["it broke here alone"] * 2
    assert len(ranks[0]["broken"]) == 2  # the words are gloo's
    assert ranks[0]["limits"][0] == 150  # seconds, as in the user's own group
    for found in ranks:
        assert_same(found["again"], found["edge_popup"], 0.0)


def test_what_all_refuse_at_once_is_no_error_of_their_connection(ranks):
    for found in ranks:
        assert found["refused"] == ["steps=0: must be an int >= 1"] * 20


def test_one_process_keeps_its_batch():
    batch = {"any": object()}
    assert parallel.share(batch) == (batch, 1.0)
    assert (parallel.rank(), parallel.size()) == (0, 1)
