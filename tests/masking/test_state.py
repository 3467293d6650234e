"""What is saved of a wrapped model, and how: whatever reads it computes the same, or says what differs."""

import copy
import io
import json
import logging
import pickle
import re

import pytest
import torch
from cases import CASES, WIDTH, gpt2, tokens
from safetensors.torch import load_file, load_model, save_file, save_model
from tables import one_case
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import slth
from slth.masking import Masked
from slth.search import Bernoulli, Biprop, EdgePopup, Frozen, IteRand, controls
from slth.wrapping import effective, handle

CASE = {case.name: case for case in CASES}
METHODS = {
    "edge-popup": EdgePopup(),
    "biprop": Biprop(),
    "bernoulli": Bernoulli(sigma=0.25, seed=3),
    "frozen": Frozen(pruned=0.2, locked=0.1, seed=2),
    "iterand": IteRand(every=1, rate=0.5),
}
POLICIES = {"layer": "layer", "global": "global", "named": {"ends": ["0.*", "4.*"]}}
NETWORKS = ["tied", "torch attention, packed", "lstm", "gpt2"]

every_method = pytest.mark.parametrize("method", METHODS)
every_network = pytest.mark.parametrize("case", [CASE[name] for name in NETWORKS], ids=NETWORKS)


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(WIDTH, 12), nn.Tanh(), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, 4)
        )


def wrapped(module=None, keep=0.5, weights="kaiming_uniform", **options):
    return slth.wrap(net() if module is None else module, keep=keep, weights=weights, **options)


X = torch.linspace(-2.0, 2.0, 3 * WIDTH).cos().reshape(3, WIDTH)


def searched(method, model=None, steps=3, run=None):
    model = wrapped() if model is None else model
    run = run or (lambda module: module(X).square().mean())
    slth.fit(model, lambda step: X, lambda m, _: run(m), steps, method=METHODS.get(method), lr=0.1, progress=False)
    return model


def written(model):
    """The state_dict as it comes from a file that is not trusted."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def masks_of(model):
    return [m for m in model.modules() if isinstance(m, Masked)]


def refused(model, state, message, **options):
    """Nothing of the model is changed."""
    before, masks, gates = values(model), [m.mask() for m in masks_of(model)], [m.gate for m in masks_of(model)]
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state, **options)
    assert same(values(model), before)
    assert all(m.mask().equal(mask) for m, mask in zip(masks_of(model), masks, strict=True))
    assert [m.gate for m in masks_of(model)] == gates


# ---------------------------------------------------------------- what is loaded computes what was saved


@every_method
@pytest.mark.parametrize("policy", POLICIES)
def test_a_fresh_model_becomes_the_saved_one(method, policy):
    model = searched(method, wrapped(policy=POLICIES[policy]))
    other = wrapped(net(1), policy=POLICIES[policy], seed=1).eval()
    assert not torch.equal(other(X), model(X))
    other.load_state_dict(written(model))
    for mode in (False, True):
        assert torch.equal(other.train(mode)(X), model.train(mode)(X))
    assert same(handle(other).masks(), handle(model).masks())
    assert same(values(other), values(model))
    assert [m.kind for m in handle(other).weights.values()] == [method] * 3


@every_method
@every_network
def test_networks_of_other_kinds_do_so_too(method, case):
    model = searched(method, wrapped(case.build()), run=case.loss)
    other = wrapped(case.build(1), seed=1)
    other.load_state_dict(written(model))
    assert case.run(other.train(model.training)).equal(case.run(model))
    assert same(effective(other), effective(model))


@every_method
def test_how_weights_were_drawn_is_loaded_too(method):
    model, other = searched(method), wrapped(net(1), seed=1)
    other.load_state_dict(written(model))
    again = wrapped(net(2), weights=None)
    again.load_state_dict(written(other))
    for loaded in (other, again):
        assert slth.Ticket.of(loaded.eval()).to_bytes() == slth.Ticket.of(model).to_bytes()
    assert torch.equal(searched(method, other)(X), searched(method, model)(X))
    other = wrapped()
    assert not slth.Ticket.of(other).over
    other.load_state_dict(wrapped(net(1), weights=None).state_dict())
    assert list(slth.Ticket.of(other).over) == list(handle(other).weights)  # that no seed makes


def test_a_schedule_is_saved_where_it_stands():
    model, states, outputs = wrapped(keep=0.2), [], []
    method = EdgePopup(schedule="linear", arrival=1.0)

    def evaluate(m):
        states.append(written(m)), outputs.append(m(X))
        return {}

    slth.fit(
        model, lambda step: X, lambda m, x: m(x).square().mean(), 4, method=method, evaluate=evaluate, every=1,
        progress=False,
    )  # fmt: skip
    for state, output in zip(states, outputs, strict=True):
        other = wrapped(keep=0.2).eval()
        other.load_state_dict(state)
        assert torch.equal(other(X), output)


def test_weights_trained_under_a_mask_are_loaded_and_wound_back():
    model = searched("edge-popup")
    start = copy.deepcopy(model.state_dict())
    controls.train_weights(model)
    slth.fit(model, lambda step: X, lambda m, x: m(x).square().mean(), 3, progress=False)
    other = wrapped().eval()
    other.load_state_dict(written(model))
    assert torch.equal(other(X), model(X))
    model.load_state_dict(start)  # and its gate still lets the weights be trained
    assert torch.equal(model(X), searched("edge-popup")(X))
    model(X).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.endswith("original"))


def test_what_was_saved_before_there_were_entries_is_loaded_as_ever():
    model = searched("frozen")
    old = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("_extra_state")}
    other = wrapped().eval()
    assert other.load_state_dict(old) == ([], [])
    assert torch.equal(other(X), model(X))
    del old["0.parametrizations.weight.0.scores"]
    assert other.load_state_dict(old, strict=False).missing_keys == ["0.parametrizations.weight.0.scores"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"0\.parametrizations\.weight\.0\.scores"):
        other.load_state_dict(old)


def test_both_names_of_a_tied_weight_may_be_there():
    case = CASE["tied"]
    model, other = wrapped(case.build()), wrapped(case.build(1), seed=1)
    once = model.state_dict()
    assert not any(name.startswith("head.") for name in once)
    twice = dict(once) | {name.replace("embedding.", "head."): tensor for name, tensor in once.items()}
    for state in (once, twice):
        for assign in (False, True):
            other.load_state_dict(state, assign=assign)
            assert case.run(other).equal(case.run(model))
            slots = [layer.parametrizations.weight for layer in (other.embedding, other.head)]
            assert slots[0].original is slots[1].original
    assert case.run(slth.unwrap(other)).equal(case.run(model))
    assert other.head.weight is other.embedding.weight


def test_a_part_of_a_model_is_saved_and_loaded_alone():
    def second(method):
        return searched(method, wrapped(nn.ModuleList([net(), net()])), run=lambda pair: pair[1](X).square().mean())[1]

    part, other = second("biprop"), wrapped(net(1))
    other.load_state_dict(part.state_dict())
    assert torch.equal(other.eval()(X), part(X))
    refused(other, second("iterand").state_dict(), "is of iterand, the model of biprop")
    refused(second("iterand"), part.state_dict(), "is of biprop, the model of iterand")


class Negated(nn.Module):
    def forward(self, weight):
        return -weight


@pytest.mark.parametrize("position", [0, 1])
def test_a_mask_behind_another_parametrization_is_saved_and_loaded(position):
    def changed(seed, **options):
        model = wrapped(net(seed), seed=seed, **options)
        model[0].parametrizations.weight.insert(position, Negated())
        return model

    model, other = changed(0).eval(), changed(1).eval()
    other.load_state_dict(written(model))
    assert other(X).equal(model(X))
    refused(changed(2, policy="global"), changed(0).state_dict(), r"0\.weight: competes alone")


# ---------------------------------------------------------------- what does not fit


@one_case
@every_method
@pytest.mark.parametrize("other", METHODS)
@pytest.mark.parametrize("strict", [True, False])
def test_another_kind_of_search_is_refused_by_name(method, other, strict):
    state, model = searched(method).state_dict(), searched(other)
    if other in ("edge-popup", method):  # to which nothing was added yet
        model.load_state_dict(state, strict=strict)
        assert torch.equal(model(X), searched(method)(X))
    else:
        message = rf"state_dict of 0\.weight: is of {method}, the model of {other}: load it into a freshly wrapped one"
        refused(model, state, message, strict=strict)


@one_case
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("other", POLICIES)
def test_another_policy_is_refused_by_name(policy, other):
    state, model = wrapped(policy=POLICIES[policy]).state_dict(), wrapped(net(1), policy=POLICIES[other], seed=1)
    if policy == other:
        model.load_state_dict(state)
        return
    words = {"layer": "alone", "global": "in 'all weights' from index 0", "named": "in 'ends' from index 0"}
    refused(model, state, rf"0\.weight: competes {words[policy]}, here {words[other]}: wrap this model with the policy")


def other_parts(state):
    return wrapped(nn.MultiheadAttention(WIDTH, 2)).state_dict()


def of_a_later_version(state):
    entry = json.loads(bytes(state[ENTRY].tolist())) | {"version": 2}
    return state | {ENTRY: torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)}


def with_a_gate(told):
    def change(state):
        entry = json.loads(bytes(state[ENTRY].tolist())) | {"gate": told}
        return state | {ENTRY: torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)}

    return change


ENTRY = "5.parametrizations.weight.0._extra_state"
MISFITS = {
    "plain": (lambda state: net(1).state_dict(), r"state_dict has 0\.weight of a module that is not wrapped: load it"),
    "shape": (
        lambda state: state | {"5.parametrizations.weight.0.scores": torch.ones(3, 12)},
        r"state_dict of 5\.weight: has shape \(3, 12\), must be \(4, 12\)",
    ),
    "no tensor": (lambda state: state | {ENTRY: "biprop"}, r"5\.weight: _extra_state is str: must be a uint8 tensor"),
    "garbage": (lambda state: state | {ENTRY: torch.full((9,), 200).byte()}, r"5\.weight: _extra_state is damaged"),
    "half": (lambda state: state | {ENTRY: torch.tensor(list(b'{"version": 1}')).byte()}, "damaged .KeyError: 'parts'"),
    "version": (of_a_later_version, r"5\.weight: _extra_state has version 2: must be 1"),
    "gate": (with_a_gate({"name": "os.system"}), r"5\.weight: has the gate 'os\.system': must be one of edge-popup"),
    "numbers": (with_a_gate({"name": "bernoulli", "sigma": "x"}), r"has the gate 'bernoulli' with .*: must be its"),
}


@one_case
@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("strict", [True, False])
def test_what_cannot_be_loaded_changes_nothing(name, strict):
    change, message = MISFITS[name]
    refused(wrapped(), change(dict(wrapped(net(1), seed=1).state_dict())), message, strict=strict)


def test_other_parts_are_refused_by_name():
    one = slth.wrap(nn.MultiheadAttention(WIDTH, 2))
    state = dict(one.state_dict())
    key = "parametrizations.in_proj_weight.0._extra_state"
    state[key] = torch.tensor(list(bytes(state[key].tolist()).replace(b'"value"', b'"other"'))).byte()
    refused(one, state, r"in_proj_weight: has parts query, key, other along axis 0, must have query, key, value along")


def softened(masked, weight):
    return masked.pruned(weight).tanh()


OWN = re.escape(f"{softened.__module__}.softened")


def test_a_gate_of_ones_own_is_asked_for_by_name():
    def own(model):
        for masked in handle(model).weights.values():
            masked.gate = softened
        return model

    model = own(wrapped())
    refused(wrapped(net(1)), model.state_dict(), rf"0\.weight: has the gate {OWN}, which is not slth's")
    other = own(wrapped(net(1)))
    other.load_state_dict(written(model))
    assert torch.equal(other(X), model(X))
    refused(other, wrapped().state_dict(), rf"is of edge-popup, the model of {OWN}")


# ---------------------------------------------------------------- other ways of saving


#: torch's weight_norm has a hook that is local to a function, or holds tensors that are no leaves: neither is pickled.
PICKLED = [case for case in CASES if not case.name.startswith("weight_norm")]


@pytest.mark.parametrize("case", PICKLED, ids=lambda case: case.name)
def test_a_module_is_pickled_whole(case):
    model = slth.wrap(case.build(), 0.3)
    wanted = case.run(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(copy.deepcopy(model)))):
        assert case.run(other).equal(wanted)
        case.loss(other).backward()
        plain, wanted_plain = slth.unwrap(other), slth.unwrap(copy.deepcopy(model))
        assert same(dict(plain.named_parameters()), dict(wanted_plain.named_parameters()))
        assert [type(m) for m in other.modules()] == [type(m) for m in case.build().modules()]


@every_method
def test_a_pickled_search_is_the_same(method):
    model = searched(method)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other(X), model(X))
    assert torch.equal(searched(method, other)(X), searched(method, model)(X))


@every_network
def test_safetensors_writes_it(case, tmp_path):
    model = searched("biprop", wrapped(case.build()), run=case.loss)
    others = [wrapped(case.build(1), seed=1).train(model.training) for _ in range(2)]
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    others[0].load_state_dict(load_file(tmp_path / "state.safetensors"))
    save_model(model, tmp_path / "model.safetensors")
    assert load_model(others[1], tmp_path / "model.safetensors") == (set(), [])
    for other in others:
        assert case.run(other).equal(case.run(model))


@every_method
@pytest.mark.parametrize("use_buffers", [False, True])
def test_averages_of_a_search_are_searches(method, use_buffers):
    model = searched(method)
    averages = {0.1: AveragedModel(model, use_buffers=use_buffers, multi_avg_fn=get_ema_multi_avg_fn(0.9))}
    if not (use_buffers and method == "frozen"):  # torch's plain average subtracts, which it does not do to bool
        averages[0.5] = AveragedModel(model, use_buffers=use_buffers)
    start = [m.scores.detach().clone() for m in masks_of(model)]
    for average in averages.values():
        average.update_parameters(model)
        assert torch.equal(average.module(X), model(X))
    with torch.no_grad():
        for masked in masks_of(model):
            masked.scores.copy_(torch.where(masked.scores.abs() < 1e30, masked.scores * -0.3, masked.scores))
    for share, average in averages.items():
        average.update_parameters(model)
        for masked, before, now in zip(masks_of(average), start, masks_of(model), strict=True):
            torch.testing.assert_close(masked.scores, before.lerp(now.scores, share))
        fresh = wrapped().eval()
        fresh.load_state_dict(written(average.module))
        assert torch.equal(fresh(X), average.module(X))


def test_vectors_of_parameters_have_each_once():
    case = CASE["tied"]
    model = wrapped(case.build())
    vector = nn.utils.parameters_to_vector(model.parameters())
    assert vector.numel() == sum(p.numel() for p in model.parameters())
    other = wrapped(case.build(1), seed=1)
    nn.utils.vector_to_parameters(vector, other.parameters())
    assert case.run(other).equal(case.run(model))


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture
def quiet(caplog):
    caplog.set_level(logging.ERROR)


def trained(folder, model, steps, **options):
    from transformers import Trainer, TrainingArguments

    rows = tokens()
    arguments = TrainingArguments(
        folder, max_steps=steps, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, seed=0,
        disable_tqdm=True, learning_rate=0.1, lr_scheduler_type="constant", weight_decay=0.0, logging_strategy="no",
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in (*rows, *rows.flip(1))]
    Trainer(model, arguments, train_dataset=data).train(**options)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("quiet")
def test_the_trainer_saves_and_resumes_a_search(tmp_path):
    from transformers import GPT2LMHeadModel

    whole = trained(tmp_path / "whole", wrapped(gpt2()), 4)
    assert not torch.equal(logits(whole), logits(wrapped(gpt2()).eval()))
    fresh = wrapped(gpt2())
    trained(tmp_path / "whole", fresh, 4, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(logits(fresh), logits(whole))
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    other = wrapped(gpt2(), seed=1).eval()
    assert other.load_state_dict(load_file(checkpoint / "model.safetensors")) == ([], [])
    assert torch.equal(logits(other), logits(whole))
    assert torch.equal(logits(GPT2LMHeadModel.from_pretrained(checkpoint).eval()), logits(whole))  # the pruned network
    slth.unwrap(whole).save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(GPT2LMHeadModel.from_pretrained(tmp_path / "plain").eval()), logits(other))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("copied", [False, True])
def test_methods_that_know_nothing_of_masks_are_right_or_refused(copied):
    plain = gpt2()
    model = wrapped(plain)
    model = (copy.deepcopy(model) if copied else model).eval()
    before, state = logits(model), values(model)
    model.tie_weights()
    for name, given in (
        ("resize_token_embeddings", (40,)),
        ("init_weights", ()),
        ("set_input_embeddings", (nn.Embedding(24, WIDTH),)),
    ):
        for part in (model, model.transformer):
            with pytest.raises(ValueError, match=rf"{name}: GPT2.*Model is wrapped by slth; slth\.unwrap it first"):
                getattr(part, name)(*given)
    assert model.get_input_embeddings() is model.transformer.wte
    assert torch.equal(logits(model), before)
    assert same(values(model), state)
    slth.unwrap(model)
    model.resize_token_embeddings(40)
    model.init_weights()
    assert model.lm_head.weight is model.transformer.wte.weight
    if copied:
        assert handle(plain).weights


def test_a_state_without_keeps_leaves_a_schedule_where_it_is():
    model = wrapped(keep=0.25)
    handle(model).set_progress("linear", 0.5)
    now = [group.current for group in handle(model).groups]
    model.load_state_dict({}, strict=False)
    assert [group.current for group in handle(model).groups] == now


def test_a_device_without_float64_leaves_keeps_where_they_are():
    model = wrapped()

    def move(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("no float64 here")
        return tensor.clone()

    before = values(model)
    assert same(values(model._apply(move)), before)
