"""Masks from scores at initialisation and quantised training, each beside its formula in plain torch."""

import copy
import itertools

import pytest
import regression
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regression import PATHS, batches, loss, weights_of, wrapped
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import slth
from slth.models import gpt2
from slth.search import baselines, controls
from slth.search.baselines import flow as flows
from slth.search.baselines import problem as problems
from slth.wrapping import effective, handle, random_weight

every_baseline = pytest.mark.parametrize("name", baselines.BASELINES)
every_quantised = pytest.mark.parametrize("name", baselines.QUANTISED)
TOKENS = torch.arange(48).reshape(4, 12) * 7 % 32


def token_loss(model, tokens):
    return cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def small_gpt2(**options):
    config = gpt2.config("tiny", width=0.25, vocabulary=32, length=12)
    return slth.wrap(gpt2.build(config, base_std=0.07), **{"keep": 0.3} | options)


def masks_of(model, name, **options):
    baselines.mask(model, name, batches, loss, **options)
    return handle(model).masks()


def largest(saliency, count):
    """The mask of the largest, by numpy's stable sort of all."""
    order = (-saliency.flatten().double().numpy()).argsort(kind="stable")[:count]
    mask = torch.zeros(saliency.numel(), dtype=torch.bool)
    mask[torch.from_numpy(order.copy())] = True
    return mask.reshape(saliency.shape)


# ---------------------------------------------------------------- what all keep


@every_baseline
@pytest.mark.parametrize("policy", ["layer", "global"])
def test_as_many_are_kept_as_keep_says(name, policy):
    model = small_gpt2(policy=policy)
    before = {path: weight.clone() for path, weight in weights_of(model).items()}
    kinds = [(group.name, group.size, group.keep) for group in handle(model).groups]
    handle(model).set_progress("cubic", 0.1)
    model.transformer.h[1].train()
    baselines.mask(model, name, lambda step: TOKENS, token_loss, seed=3)
    wrapped_model = handle(model)
    kept = wrapped_model.masks()
    assert [(group.name, group.size, group.keep) for group in wrapped_model.groups] == kinds
    for group in wrapped_model.groups:
        count = sum(int(masked.parts[i].of(kept[masked.path]).sum()) for masked, i in group.members)
        assert count == int(0.3 * group.size + 0.5)
    assert all(random_weight(model, path).equal(weight) for path, weight in before.items())
    assert all(set(masked.scores.unique().tolist()) == {0.0, 1.0} for masked in wrapped_model.weights.values())
    assert model.transformer.h[1].training
    assert not any(parameter.grad is not None for parameter in model.parameters())


@every_baseline
def test_a_second_call_gives_the_same(name):
    model = wrapped()
    first = masks_of(model, name)
    controls.random_mask(model, seed=9)
    second = masks_of(model, name)
    assert all(first[path].equal(second[path]) for path in PATHS)


def test_ties_go_to_the_lowest_index():
    kept = masks_of(wrapped(weights="signed_constant"), "magnitude")
    for mask in kept.values():
        assert mask.flatten().diff().count_nonzero() == 1
        assert mask.flatten()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "snap"}, "name='snap': must be one of random, magnitude, snip, grasp, synflow"),
        ({"name": "snip"}, "name='snip': must have batches and loss"),
        ({"name": "synflow", "batches": batches}, "name='synflow': must have batches and loss"),
        ({"name": "random", "seed": 0.5}, "seed=0.5: must be an int"),
    ],
)
def test_what_is_refused(arguments, message):
    model = wrapped()
    before = {path: masked.scores.clone() for path, masked in handle(model).weights.items()}
    with pytest.raises(ValueError, match=message):
        baselines.mask(model, **arguments)
    with pytest.raises(ValueError, match="is not wrapped"):
        baselines.mask(regression.net(), "random")
    assert all(masked.scores.equal(before[path]) for path, masked in handle(model).weights.items())


def test_saliencies_that_are_not_finite_change_nothing():
    model = wrapped()
    before = {path: masked.scores.clone() for path, masked in handle(model).weights.items()}
    with pytest.raises(ValueError, match=r"^0\.weight: its saliencies are not finite"):
        baselines.mask(model, "snip", batches, lambda model, batch: loss(model, batch) * torch.inf)
    assert all(masked.scores.equal(before[path]) for path, masked in handle(model).weights.items())


# ---------------------------------------------------------------- formulas


def test_random_is_the_random_mask_of_the_controls():
    model, other = wrapped(), wrapped()
    kept = masks_of(model, "random", seed=5)
    controls.random_mask(other, seed=5)
    assert all(kept[path].equal(mask) for path, mask in handle(other).masks().items())


def test_magnitude():
    model = wrapped()
    kept = masks_of(model, "magnitude")
    for path, weight in weights_of(model).items():
        assert kept[path].equal(largest(weight.abs(), int(kept[path].sum())))


def test_snip_is_the_gradient_of_a_mask_of_ones():
    model, plain = wrapped(), regression.net()
    weights = weights_of(model)
    kept = masks_of(model, "snip")
    inputs, outputs = batches(0)

    ones = {path: torch.ones_like(weight, requires_grad=True) for path, weight in weights.items()}
    masked = {path: ones[path] * weight for path, weight in weights.items()}
    (functional_call(plain, masked, (inputs,)) - outputs).square().mean().backward()
    for path in PATHS:
        wanted = largest(ones[path].grad.abs(), int(kept[path].sum()))
        assert (kept[path] == wanted).float().mean() > 0.998  # rounding may move one across the cut


def tiny():
    """A network whose whole Hessian can be written down, in float64."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()


X, Y = torch.linspace(-1, 2, 24).reshape(6, 4).double().cos(), torch.linspace(0, 1, 12).reshape(6, 2).double()


def tiny_loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def test_grasp_is_the_weight_times_hessian_and_gradient():
    plain, model = tiny(), slth.wrap(tiny(), 0.4, policy="global")
    baselines.mask(model, "grasp", [(X, Y)], tiny_loss)
    kept = torch.cat([mask.flatten() for mask in handle(model).masks().values()])
    flat = torch.cat([p.detach().flatten() for p in plain.parameters()])

    def loss_of(vector):
        first, second = vector.split([20, 10])
        return (((X @ first.reshape(5, 4).T).tanh() @ second.reshape(2, 5).T) - Y).square().mean()

    def slope_at(vector):
        return torch.autograd.grad(loss_of(there := vector.clone().requires_grad_()), there)[0]

    slope = slope_at(flat)
    score = -flat * (hessian(loss_of, flat) @ slope)  # of Wang et al., who remove the highest
    removed = score.argsort(descending=True)[: 30 - 12]
    assert not kept[removed].any()
    assert kept.sum() == 12
    step = 1e-6  # what the score means: the change of |g|^2 when a part of the weight is removed
    for i in (int(score.argmax()), int(score.argmin())):
        less = flat.clone()
        less[i] *= 1 - step
        change = slope_at(less).square().sum() - slope.square().sum()
        assert float(change / step) == pytest.approx(2 * float(score[i]), rel=1e-3)


# ---------------------------------------------------------------- synflow


def perceptron(widths, seed=0, bias=False):
    torch.manual_seed(seed)
    layers = [[nn.Linear(a, b, bias=bias), nn.ReLU()] for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[each for pair in layers for each in pair][:-1]).double()


def of_perceptron(model):
    inputs = torch.zeros(3, next(model.children()).in_features, dtype=torch.float64)
    return problems.Problem(model, "synflow", [inputs], lambda net, x: net(x).mean(), 0)


def plain_synflow(matrices, counts):
    """Tanaka et al. by products of matrices alone: masks of (out, in) that keep so many, per layer and step."""
    kept = [torch.ones_like(m, dtype=torch.bool) for m in matrices]
    for now in counts:
        sizes = [m.abs() * k for m, k in zip(matrices, kept, strict=True)]
        for i, size in enumerate(sizes):
            before = torch.ones(sizes[0].shape[1], dtype=torch.float64)
            after = torch.ones(sizes[-1].shape[0], dtype=torch.float64)
            for earlier in sizes[:i]:
                before = earlier @ before
            for later in reversed(sizes[i + 1 :]):
                after = later.T @ after
            score = torch.where(kept[i], size * after[:, None] * before[None, :], -1.0)
            kept[i] = largest(score, now[i])
    return kept


def test_synflow_is_the_flow_of_products_of_matrices():
    model = slth.wrap(perceptron([5, 9, 7, 3]), 0.3)
    matrices = [weight.double() for weight in weights_of(model).values()]
    counts = [[int(0.3 ** (k / 100) * m.numel() + 0.5) for m in matrices] for k in range(1, 101)]
    baselines.mask(model, "synflow", [torch.zeros(2, 5, dtype=torch.float64)], lambda net, x: net(x).mean())
    for mask, wanted in zip(handle(model).masks().values(), plain_synflow(matrices, counts), strict=True):
        assert mask.equal(wanted)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=6), st.integers(0, 100))
@settings(max_examples=12, deadline=None)
def test_the_flow_of_every_layer_is_the_same(widths, seed):
    model = slth.wrap(perceptron(widths, seed), 0.5)
    sums = [float(saliency.sum()) for saliency in flows.synflow(of_perceptron(model), steps=1).values()]
    flow = torch.ones(widths[0], dtype=torch.float64)
    for weight in weights_of(model).values():
        flow = weight.abs() @ flow
    assert sums == pytest.approx([float(flow.sum())] * len(sums), rel=1e-9)


@given(st.lists(st.integers(2, 12), min_size=4, max_size=4), st.integers(0, 100))
@settings(max_examples=12, deadline=None)
def test_the_flow_into_a_unit_is_the_flow_out_of_it(widths, seed):
    model = slth.wrap(perceptron(widths, seed), 0.5)
    found = list(flows.synflow(of_perceptron(model), steps=1).values())
    for before, after in itertools.pairwise(found):
        assert before.sum(1).tolist() == pytest.approx(after.sum(0).tolist(), rel=1e-9)


def test_no_layer_collapses():
    widths = [20, 100, 10, 10]
    model = slth.wrap(perceptron(widths), 0.02, policy="global")
    with torch.no_grad():
        random_weight(model, "2.weight").mul_(0.01)
    baselines.mask(model, "magnitude")
    assert not handle(model).masks()["2.weight"].any()
    baselines.mask(model, "synflow", [torch.zeros(1, 20, dtype=torch.float64)], lambda net, x: net(x).mean())
    assert all(mask.any() for mask in handle(model).masks().values())


def test_the_flow_through_attention_is_that_of_each_of_its_matrices():
    model = small_gpt2()
    problem = problems.Problem(model, "synflow", [TOKENS], token_loss, 0)
    found = flows.synflow(problem, steps=1)
    for i in range(4):
        query, key, value = (p.sum() for p in found[f"transformer.h.{i}.attn.c_attn.weight"].chunk(3, dim=1))
        output = found[f"transformer.h.{i}.attn.c_proj.weight"].sum()
        assert float(query) > 0
        assert [float(each) for each in (query, key, value)] == pytest.approx([float(output)] * 3, rel=1e-4)
    assert all((saliency > 0).all() for saliency in found.values())
    rows = found["transformer.wpe.weight"]
    assert rows.sum(1).min() > 0.1 * rows.sum(1).max()  # all rows at every token


def test_synflow_leaves_the_rest_as_it_was():
    model = slth.wrap(perceptron([4, 6, 2], bias=True), 0.5)
    before = {name: tensor.clone() for name, tensor in model.named_parameters() if name.endswith("bias")}
    assert any((tensor < 0).any() for tensor in before.values())
    baselines.mask(model, "synflow", [torch.zeros(2, 4, dtype=torch.float64)], lambda net, x: net(x).mean())
    assert all(tensor.equal(before[name]) for name, tensor in model.named_parameters() if name in before)
    assert len(model._forward_pre_hooks) == len(model._forward_hooks) == 1  # of wrap
    assert handle(model).leaves is None


# ---------------------------------------------------------------- quantised training


def formula(name, weight):
    scale = weight.abs().mean()
    if name == "binary":
        return torch.where(weight >= 0, scale, -scale)
    return (weight / (scale + 1e-5)).round().clamp(-1, 1) * scale


@every_quantised
def test_quantised_weights_are_seen_and_gradients_go_straight_through(name):
    model, plain = wrapped(), regression.net()
    weights = weights_of(model)
    baselines.quantise(model, name)
    loss(model, batches(0)).backward()
    with torch.no_grad():
        for path, weight in weights.items():
            plain.get_parameter(path).copy_(formula(name, weight))
    loss(plain, batches(0)).backward()
    for path in PATHS:
        assert effective(model)[path].equal(plain.get_parameter(path))
        torch.testing.assert_close(random_weight(model, path).grad, plain.get_parameter(path).grad)
        assert not handle(model).weights[path].scores.requires_grad


@every_quantised
def test_each_part_of_a_fused_weight_has_a_scale_of_its_own(name):
    module = slth.wrap(nn.MultiheadAttention(16, 2), weights="kaiming_normal", keep=0.5)
    with torch.no_grad():
        random_weight(module, "in_proj_weight")[16:32].mul_(3.0)
    baselines.quantise(module, name)
    seen = effective(module)["in_proj_weight"]
    for rows in (slice(0, 16), slice(16, 32), slice(32, 48)):
        assert seen[rows].equal(formula(name, random_weight(module, "in_proj_weight").detach()[rows]))


@every_quantised
def test_quantised_training_learns_and_goes_on_from_a_checkpoint(name, tmp_path):
    def trained(checkpoint=None, stop=None):
        model = wrapped()
        baselines.quantise(model, name)

        def ending(step):
            if step == stop:
                raise KeyboardInterrupt
            return batches(step)

        slth.fit(model, ending, loss, 60, lr=0.02, checkpoint=checkpoint, save_every=10, progress=False)
        return model

    start = wrapped()
    baselines.quantise(start, name)
    model = trained()
    assert loss(model, batches(0)) < 0.5 * loss(start, batches(0))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "kept", stop=35)
    resumed = trained(tmp_path / "kept")
    for path, value in effective(model).items():
        assert value.equal(effective(resumed)[path])
        assert value.equal(formula(name, random_weight(model, path).detach()))
    assert effective(copy.deepcopy(model))["0.weight"].equal(effective(model)["0.weight"])


def test_unknown_quantisation_is_refused():
    model = wrapped()
    with pytest.raises(ValueError, match="name='octal': must be one of binary, ternary"):
        baselines.quantise(model, "octal")
    assert handle(model).weights["0.weight"].scores.requires_grad
