"""Wrapped modules compiled, and trained by several processes."""

import shutil

import data_parallel
import pytest
import torch
from cases import CASES
from helpers import compiles
from masked_cases import CASE, KEEP, MLP, OPTIMISERS, by_hand, move, sorted_masks, wrapped
from torch._dynamo.testing import CompileCounterWithBackend

from slth.wrapping import handle, wrap

# ---------------------------------------------------------------- compiled


#: What torch compiles piece by piece by itself: recurrent layers, and ours where a mask of tokens is checked.
IN_PIECES = {"lstm", "lstm, bidirectional", "gru", "tied", "slth language model"}
#: One for each way in which a compiler meets masks; all others are compiled in the slow tests.
COMPILED = {
    "gpt2", "torch attention, packed", "lstm", "convolutions, training",
    "mixture of experts", "weight_norm", "tied", "bfloat16", "slth attention",
}  # fmt: skip


@compiles
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.name in COMPILED else pytest.mark.slow) for case in CASES],
)
def test_compiled_it_is_the_same_and_is_not_compiled_anew_when_masks_move(case):
    model, eager = wrapped(case), wrapped(case)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    before = handle(model).masks()
    optimiser = torch.optim.Adam(handle(eager).scores(), lr=0.1)
    for step in range(3):
        optimiser.zero_grad()
        losses = [case.loss(compiled), case.loss(eager)]
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(*losses)
        for scores, wanted in zip(handle(model).scores(), handle(eager).scores(), strict=True):
            assert (scores.grad - wanted.grad).abs().max() <= 1e-5 * wanted.grad.abs().max()
            scores.grad = None
        optimiser.step()
        with torch.no_grad():
            for scores, moved in zip(handle(model).scores(), handle(eager).scores(), strict=True):
                scores.copy_(moved)
        if step == 0:
            graphs = counter.frame_count
    assert counter.frame_count == graphs
    masks = handle(model).masks()
    assert all(not mask.equal(before[path]) for path, mask in masks.items())
    assert (graphs == 1) == (case.name not in IN_PIECES)


@compiles
@pytest.mark.parametrize("optimiser", ["sgd", "adam, fused"])
def test_what_a_compiled_optimiser_does_is_seen(optimiser):
    model = wrapped(MLP)
    MLP.loss(model).backward()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(OPTIMISERS[optimiser](handle(model).scores()).step, backend=counter)
    for _ in range(3):
        before = [scores.detach().clone() for scores in handle(model).scores()]
        step()
        assert not any(scores.equal(old) for scores, old in zip(handle(model).scores(), before, strict=True))
        assert MLP.run(model).equal(MLP.run(by_hand(MLP, sorted_masks(model))))


@pytest.mark.slow  # gcc takes ten seconds or more; what masks are for a compiler is tested above
@compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs one of C++")
def test_inductor_makes_the_same_gradients():
    model, eager = wrapped(MLP, policy="global"), wrapped(MLP, policy="global")
    torch._dynamo.reset()
    compiled = torch.compile(model)
    for _ in range(2):
        for module in (compiled, eager):
            MLP.loss(module).backward()
        for scores, wanted in zip(handle(model).scores(), handle(eager).scores(), strict=True):
            torch.testing.assert_close(scores.grad, wanted.grad)
        for module in (model, eager):
            move(module)


# ---------------------------------------------------------------- several processes


def test_data_parallel_processes_share_masks_and_gradients(tmp_path):
    torch.multiprocessing.spawn(data_parallel.train, (str(tmp_path),), nprocs=2)
    case = CASE["tied"]
    first = wrap(case.build(), KEEP)
    for one, other in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        for path, mask in handle(first).masks().items():
            assert one["masks"][path].equal(other["masks"][path])
            assert one["masks"][path].equal(mask)
        for mean, same, a, b in zip(one["gradients"], other["gradients"], one["own"], other["own"], strict=True):
            assert mean.equal(same)
            assert b.any()
            torch.testing.assert_close(mean, (a + b) / 2)
        torch.testing.assert_close(other["loss"], 2 * one["loss"])
        with torch.no_grad():
            for scores, gradient in zip(handle(first).scores(), one["gradients"], strict=True):
                scores -= 0.1 * gradient
