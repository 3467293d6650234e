"""Steps of a device, and recordings of them, do what the host's step does; tried on the CPU, where no graph is."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import regression
import torch
from regression import assert_same, batches, loss, net, state, wrapped
from stepping import Replayer, assert_close, result, sgd, training
from torch.utils._python_dispatch import TorchDispatchMode

import slth
from slth.models import gpt2
from slth.search import Bernoulli, EdgePopup, Frozen, IteRand
from slth.search.steps.device import DeviceStep, can_fuse
from slth.wrapping import handle

CPU = torch.device("cpu")


CASES = {
    "layer": (wrapped, {}),
    "global": (partial(wrapped, policy="global"), {}),
    "schedule": (wrapped, {"method": EdgePopup(schedule="linear")}),
    "frozen": (wrapped, {"method": Frozen()}),
    "iterand": (wrapped, {"method": IteRand(every=7, rate=0.5)}),
    "gates of its own": (wrapped, {"method": Bernoulli()}),
    "sgd": (wrapped, {"optimiser": sgd}),
    "dropout": (partial(wrapped, dropout=0.2), {}),
    "clipped": (wrapped, {"clip": 0.01}),
    "pieces": (wrapped, {"accumulate": 3}),
    "dense": (net, {}),
}


@pytest.mark.parametrize(("make", "options"), CASES.values(), ids=CASES)
def test_the_devices_step_is_the_hosts(by_device, make, options):
    host = result(make(), **options)
    by_device()
    device = result(make(), **options)
    assert_close(device[1], host[1])
    for ours, theirs in zip(device[0], host[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    recorder = Replayer()
    by_device(recorder)
    replayed = result(make(), **options)
    assert_same(replayed[1], device[1])
    assert replayed[0] == device[0]
    assert recorder.recorded == (0 if isinstance(options.get("method"), Bernoulli) else 1)


# ---------------------------------------------------------------- what ends a run, or a recording


@pytest.mark.parametrize("recorder", [None, Replayer()], ids=["device", "replayed"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_told_by_its_step_and_changes_nothing(by_device, recorder, bad):
    def batch(step):
        x, y = batches(step)
        return x, y * (bad if step >= 11 else 1.0)

    before = wrapped()
    slth.fit(before, batches, loss, 11, warmup=0.0, optimiser=constant_rate, progress=False)
    by_device(recorder)
    model = wrapped()
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step 11"):
        slth.fit(model, batch, loss, 40, warmup=0.0, optimiser=constant_rate, progress=False)
    found = {path: masked.scores for path, masked in handle(model).weights.items()}
    assert all(bool(scores.isfinite().all()) for scores in found.values())


def constant_rate(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


def test_no_step_after_one_that_is_not_finite_moves_a_score():
    model = wrapped()
    step = DeviceStep(training(model), handle(model))
    step.take(batches(0), 0)
    inputs, outputs = batches(1)
    step.take((inputs, outputs * math.nan), 1)
    held = state(model)
    step.take(batches(2), 2)
    assert_same(state(model), held)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        step.settle()


def test_scores_that_become_nan_are_named():
    model = wrapped()
    step = DeviceStep(training(model), handle(model))
    step.take(batches(0), 0)
    next(iter(handle(model).weights.values())).scores.data[0, 0] = math.nan
    step.take(batches(1), 1)
    with pytest.raises(ValueError, match="NaN at step 1"):
        step.settle()


def test_learning_rates_that_the_user_gave_as_tensors_stay_as_they_are(by_device):
    rate = torch.tensor(0.02)
    host = slth.fit(theirs := wrapped(), batches, loss, 8, optimiser=partial(torch.optim.SGD, lr=0.02), progress=False)
    by_device()
    found = slth.fit(ours := wrapped(), batches, loss, 8, optimiser=partial(torch.optim.SGD, lr=rate), progress=False)
    assert rate == torch.tensor(0.02)
    assert_close(state(ours), state(theirs))
    assert found.rows[-1] == pytest.approx(host.rows[-1], rel=1e-4)


# ---------------------------------------------------------------- settings


def test_a_backward_pass_runs_in_the_precision_of_the_forward_one(monkeypatch):
    passes = []

    @contextmanager
    def noted(precision, device):
        passes.append(precision)
        yield

    monkeypatch.setattr("slth.search.steps.training.products", noted)
    model = wrapped()
    DeviceStep(training(model, precision="tf32"), handle(model)).take(batches(0), 0)
    assert passes == ["tf32"]


def test_pieces_of_a_batch_make_the_step_of_the_whole():
    whole, cut = result(wrapped()), result(wrapped(), accumulate=5)
    assert_close(cut[1], whole[1])


def test_bf16_trains_by_autocast_and_scores_stay_float32():
    seen = set()

    def noted(model, batch):
        out = model(batch[0])
        seen.add(out.dtype)
        return (out.float() - batch[1]).square().mean()

    model = wrapped()
    slth.fit(model, batches, noted, 20, lr=0.02, precision="bf16", progress=False)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert regression.error(model) < regression.error(wrapped())


def test_on_the_cpu_auto_is_float32_on_the_host():
    explicit, auto = result(wrapped(), precision="float32", graph=False), result(wrapped())
    assert_same(auto[1], explicit[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision='fp16': must be one of auto, float32, tf32, bf16"),
        ({"precision": "tf32"}, "precision='tf32': needs a CUDA device, the model is on cpu"),
        ({"graph": "always"}, "graph='always': must be auto, True or False"),
        ({"graph": 1}, "graph=1: must be auto, True or False"),
        ({"graph": True}, "graph=True: needs a CUDA device, the model is on cpu"),
        ({"accumulate": 0}, "accumulate=0: must be"),
        ({"accumulate": 33}, "accumulate=33: must be at most 32, the rows of the batch"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        result(wrapped(), **options)


def test_a_checkpoint_of_another_precision_is_another_search(tmp_path):
    result(wrapped(), checkpoint=tmp_path / "c", precision="bf16", accumulate=2)
    with pytest.raises(slth.search.CheckpointError, match=r"accumulate 2 != none; precision bf16 != none"):
        result(wrapped(), checkpoint=tmp_path / "c")


def test_optimisers_that_have_a_fused_form():
    trained = [p for p in wrapped().parameters() if p.requires_grad]
    assert can_fuse(torch.optim.AdamW(trained), CPU)
    assert can_fuse(sgd(trained), CPU)
    assert not can_fuse(torch.optim.AdamW(trained, foreach=True), CPU)
    assert not can_fuse(torch.optim.RMSprop(trained), CPU)
    assert not can_fuse(type("Own", (torch.optim.AdamW,), {})(trained), CPU)


class Operations(TorchDispatchMode):
    """Counts what a GPU would launch: operations that are no views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        allocates = operation._schema.name in ("aten::empty", "aten::empty_like", "aten::detach")
        self.count += not (operation.is_view or allocates)
        return operation(*args, **(kwargs or {}))


def operations(model, masks=None):
    """How many operations a step of a GPT-2 is, but for those of a table."""
    tokens = torch.arange(32).reshape(2, 16)
    step = DeviceStep(replace(training(model), loss=lambda m, x: m(input_ids=x, labels=x).loss), masks)
    step.take(tokens, 0)
    if step.leaves:
        table = step.leaves._table
        cuts = table.cut(step.leaves._kept)
        table.cut, table.write, table.slope = lambda kept: cuts, lambda cuts: None, lambda *of: torch.ones(())
    with Operations() as found:
        step.take(tokens, 1)
    return found.count


def test_a_masked_step_is_hardly_more_launches_than_a_dense_one(monkeypatch):
    """Of 50 masked weights: a table's operations are 12 launches in all, as kernels/README.md says."""
    settings = gpt2.config(vocabulary=64, length=16, n_layer=12, n_embd=24, n_head=2)
    dense = operations(gpt2.build(settings, seed=0))
    monkeypatch.setattr("slth.masking.masked.watched", lambda: False)  # the count is no transform
    model = slth.wrap(gpt2.build(settings, seed=0), keep=0.5)
    assert len(handle(model).weights) == 50
    assert 500 < dense < 800
    assert operations(model, handle(model)) + 12 <= 1.1 * dense
