"""Recordings of a step: what is replayed, and what is not; tried on the CPU, where no graph is."""

import logging
import random
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import compiles
from regression import assert_same, batches, loss, net, state, wrapped
from stepping import Broken, Once, Replayer, assert_close, result, training

import slth
from slth.search import EdgePopup
from slth.search.steps.device import DeviceStep
from slth.search.steps.graph import CUDARecorder, GraphStep
from slth.wrapping import handle


def test_a_batch_of_another_layout_is_taken_without_the_recording(by_device):
    def batch(step):
        x, y = batches(step)
        return (x[:20], y[:20]) if step % 5 == 4 else (x, y)

    host = slth.fit(theirs := wrapped(), batch, loss, 20, progress=False)
    recorder = Replayer()
    by_device(recorder)
    found = slth.fit(ours := wrapped(), batch, loss, 20, progress=False)
    assert recorder.recorded == 1
    assert_close(state(ours), state(theirs))
    assert found.rows[-1] == pytest.approx(host.rows[-1], rel=1e-4)


def test_what_cannot_be_recorded_runs_on_and_says_so_once(by_device, caplog):
    host = result(wrapped())
    by_device(Broken())
    with caplog.at_level(logging.WARNING):
        found = result(wrapped())
    assert [r.getMessage() for r in caplog.records if "CUDA graph" in r.getMessage()] == [
        "fit: steps run without a CUDA graph, as this one cannot be recorded: "
        "operation not permitted when stream is capturing"
    ]
    assert_close(found[1], host[1])


def replayed(steps, batch, *, loss=loss, recorder=None, make=wrapped, **options):
    """The recorder, and the model, after so many steps of a GraphStep."""
    model, recorder = make(), recorder or Replayer()
    masks = handle(model) if make is wrapped else None
    step = GraphStep(DeviceStep(replace(training(model, **options), loss=loss), masks), "fit", recorder)
    for number in range(steps):
        step.take(batch(number), number)
    step.settle()
    return recorder, model, step


@pytest.mark.parametrize(
    "draw", [random.random, np.random.rand, lambda: torch.rand(())], ids=["python", "numpy", "torch"]
)
def test_a_loss_that_draws_on_the_host_is_not_recorded(draw, caplog):
    def drawing(model, batch):
        return loss(model, batch) * (1.0 + float(draw()))

    with torch.random.fork_rng(devices=[]), caplog.at_level(logging.INFO):
        _, _, step = replayed(6, batches, loss=drawing, recorder=Once())
    assert step._recording is None
    assert [r.getMessage() for r in caplog.records if "draws random numbers on the host" in r.getMessage()]


def test_batches_with_objects_in_them_are_never_replayed():
    """The same object, whose content is another one in each step."""
    held = SimpleNamespace()

    def batch(step):
        held.tensors = batches(step)
        return held

    recorder, model, _ = replayed(8, batch, loss=lambda m, b: loss(m, b.tensors))
    assert recorder.recorded == 0
    assert_same(state(model), state(replayed(8, batches)[1]))


def test_what_a_capture_failed_at_is_told_and_not_how_it_ended(caplog):
    class Ending:
        def record(self, work):
            try:
                raise RuntimeError("the loss reads back")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

    with caplog.at_level(logging.INFO):
        replayed(5, batches, recorder=Ending())
    assert caplog.records[-1].getMessage().endswith("cannot be recorded: the loss reads back")


def test_a_step_behind_an_evaluation_is_recorded_in_train_mode(by_device):
    modes = []

    def noted(model, batch):
        modes.append(model.training)
        return loss(model, batch)

    by_device(Once())
    slth.fit(wrapped(), batches, noted, 6, evaluate=lambda model: {"count": len(modes)}, every=1, progress=False)
    assert modes == [True] * 7


def test_optimisers_are_capturable_while_they_are_captured_alone():
    """As torch warns of a step that is not captured and could be."""

    class Watching(Replayer):
        def record(self, work):
            assert [group["capturable"] for group in step.training.optimiser.param_groups] == [True]
            return super().record(work)

    recorder, model = Watching(), wrapped()
    step = DeviceStep(training(model), handle(model))
    recorded = GraphStep(step, "fit", recorder)
    for number in range(6):
        recorded.take(batches(number), number)
        assert [group["capturable"] for group in step.training.optimiser.param_groups] == [False]
    assert recorder.recorded == 1


class BrokenGraph:
    """As torch.cuda.graph where the capture was broken: the capture's stream stays the current one."""

    def __init__(self, graph, *, stream, capture_error_mode):
        self.stream = stream

    def __enter__(self):
        torch.cuda.set_stream(self.stream)

    def __exit__(self, *error):
        raise RuntimeError("operation failed due to a previous error during capture")


def test_a_capture_that_broke_leaves_stream_and_generator_as_they_were(monkeypatch):
    device, now = torch.device("cuda:1"), {"stream": "default", "generator": "before"}

    @contextmanager
    def stream(one):
        before = now["stream"]
        try:
            yield now.update(stream=one)
        finally:
            now["stream"] = before

    @contextmanager
    def of_device(one):
        assert one == device
        yield

    generator = SimpleNamespace(
        clone_state=lambda: now["generator"], graphsafe_set_state=lambda state: now.update(generator=state)
    )
    fakes = {
        "device": of_device,
        "stream": stream,
        "current_stream": lambda one: now["stream"],
        "set_stream": lambda one: now.update(stream=one),
        "Stream": lambda: "capture",
        "graph": BrokenGraph,
        "CUDAGraph": object,
        "default_generators": (None, generator),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with pytest.raises(RuntimeError, match="previous error"):
        CUDARecorder(device).record(lambda: now.update(generator="capturing"))
    assert now == {"stream": "default", "generator": "before"}


def test_a_dense_model_that_was_moved_is_recorded_anew():
    recorder, model, step = replayed(6, batches, make=net)
    assert recorder.recorded == 1
    for p in model.parameters():
        p.data = p.data.clone()
    for number in range(6, 12):
        step.take(batches(number), number)
    assert recorder.recorded == 2


def test_scores_that_were_moved_are_recorded_anew():
    model, recorder = wrapped(), Replayer()
    step = GraphStep(DeviceStep(training(model), handle(model)), "fit", recorder)
    for number in range(6):
        step.take(batches(number), number)
    masked = next(iter(handle(model).weights.values()))
    masked.scores.data = masked.scores.data.clone()
    for number in range(6, 12):
        step.take(batches(number), number)
    assert recorder.recorded == 2
    step.settle()


def test_a_killed_run_goes_on_to_the_same_bits(by_device, tmp_path):
    by_device(Replayer())
    whole = result(wrapped(), checkpoint=tmp_path / "whole", save_every=5)

    def until(step):
        if step == 13:
            raise KeyboardInterrupt
        return batches(step)

    options = {"lr": 0.02, "progress": False, "seed": 3, "checkpoint": tmp_path / "cut", "save_every": 5}
    with pytest.raises(KeyboardInterrupt):
        slth.fit(wrapped(), until, loss, 24, **options)
    found = result(wrapped(), checkpoint=tmp_path / "cut", save_every=5)
    assert_same(found[1], whole[1])
    assert found[0] == whole[0]


@compiles
def test_a_compiled_models_masks_are_not_recorded(by_device, caplog):
    """Its cut is told keep on the host, which a recording would not hear of."""
    recorder = Replayer()
    by_device(recorder)
    model = torch.compile(wrapped(), backend="eager")
    slth.fit(model, batches, loss, 8, method=EdgePopup(schedule="linear"), progress=False)
    assert recorder.recorded == 0
    assert "the model cuts masks by itself" in caplog.text
