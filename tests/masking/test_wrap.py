"""Masks on modules of every kind: the network that is seen is the one with zeros in place."""

import copy
import gc
from collections import Counter
from contextlib import nullcontext
from weakref import ref

import pytest
import torch
from cases import WIDTH, Case, every_case
from masked_cases import CASE, KEEP, MLP, autocast, by_hand, mlp, read, shares, wrapped
from torch import nn
from torch._subclasses.fake_tensor import is_fake
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from slth.masking.masks import count_kept
from slth.weights import inits
from slth.weights.recipes import recipe_of
from slth.wrapping import effective, handle, random_weight, wrap

# ---------------------------------------------------------------- masks


@every_case
def test_each_group_keeps_the_exact_count(case):
    model = wrapped(case)
    groups = {}
    for path, mask in handle(model).masks().items():
        groups |= shares(case, path, mask)
    assert {group.name for group in handle(model).groups} == groups.keys()
    for mask in groups.values():
        assert mask.sum() == count_kept(mask.numel(), KEEP)
    assert handle(model).kept() == sum(int(mask.sum()) for mask in groups.values())


@every_case
def test_over_all_weights_the_largest_scores_are_kept(case):
    model = wrapped(case, policy="global")
    masks = torch.cat([mask.flatten() for mask in handle(model).masks().values()])
    scores = torch.cat([s.detach().abs().flatten() for s in handle(model).scores()])
    assert masks.sum() == count_kept(masks.numel(), KEEP) == handle(model).kept()
    assert scores[masks].min() >= scores[~masks].max()


@every_case
def test_a_pruned_weight_is_zero_and_a_kept_one_itself(case):
    before = case.build()
    model = wrapped(case)
    masks = handle(model).masks()
    seen = read(model)
    for path, places in handle(model).paths.items():
        assert places == [path, *case.tied.get(path, [])]
        random = before.get_parameter(path)
        assert random_weight(model, path).equal(random)
        for weight in (effective(model)[path], *(seen[place] for place in places)):
            assert weight.dtype == random.dtype
            assert (weight[~masks[path]] == 0).all()
            assert weight[masks[path]].equal(random[masks[path]])
    others = {name: p for name, p in before.named_parameters(remove_duplicate=False) if name not in seen}
    for name, parameter in others.items():
        assert model.get_parameter(name).equal(parameter)
        assert parameter.dim() < 2 or "bias" in name or (torch.tensor(parameter.shape) > 1).sum() < 2


# ---------------------------------------------------------------- forward and backward


@every_case
@pytest.mark.parametrize(
    ("training", "context"),
    [(True, nullcontext), (True, autocast), (False, torch.no_grad), (False, torch.inference_mode)],
)
def test_the_output_is_that_of_zeros_in_place(case, training, context):
    model = wrapped(case).train(training)
    plain = by_hand(case, handle(model).masks()).train(training)
    with context():
        plain.requires_grad_(torch.is_grad_enabled())  # by which torch chooses between kernels
        out = case.run(model)
        assert out.equal(case.run(plain))
        assert not out.equal(case.run(case.build().train(training)))


@every_case
@pytest.mark.parametrize("context", [nullcontext, autocast])
def test_the_gradient_goes_straight_through_to_the_scores(case, context):
    model, plain = wrapped(case), case.build()
    masks = handle(model).masks()
    pruned = {path: plain.get_parameter(path).clone().masked_fill_(~mask, 0.0) for path, mask in masks.items()}
    for weight in pruned.values():
        weight.retain_grad()
    for layer in plain.modules():
        if getattr(layer, "sparse", False):  # whose gradient no tensor but a leaf takes
            layer.sparse = False
    for module in (model, lambda *inputs, **options: functional_call(plain, pruned, inputs, options)):
        with context():
            loss = case.loss(module)
        loss.backward()
    for path, masked in handle(model).weights.items():
        wanted = pruned[path].grad * random_weight(model, path) * masked.scores.sign()
        assert wanted.any()
        assert masked.scores.grad.equal(wanted.float())
    scores = set(handle(model).scores())
    for parameter in model.parameters():
        assert parameter.requires_grad == (parameter in scores)
        assert (parameter.grad is not None) == (parameter in scores)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("padded", [False, True])
def test_torch_s_fast_path_is_taken_and_masked(padded, monkeypatch):
    case = CASE["torch encoder, evaluation"]
    model = wrapped(case)
    plain = by_hand(case, handle(model).masks())
    fast = torch._transformer_encoder_layer_fwd
    taken = []
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *given: taken.append(1) or fast(*given))
    x = case.inputs()[0]
    padding = torch.arange(x.shape[1]) >= torch.tensor([[x.shape[1]], [4]]) if padded else None
    with torch.inference_mode():
        outs = [net(x, src_key_padding_mask=padding) for net in (model, plain)]
    assert len(taken) == 4  # two layers of each
    assert outs[0].equal(outs[1])


class Checkpointed(nn.Module):
    """Keeps no activations: they are computed again in backward, outside the forward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.net, self.reentrant = mlp(), reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_computed_again_in_backward_are_masked_alike(reentrant):
    case = Case("checkpointed", lambda: Checkpointed(reentrant), lambda: (MLP.inputs()[0].requires_grad_(),))
    model = wrapped(case)
    alone = copy.deepcopy(model)
    case.loss(model).backward()
    MLP.loss(alone.net).backward()
    for scores, wanted in zip(handle(model).scores(), handle(alone).scores(), strict=True):
        assert scores.grad.any()
        assert scores.grad.equal(wanted.grad)


@every_case
@pytest.mark.parametrize("context", [nullcontext, torch.no_grad])
def test_a_mask_is_made_once_in_a_forward_pass(case, context):
    model = wrapped(case)
    made = watch(model)
    for passes in (1, 2):
        with context():
            case.run(model)
        assert Counter(path for path, _ in made) == dict.fromkeys(handle(model).weights, passes)


class Both(nn.Module):
    """Looks at its weights without and with gradients in one pass."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        with torch.no_grad():
            still = self.net(x)
        with torch.inference_mode():
            self.net(x)
        return self.net(x) + still


def test_gradients_flow_where_weights_were_read_without_them_before():
    case = Case("both", Both, MLP.inputs)
    model = wrapped(case)
    alone = copy.deepcopy(model)
    case.loss(model).backward()
    MLP.loss(alone.net).backward()
    for scores, wanted in zip(handle(model).scores(), handle(alone).scores(), strict=True):
        assert scores.grad.equal(wanted.grad)


@every_case
def test_no_masked_weight_outlives_a_step(case):
    model = wrapped(case)
    made = watch(model)
    loss = case.loss(model)
    loss.backward()
    assert loss.isfinite()  # it is alive still
    assert made
    assert not [path for path, weight in made if weight() is not None]
    with torch.no_grad():
        out = case.run(model)
    assert out.isfinite().all()
    assert not [path for path, weight in made if weight() is not None]


def watch(model):
    """A list that fills with (path, weak reference) of each masked weight that is made."""
    made = []

    def watched(gate):
        def watching(masked, weight):
            out = gate(masked, weight)
            made.append((masked.path, ref(out)))
            return out

        return watching

    for masked in handle(model).weights.values():
        masked.gate = watched(masked.gate)
    return made


def tensors_alive():
    """All tensors that hold values: those that the compiler traced with, and may keep, have none to compare."""
    found = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return [t for t in found if not is_fake(t) and not t.is_meta]


@pytest.mark.parametrize("name", ["gpt2", "lstm", "torch encoder, training", "tied"])
def test_no_tensor_at_all_holds_a_masked_weight_after_a_step(name):
    case = CASE[name]
    model = wrapped(case)
    optimiser = torch.optim.Adam(handle(model).scores())
    case.loss(model).backward()
    values = [weight.double().sum() for weight in effective(model).values()]
    optimiser.step()
    optimiser.zero_grad()
    gc.collect()
    shapes = {masked.scores.shape for masked in handle(model).weights.values()}
    alive = [t for t in tensors_alive() if t.shape in shapes]
    assert len(alive) >= len(values)  # scores at least
    assert not [t.shape for t in alive if t.is_floating_point() and t.double().sum() in values]


# ---------------------------------------------------------------- weights and scores


@pytest.mark.parametrize("init", inits.INITS)
def test_weights_are_drawn_by_seed_and_name_for_the_kept_share_of_the_fan(init):
    model = wrap(mlp(), {"0.*": 0.25, "*": 0.5}, weights=init, seed=3)
    for path, shape, keep in (("0.weight", (20, WIDTH), 0.25), ("2.weight", (5, 20), 0.5)):
        fan = inits.Fan(fan_in=shape[1], fan_out=shape[0], width=shape[0], keep=keep)
        wanted = inits.weight(init, shape, fan, seed=3, name=path)
        assert random_weight(model, path).equal(wanted)
        assert recipe_of(model, path).tensor(shape).equal(wanted)


def test_what_is_fused_is_drawn_as_apart_would_be():
    case = CASE["gpt2"]
    model = wrapped(case, weights="theory", seed=5)
    weight = random_weight(model, "transformer.h.1.attn.c_attn.weight")
    for piece, role in zip(weight.chunk(3, dim=1), ["query", "key", "value"], strict=True):
        fan = inits.Fan(WIDTH, WIDTH, width=8, role=role, keep=KEEP)
        name = f"transformer.h.1.attn.c_attn.weight.{role}"
        assert piece.equal(inits.weight("theory", (WIDTH, WIDTH), fan, seed=5, name=name))
    wanted = case.loss(model)
    again = wrap(case.build(seed=9), KEEP, weights="theory", seed=5)
    for name, parameter in again.named_parameters():
        if "bias" not in name and "ln_" not in name:
            assert parameter.equal(model.get_parameter(name))
    assert case.loss(again).equal(wanted)


def test_weights_by_pattern_leave_the_others_as_they_are():
    before = MLP.build()
    model = wrapped(MLP, weights={"2.*": "signed_constant"}, seed=1)
    assert random_weight(model, "0.weight").equal(before.get_parameter("0.weight"))
    assert recipe_of(model, "0.weight") is None
    assert random_weight(model, "2.weight").abs().unique().numel() == 1
    assert recipe_of(model, "2.weight") is not None


def test_scores_start_as_they_are_named():
    model = wrapped(MLP, scores="kaiming_uniform", seed=4)
    for path, masked in handle(model).weights.items():
        shape = masked.scores.shape
        assert masked.scores.equal(inits.uniform(shape, shape[1] ** -0.5, seed=4, name=f"scores/{path}"))
    model = wrapped(MLP, scores="magnitude")
    for path, mask in handle(model).masks().items():
        weight = random_weight(model, path).abs()
        assert weight[mask].min() >= weight[~mask].max()
    model = wrapped(MLP, scores="constant")
    for mask in handle(model).masks().values():
        assert mask.flatten().equal(torch.arange(mask.numel()) < count_kept(mask.numel(), KEEP))


def test_scores_of_drawn_weights_see_these():
    model = wrapped(MLP, scores="magnitude", weights="kaiming_normal")
    for path, masked in handle(model).weights.items():
        assert masked.scores.equal(random_weight(model, path).abs())
