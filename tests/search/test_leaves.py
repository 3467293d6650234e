"""Masked weights as leaves of a training step."""

import pytest
import torch
from helpers import compiles
from regression import PATHS, batches, loss, state, weights_of, wrapped
from stepping import Replayer, assert_close, result, training
from torch import nn
from torch.utils.checkpoint import checkpoint

import slth
from slth.masking.leaves import Leaves
from slth.models import gpt2
from slth.search import EdgePopup
from slth.search.steps.device import DeviceStep
from slth.wrapping import handle, random_weight


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


def test_what_is_no_product_keeps_its_precision():
    """Autocast promotes bilinear layers, and another parametrization may read the masked weight."""
    model = nn.ModuleDict({"bilinear": nn.Bilinear(3, 3, 2), "normed": nn.Linear(4, 4)})
    slth.wrap(model, keep=0.5)
    nn.utils.parametrizations.spectral_norm(model["normed"])
    leaves = Leaves.of(model, handle(model), torch.bfloat16)
    assert {leaf.dtype for leaf in leaves._leaves.values()} == {torch.float32}


def test_gradients_of_pieces_add_up_in_float32():
    model = wrapped()
    whole, cut = (DeviceStep(training(model, precision="bf16", accumulate=count), handle(model)) for count in (1, 4))
    assert {leaf.dtype for leaf in whole.leaves._leaves.values()} == {torch.bfloat16}
    assert {leaf.dtype for leaf in cut.leaves._leaves.values()} == {torch.float32}


def test_layers_in_channels_last_have_no_leaves(by_device):
    def conv():
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
        net(torch.ones(1, 3, 5, 5))
        inits = [torch.linspace(-1, 1, p.numel()).reshape(p.shape) for p in net.parameters()]
        for p, value in zip(net.parameters(), inits, strict=True):
            p.data = value
        return slth.wrap(net, keep=0.5).to(memory_format=torch.channels_last)

    def squares(model, x):
        return (model(x) - 1.0).square().mean()

    images = torch.linspace(-1, 1, 300).reshape(4, 3, 5, 5)
    slth.fit(theirs := conv(), lambda step: images, squares, 3, progress=False)
    by_device()
    slth.fit(ours := conv(), lambda step: images, squares, 3, progress=False)
    assert Leaves.of(ours, handle(ours), torch.float32) is None
    assert_close(state(ours), state(theirs))


def test_a_mask_that_the_loss_reads_is_that_of_the_step(by_device):
    found = []

    def noted(model, batch):
        found.append(int(handle(model).weights[PATHS[0]].mask().sum()))
        return loss(model, batch)

    def counts():
        found.clear()
        slth.fit(wrapped(), batches, noted, 8, method=EdgePopup(schedule="linear"), lr=1e-12, progress=False)
        return list(found)

    host = counts()
    assert len(set(host)) > 3
    by_device()
    assert counts() == host


def test_other_scores_in_a_functional_call_are_masked_by_themselves(by_device):
    def by_others(model, batch):
        others = {name: p.flip(0) for name, p in model.named_parameters() if name.endswith(".scores")}
        return (torch.func.functional_call(model, others, (batch[0],)) - batch[1]).square().mean() + loss(model, batch)

    slth.fit(theirs := wrapped(), batches, by_others, 4, progress=False)
    by_device()
    slth.fit(ours := wrapped(), batches, by_others, 4, progress=False)
    assert_close(state(ours), state(theirs))


def test_an_autocast_around_the_training_keeps_no_leaf(by_device):
    def trained():
        with torch.autocast("cpu", torch.bfloat16):
            slth.fit(model := wrapped(), batches, loss, 12, lr=0.02, progress=False, seed=3)
        return state(model)

    host = trained()
    by_device()
    for name, tensor in trained().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, host[name], rtol=2e-2, atol=2e-3)


def test_leaves_are_the_masked_weights():
    model = wrapped(keep=0.3)
    expected = [model.get_submodule(path.rpartition(".")[0]).weight.detach().clone() for path in PATHS]
    leaves = Leaves.of(model, handle(model), torch.float32)
    leaves.follow_keep()
    assert not leaves.write()
    with leaves.standing_in():
        for path, weight in zip(PATHS, expected, strict=True):
            assert model.get_submodule(path.rpartition(".")[0]).weight.equal(weight)


def test_weights_under_leaves_are_untouched(by_device):
    by_device()
    model = wrapped()
    before = weights_of(model)
    slth.fit(model, batches, loss, 5, progress=False)
    assert all(random_weight(model, path).equal(before[path]) for path in PATHS)
