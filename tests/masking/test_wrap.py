"""Masks on modules of every kind: the network that is seen is the one with zeros in place, and nothing else changes."""

import copy
import gc
import io
import shutil
from collections import Counter
from contextlib import nullcontext
from weakref import ref

import data_parallel
import numpy as np
import pytest
import torch
from cases import CASES, WIDTH, Case, every_case
from helpers import compiles
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import is_fake
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import slth
from slth.masking.masks import count_kept
from slth.weights import inits
from slth.weights.recipes import recipe_of
from slth.wrapping import effective, handle, random_weight, unwrap, wrap

KEEP = 0.3
CASE = {case.name: case for case in CASES}


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 20), nn.Tanh(), nn.Linear(20, 5))


MLP = Case("mlp", mlp, CASE["slth feed-forward"].inputs)


def wrapped(case, **options):
    return wrap(case.build(), **{"keep": KEEP} | options)


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def by_hand(case, masks):
    """The case's network with zeros where the masks prune."""
    module = case.build()
    with torch.no_grad():
        for path, mask in masks.items():
            module.get_parameter(path).masked_fill_(~mask, 0.0)
    return module


def sorted_masks(model):
    """The masks of a model whose groups are single weights, by a stable sort of the scores as they are now."""
    masks = {}
    for path, masked in handle(model).weights.items():
        order = np.argsort(-np.abs(masked.scores.detach().numpy()), axis=None, kind="stable")
        masks[path] = torch.zeros(masked.scores.shape, dtype=torch.bool)
        masks[path].view(-1)[order[: count_kept(order.size, KEEP)]] = True
    return masks


@torch.no_grad()
def move(model):
    """Give every score to another weight, by which all masks change."""
    for scores in handle(model).scores():
        scores.copy_(scores.flatten().flip(0).reshape(scores.shape))


def read(model):
    """Masked weights as the modules that hold them see them, by every name."""
    found = {}
    for places in handle(model).paths.values():
        for place in places:
            prefix, _, name = place.rpartition(".")
            found[place] = getattr(model.get_submodule(prefix), name)
    return found


# ---------------------------------------------------------------- masks


def shares(case, path, mask):
    """Names and masks of the groups of one weight: one, or those of what is fused in it along its longest axis."""
    roles = case.parts.get(path)
    if roles is None:
        return {path: mask}
    pieces = mask.chunk(len(roles), dim=int(np.argmax(mask.shape)))
    return {f"{path}[{role}]": piece for role, piece in zip(roles, pieces, strict=True)}


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


# ---------------------------------------------------------------- when masks are looked at anew


@every_case
def test_weights_read_outside_a_forward_pass_are_masked_by_the_scores_of_the_moment(case):
    model = wrapped(case)
    before = handle(model).masks()
    move(model)
    seen = read(model)
    for path, mask in handle(model).masks().items():
        assert not mask.equal(before[path])
        for place in handle(model).paths[path]:
            assert seen[place].equal(random_weight(model, path).masked_fill(~mask, 0.0))


def test_a_part_of_the_model_alone_is_masked_and_gives_gradients():
    case = CASE["gpt2"]
    model = wrapped(case)
    move(model)
    plain = by_hand(case, copy.deepcopy(handle(model)).masks())
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    out, wanted = (net.transformer.h[1](x) for net in (model, plain))
    assert out.equal(wanted)
    out.sum().backward()
    inside = [m for path, m in handle(model).weights.items() if path.startswith("transformer.h.1.")]
    assert len(inside) == 4
    assert all(masked.scores.grad.any() for masked in inside)


OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=10.0, foreach=False),
    "sgd, foreach": lambda p: torch.optim.SGD(p, lr=10.0, momentum=0.9, foreach=True),
    "sgd, fused": lambda p: torch.optim.SGD(p, lr=10.0, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1.0, foreach=False),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=1.0, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=1.0, fused=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=1.0, fused=True),
    "adagrad, fused": lambda p: torch.optim.Adagrad(p, lr=1.0, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1.0),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_what_an_optimiser_does_is_seen_in_the_next_pass(optimiser):
    model = wrapped(MLP)
    built = OPTIMISERS[optimiser](handle(model).scores())
    for _ in range(3):
        before = sorted_masks(model)
        built.zero_grad()
        MLP.loss(model).backward()
        built.step()
        masks = sorted_masks(model)
        assert any(not mask.equal(before[path]) for path, mask in masks.items())
        assert MLP.run(model).equal(MLP.run(by_hand(MLP, masks)))


def test_scores_that_are_replaced_are_seen():
    model = wrapped(MLP)
    fresh = [inits.uniform((20, WIDTH), 1.0, seed=seed, name="fresh") for seed in range(40)]
    for scores in zip(fresh[::2], fresh[1::2], strict=True):
        for each in scores:  # the second may lie where the first of all has lain
            handle(model).weights["0.weight"].scores = nn.Parameter(each)
        assert MLP.run(model).equal(MLP.run(by_hand(MLP, sorted_masks(model))))


def test_nan_among_the_scores_is_named_and_can_be_put_right():
    model = wrapped(MLP)
    before = MLP.run(model)
    scores = handle(model).weights["2.weight"].scores
    kept = scores.detach().clone()
    with torch.no_grad():
        scores[1, 2] = float("nan")
    for call in (MLP.run, read, effective, lambda model: handle(model).masks()):
        with pytest.raises(ValueError, match=r"2\.weight: scores hold NaN"):
            call(model)
    with torch.no_grad():
        scores.copy_(kept)
    assert MLP.run(model).equal(before)


@pytest.mark.parametrize(
    ("case", "stop"),
    [
        *((case, RuntimeError) for case in CASES),
        *((CASE[name], KeyboardInterrupt) for name in ("gpt2", "lstm", "tied")),
    ],
    ids=lambda given: getattr(given, "name", str(given)),
)
def test_a_forward_pass_that_was_broken_off_leaves_nothing_behind(case, stop):
    model = wrapped(case)
    wanted = case.run(model)
    last = list(handle(model).weights.values())[-1]
    gate = last.gate

    def broken(masked, weight):
        raise stop

    last.gate = broken
    move(model)
    with pytest.raises(stop):
        case.run(model)
    last.gate = gate
    move(model)  # back
    if stop is RuntimeError:  # no hook of torch's hears of an interrupt
        masks = handle(model).masks()
        for path, places in handle(model).paths.items():
            random = random_weight(model, path)
            assert all(read(model)[place].equal(random.masked_fill(~masks[path], 0.0)) for place in places)
    assert case.run(model).equal(wanted)
    case.loss(model).backward()


# ---------------------------------------------------------------- copies and files


@every_case
def test_copies_go_their_own_way(case):
    if case.name == "weight_norm, older":
        with pytest.raises(RuntimeError, match="deepcopy protocol"):  # which torch refuses, wrapped or not
            copy.deepcopy(case.build())
        return
    model = wrapped(case)
    copies = [copy.deepcopy(model)]
    before = case.run(model)
    copies.append(copy.deepcopy(model))
    case.loss(model).backward()
    copies.append(copy.deepcopy(model))
    copies += [copy.deepcopy(each) for each in copies]
    for each in copies:
        assert case.run(each).equal(before)
    move(copies[0])
    after = case.run(copies[0])
    assert not after.equal(before)
    unwrap(copies[1])
    for each in (model, *copies[1:]):
        assert case.run(each).equal(before)
    move(model)
    unwrap(copies[2])
    assert case.run(model).equal(after)
    for each in copies[3:]:
        assert case.run(each).equal(before)
        assert not shared(each, model)


def shared(one, other):
    states = one.state_dict(), other.state_dict()  # both alive: what is made for them has memory of its own
    return {t.data_ptr() for t in states[0].values()} & {t.data_ptr() for t in states[1].values()}


@every_case
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_brings_scores_and_weights_to_another_wrapped_module(case, assign):
    model, other = wrapped(case), wrap(case.build(seed=1), KEEP, seed=1)
    move(model)
    wanted = case.run(model)
    assert not case.run(other).equal(wanted)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert case.run(other).equal(wanted)
    assert all(mask.equal(handle(model).masks()[path]) for path, mask in handle(other).masks().items())
    case.loss(other).backward()
    assert unwrap(other).state_dict().keys() == case.build().state_dict().keys()


def test_scores_stay_float32_where_the_weights_change_type():
    model = wrapped(MLP)
    masks, scores = handle(model).masks(), [s.detach().clone() for s in handle(model).scores()]
    model.bfloat16().double()
    assert {p.dtype for p in unwrap(copy.deepcopy(model)).parameters()} == {torch.float64}
    assert all(s.equal(same) for s, same in zip(scores, handle(model).scores(), strict=True))
    assert all(mask.equal(masks[path]) for path, mask in handle(model).masks().items())
    model(MLP.inputs()[0].double()).sum().backward()


# ---------------------------------------------------------------- unwrapped


def described(module):
    return {
        "classes": [(name, type(m), m.training) for name, m in module.named_modules()],
        "parameters": [(n, id(p), p.requires_grad) for n, p in module.named_parameters(remove_duplicate=False)],
        "attributes": [vars(m).keys() for m in module.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "state": list(module.state_dict()),
    }


@every_case
def test_unwrapped_it_is_a_plain_module_with_zeros_in_place(case):
    module = case.build()
    case.loss(module).backward()  # it was trained, say
    for parameter in list(module.parameters())[::2]:
        parameter.requires_grad_(False)
    called = []
    list(module.modules())[-1].register_forward_hook(lambda *_: called.append(1))
    before = described(module)
    model = wrap(module, KEEP)
    assert all(parameter.grad is None for parameter in model.parameters())
    case.loss(model).backward()
    masks = handle(model).masks()
    with torch.no_grad():
        wanted = case.run(model)
    assert unwrap(model) is model is module
    assert described(module) == before
    plain = by_hand(case, masks)
    assert all(p.equal(plain.get_parameter(name)) for name, p in module.named_parameters())
    with torch.no_grad():
        assert case.run(module.requires_grad_(False)).equal(wanted)
    with pytest.raises(ValueError, match=r"is not wrapped: must come from slth\.wrap"):
        unwrap(module)
    assert case.run(wrap(module, KEEP)).isfinite().all()


@every_case
def test_an_unwrapped_module_can_be_pickled(case):
    module = unwrap(wrapped(case))
    file = io.BytesIO()
    if case.name == "weight_norm":
        with pytest.raises(RuntimeError, match="parametrized modules"):  # which torch refuses, wrapped or not
            torch.save(case.build(), file)
        return
    torch.save(module, file)
    file.seek(0)
    assert case.run(torch.load(file, weights_only=False)).equal(case.run(module))


# ---------------------------------------------------------------- compiled


#: What torch compiles piece by piece by itself: recurrent layers, and ours where a mask of tokens is checked.
IN_PIECES = {"lstm", "lstm, bidirectional", "gru", "tied", "slth language model"}
#: One for each way in which a compiler meets masks; all others are compiled in the slow tests.
COMPILED = {
    "gpt2", "torch encoder, training", "torch attention, packed", "lstm", "convolutions, training",
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


# ---------------------------------------------------------------- groups


def kept(model, *paths):
    """(kept, all) weights of some parameters together."""
    masks = [handle(model).masks()[path] for path in paths]
    return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)


def test_named_groups_compete_within_and_the_rest_by_layer():
    model = wrapped(CASE["llama"], policy={"qk": ["*.q_proj.*", "*.k_proj.*"], "head": "lm_head.weight"})
    paths = list(handle(model).weights)
    qk = [path for path in paths if "q_proj" in path or "k_proj" in path]
    assert [group.name for group in handle(model).groups][:3] == ["model.embed_tokens.weight", "qk", *paths[3:4]]
    for members in (qk, ["lm_head.weight"], *([path] for path in paths if path not in qk)):
        count, total = kept(model, *members)
        assert count == count_kept(total, KEEP)
    masks, scores = handle(model).masks(), handle(model).weights
    least = min(float(scores[path].scores.detach().abs()[masks[path]].min()) for path in qk)
    most = max(float(scores[path].scores.detach().abs()[~masks[path]].max()) for path in qk)
    assert least >= most


def test_a_pattern_takes_all_that_is_fused():
    model = wrapped(CASE["gpt2"], policy={"attention": "*.c_attn.weight"})
    names = [group.name for group in handle(model).groups]
    assert "attention" in names
    assert not any("[" in name for name in names)
    count, total = kept(model, *CASE["gpt2"].parts)
    assert count == count_kept(total, KEEP)


@compiles
@pytest.mark.parametrize("name", ["torch attention, packed", "slth feed-forward", "gpt2"])
def test_of_equal_scores_the_first_in_the_group_are_kept(name):
    case = CASE[name]
    model = wrapped(case, policy="global")
    with torch.no_grad():
        for scores in handle(model).scores():
            scores.fill_(-0.5)
    masks, in_order = handle(model).masks(), []
    for path, mask in masks.items():
        in_order += [piece.flatten() for piece in shares(case, path, mask).values()]
    kept = torch.cat(in_order)
    assert kept.equal(torch.arange(len(kept)) < count_kept(len(kept), KEEP))
    out = case.run(model)
    assert out.equal(case.run(by_hand(case, masks)))
    torch._dynamo.reset()
    torch.testing.assert_close(case.run(torch.compile(model, backend="eager")), out)


def test_keep_by_pattern_the_first_match_counts():
    model = wrap(CASE["gpt2"].build(), {"*.h.1.mlp.*": 1.0, "*.mlp.c_fc.*": 0.25, "*": 0.5})
    shares = {path: kept(model, path) for path in handle(model).weights}
    for path, (count, total) in shares.items():
        share = 1.0 if ".h.1.mlp." in path else 0.25 if ".c_fc." in path else 0.5
        assert count == count_kept(total, share)
    assert handle(model).kept() == sum(count for count, _ in shares.values())


def test_a_tied_weight_is_named_by_any_of_its_names():
    for pattern in ("lm_head.weight", "*wte.weight"):
        model = wrap(CASE["gpt2"].build(), {pattern: 0.25, "*": 0.5})
        count, total = kept(model, "transformer.wte.weight")
        assert count == count_kept(total, 0.25)
        model = wrapped(CASE["gpt2"], parameters=pattern)
        assert handle(model).paths == {"transformer.wte.weight": ["transformer.wte.weight", "lm_head.weight"]}


def test_keep_of_one_keeps_everything():
    model = wrap(mlp(), 1.0)
    assert all(mask.all() for mask in handle(model).masks().values())
    assert handle(model).kept() == sum(p.numel() for name, p in mlp().named_parameters() if "weight" in name)


def test_named_parameters_may_be_biases_and_norms():
    model = wrapped(CASE["bilinear"], parameters=["norm.weight", "*bias"])
    assert list(handle(model).weights) == ["both.bias", "norm.weight", "norm.bias"]
    assert [kept(model, path) for path in handle(model).weights] == 3 * [(1, 4)]


def test_parameters_were_once_named_targets():
    model = wrapped(CASE["bilinear"], targets="*bias")
    assert list(handle(model).weights) == ["both.bias", "norm.bias"]
    with pytest.raises(ValueError, match=r"targets='\*': must be left out"):
        wrapped(CASE["bilinear"], parameters="*bias", targets="*")


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
def test_keep_comes_down_along_a_schedule(schedule):
    model = wrapped(MLP, policy="global")
    counts = []
    for progress in (0.0, 0.3, 0.6, 1.0):
        handle(model).set_progress(schedule, progress)
        out = MLP.run(model)
        masks = handle(model).masks()
        assert out.equal(MLP.run(by_hand(MLP, masks)))
        counts.append(sum(int(mask.sum()) for mask in masks.values()))
        assert counts[-1] == handle(model).kept()
    total = WIDTH * 20 + 20 * 5
    assert counts[0] == total
    assert counts[-1] == count_kept(total, KEEP)
    assert counts == sorted(set(counts), reverse=True)


# ---------------------------------------------------------------- given masks


@every_case
def test_given_its_own_masks_back_a_model_stays_as_it_is(case):
    model = wrapped(case)
    masks, out = handle(model).masks(), case.run(model)
    handle(model).set_masks(masks)
    assert all(mask.equal(masks[path]) for path, mask in handle(model).masks().items())
    assert case.run(model).equal(out)
    assert handle(model).kept() == sum(int(mask.sum()) for mask in masks.values())


POLICIES = st.sampled_from(["layer", "global", {"inner": ["in_proj_weight"]}])


@given(st.data(), POLICIES)
@settings(max_examples=50)
def test_any_masks_can_be_given(data, policy):
    model = wrap(nn.MultiheadAttention(4, 2), 0.5, policy)
    masks = {}
    for path, masked in handle(model).weights.items():
        bits = data.draw(st.lists(st.booleans(), min_size=masked.scores.numel(), max_size=masked.scores.numel()))
        masks[path] = torch.tensor(bits).reshape(masked.scores.shape)
    pieces = dict(zip("qkv", masks["in_proj_weight"].chunk(3), strict=True)) | {"o": masks["out_proj.weight"]}
    groups = {"layer": ["q", "k", "v", "o"], "global": ["qkvo"]}.get(str(policy), ["qkv", "o"])
    before = handle(model).masks()
    if all(any(pieces[p].any() for p in group) for group in groups):
        handle(model).set_masks(masks)
        before = masks
    else:
        with pytest.raises(ValueError, match=r"masks keep nothing in .*: must keep at least one weight"):
            handle(model).set_masks(masks)
    assert all(mask.equal(before[path]) for path, mask in handle(model).masks().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: masks.pop("0.weight"), r"exactly the wrapped weights, differ in 0\.weight"),
        (lambda masks: masks.update(bias=torch.ones(2)), "exactly the wrapped weights, differ in bias"),
        (lambda masks: masks.update({"2.weight": torch.ones(20, 5) > 0}), r"mask of 2\.weight: torch\.bool \(20, 5\)"),
        (lambda masks: masks.update({"2.weight": torch.ones(5, 20)}), r"mask of 2\.weight: torch\.float32 \(5, 20\)"),
        (lambda masks: masks.update({"2.weight": torch.zeros(5, 20) > 0}), r"masks keep nothing in 2\.weight"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(change, message):
    model = wrapped(MLP)
    before = handle(model).masks()
    masks = dict(before)
    masks["0.weight"] = ~masks["0.weight"]
    change(masks)
    with pytest.raises(ValueError, match=message):
        handle(model).set_masks(masks)
    assert all(mask.equal(before[path]) for path, mask in handle(model).masks().items())


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


# ---------------------------------------------------------------- what is refused


def with_nan():
    module = mlp()
    with torch.no_grad():
        module[2].weight[1, 3] = float("nan")
    return module


def on_meta():
    module = mlp()
    module[2].to("meta")
    return module


def already():
    return wrap(mlp(), 0.5)


def inside():
    return nn.Sequential(wrap(nn.Linear(3, 2), 0.5), nn.Linear(2, 2))


REFUSED = {
    "keep of nothing": (mlp, {"keep": 0}, r"keep=0: must be a number in \(0, 1\]"),
    "keep of too much": (mlp, {"keep": 1.2}, r"keep=1.2: must be a number in \(0, 1\]"),
    "keep below zero": (mlp, {"keep": {"*": -0.5}}, r"keep=-0.5: must be a number in \(0, 1\]"),
    "keep that is no number": (mlp, {"keep": "half"}, r"keep='half': must be a number in \(0, 1\]"),
    "keep that matches nothing": (
        mlp,
        {"keep": {"1.*": 0.5, "*": 0.5}},
        r"keep: the pattern '1\.\*' matches no weight",
    ),
    "keep that leaves some out": (mlp, {"keep": {"0.*": 0.5}}, r"keep: no pattern of 0\.\* matches 2\.weight"),
    "two keeps in a group": (
        mlp,
        {"keep": {"0.*": 0.5, "2.*": 0.25}, "policy": "global"},
        r"keep=\[0.25, 0.5\] within the group 'all weights': must be one share",
    ),
    "two keeps in a named group": (
        mlp,
        {"keep": {"0.*": 0.5, "2.*": 0.25}, "policy": {"both": "*"}},
        r"keep=\[0.25, 0.5\] within the group 'both': must be one share",
    ),
    "policy": (mlp, {"policy": "block"}, 'policy=\'block\': must be "layer", "global" or patterns by group name'),
    "policy that matches nothing": (
        mlp,
        {"policy": {"qk": ["*query*"]}},
        r"policy: the pattern '\*query\*' matches no",
    ),
    "parameters": (
        mlp,
        {"parameters": "3.weight"},
        r"parameters='3\.weight': matches no parameter; there are 0\.weight, 0\.bias",
    ),
    "weights": (mlp, {"weights": "glorot"}, "init='glorot': must be one of theory"),
    "weights by pattern": (mlp, {"weights": {"0.*": "theory", "2.*": "glorot"}}, "init='glorot': must be one of"),
    "weights that match nothing": (mlp, {"weights": {"9.*": "theory"}}, r"weights: the pattern '9\.\*' matches no"),
    "scores": (mlp, {"scores": "uniform"}, "scores='uniform': must be one of kaiming_uniform, magnitude, constant"),
    "seed": (mlp, {"seed": 0.5, "weights": "theory"}, "seed=0.5: must be an int"),
    "not a number": (with_nan, {"weights": {"0.*": "theory"}, "scores": "magnitude"}, r"2\.weight holds NaN"),
    "meta": (on_meta, {"weights": "theory"}, r"2\.weight: must have values before it is wrapped"),
    "lazy": (lambda: nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2)), {}, r"1\.weight: must have values before"),
    "integers": (
        lambda: nn.ParameterDict({"a": nn.Parameter(torch.ones(3, 2, dtype=torch.int8), requires_grad=False)}),
        {},
        r"a is torch\.int8 of shape \(3, 2\): must be floating-point and not empty",
    ),
    "nothing to mask": (lambda: nn.LayerNorm(3), {}, "LayerNorm: nothing to mask; it holds weight, bias"),
    "nothing at all": (nn.ReLU, {}, "ReLU: nothing to mask; it holds no parameters"),
    "wrapped": (already, {}, "Sequential is wrapped already: unwrap it first"),
    "wrapped inside": (inside, {}, "Sequential has a wrapped part, '.*': that part .* must be unwrapped first"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_changed(name):
    make, options, message = REFUSED[name]
    module = make()
    before, values = described(module), copy.deepcopy(module.state_dict())
    with pytest.raises((ValueError, TypeError), match=message):
        wrap(module, **{"keep": 0.5} | options)
    assert described(module) == before
    for name, value in module.state_dict().items():
        if not value.is_meta and not isinstance(value, nn.parameter.UninitializedTensorMixin):
            assert torch.equal(value.nan_to_num(7.0), values[name].nan_to_num(7.0))


def test_only_what_is_wrapped_has_masks():
    for call in (handle, unwrap, effective):
        with pytest.raises(ValueError, match=r"Sequential is not wrapped: must come from slth\.wrap"):
            call(mlp())


def test_the_package_offers_it():
    assert slth.wrap is wrap
    assert slth.unwrap is unwrap


# ---------------------------------------------------------------- what a state_dict brings along


def small():
    return wrap(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), keep=0.5, weights="signed_constant")


def test_a_state_dict_brings_its_keep():
    model, other = small(), small()
    wanted = {
        path: torch.arange(mask.numel()).reshape(mask.shape) % 3 == 0 for path, mask in handle(model).masks().items()
    }
    handle(model).set_masks(wanted)
    other.load_state_dict(model.state_dict())
    for path, mask in handle(other).masks().items():
        assert torch.equal(mask, wanted[path])


@pytest.mark.parametrize("method", [slth.search.Frozen(), slth.search.IteRand(every=2)], ids=["frozen", "iterand"])
def test_a_state_dict_brings_what_a_search_has_added(method):
    model, other, x = small(), small(), torch.ones(2, 8)
    slth.fit(model, lambda step: x, lambda m, batch: m(batch).square().mean(), 10, method=method)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_a_child_named_module_is_no_wrapper():
    parent = nn.Module()
    parent.module, parent.head = small(), nn.Linear(4, 4)
    with pytest.raises(ValueError, match="not wrapped"):
        handle(parent)
