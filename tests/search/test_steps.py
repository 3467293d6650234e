"""Steps of a device, and recordings of them, do what the host's step does; tried on the CPU, where no graph is."""

import logging
import math
from dataclasses import replace
from functools import partial

import pytest
import regression
import torch
from helpers import compiles
from regression import PATHS, assert_same, batches, loss, net, state, weights_of, wrapped
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import slth
from slth.masking.leaves import Leaves
from slth.models import gpt2
from slth.search import Bernoulli, EdgePopup, Frozen, IteRand, steps
from slth.search.steps.device import DeviceStep, can_fuse
from slth.search.steps.graph import GraphStep
from slth.wrapping import handle, random_weight

CPU = torch.device("cpu")


class Replayer:
    """Stands in for CUDA graphs: work that was recorded is done by Python at each replay, into the same tensor."""

    def __init__(self):
        self.recorded = 0

    def record(self, work):
        self.recorded += 1
        out = []

        def replay():
            out.append(work())
            return out[0].copy_(out.pop()) if len(out) > 1 else out[0]

        return replay


class Broken:
    """A recorder of what cannot be recorded."""

    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def by_device(monkeypatch):
    """Have fit leave its steps to the device, recorded by a Replayer or not."""

    def use(recorder=None):
        def choose(training, masks, graph, name):
            step = DeviceStep(training, masks)
            return GraphStep(step, name, recorder) if recorder else step

        monkeypatch.setattr(steps, "choose", choose)

    return use


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def result(model, **options):
    """The rows of a training of 24 steps, and the model's tensors then."""
    found = slth.fit(model, batches, loss, 24, **({"lr": 0.02, "progress": False, "seed": 3} | options))
    return found.rows, state(model)


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


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


def test_a_gpt2_trains_by_its_leaves(by_device):
    """Fused query, key and value in columns, and a table that is tied to the output."""

    def trained():
        settings = gpt2.config(vocabulary=17, length=8, n_layer=1, n_embd=12, n_head=2)
        model = slth.wrap(gpt2.build(settings, seed=0), keep=0.5)
        tokens = torch.arange(24).reshape(3, 8) % 17
        slth.fit(
            model, lambda step: tokens, lambda m, x: m(input_ids=x, labels=x).loss, 6, lr=0.02, progress=False, seed=1
        )
        return state(model)

    host = trained()
    by_device(Replayer())
    assert_close(trained(), host)


def test_layers_computed_again_read_the_same_leaves(by_device):
    def again(model, batch):
        x = checkpoint(model[:3], batch[0], use_reentrant=False)
        return (model[3](x) - batch[1]).square().mean()

    host = slth.fit(model := wrapped(), batches, again, 5, progress=False)
    by_device()
    device = slth.fit(ours := wrapped(), batches, again, 5, progress=False)
    assert_close(state(ours), state(model))
    assert device.rows[-1] == pytest.approx(host.rows[-1], rel=1e-5)


def test_a_penalty_on_scores_counts_beside_their_masks_gradient(by_device):
    def penalised(model, batch):
        return loss(model, batch) + sum(m.scores.square().sum() for m in handle(model).weights.values())

    slth.fit(host := wrapped(), batches, penalised, 5, progress=False)
    by_device(Replayer())
    slth.fit(device := wrapped(), batches, penalised, 5, progress=False)
    assert_close(state(device), state(host))


@compiles
def test_a_compiled_model_trains_though_it_reads_no_leaves(by_device):
    host = result(wrapped())
    by_device()
    model = wrapped()
    slth.fit(torch.compile(model, backend="eager"), batches, loss, 24, lr=0.02, progress=False, seed=3)
    assert_close(state(model), host[1])


def test_products_alone_are_in_the_lower_precision():
    model = slth.wrap(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7), nn.LayerNorm(7)), keep=0.5)
    leaves = Leaves.of(model, handle(model), torch.bfloat16)
    with leaves.standing_in():
        leaves.follow_keep()
        leaves.write()
        assert model[0].weight.dtype == torch.float32
        assert model[1].weight.dtype == torch.bfloat16
    assert model[1].weight.dtype == torch.float32
    tied = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    tied[1].weight = tied[0].weight
    tied = slth.wrap(tied, keep=0.5)
    leaves = Leaves.of(tied, handle(tied), torch.bfloat16)
    with leaves.standing_in():
        assert tied[1].weight.dtype == torch.float32


def test_leaves_are_the_masked_weights():
    model = wrapped(keep=0.3)
    expected = [model.get_submodule(path.rpartition(".")[0]).weight.detach().clone() for path in PATHS]
    leaves = Leaves.of(model, handle(model), torch.float32)
    leaves.follow_keep()
    assert not leaves.write()
    with leaves.standing_in():
        for path, weight in zip(PATHS, expected, strict=True):
            assert model.get_submodule(path.rpartition(".")[0]).weight.equal(weight)


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


def training(model, **options):
    trained = [p for p in model.parameters() if p.requires_grad]
    return steps.Training(model, loss, torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0), trained, **options)


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


# ---------------------------------------------------------------- settings


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
        ({"graph": True}, "graph=True: needs a CUDA device, the model is on cpu"),
        ({"accumulate": 0}, "accumulate=0: must be"),
        ({"accumulate": 33}, "batch of 32 rows: must have one or more for each of accumulate=33 pieces"),
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


def test_weights_under_leaves_are_untouched(by_device):
    by_device()
    model = wrapped()
    before = weights_of(model)
    slth.fit(model, batches, loss, 5, progress=False)
    assert all(random_weight(model, path).equal(before[path]) for path in PATHS)
