"""Wrapped models saved in other ways: whole, by safetensors, as averages, by Hugging Face."""

import copy
import io
import logging
import pickle

import pytest
import torch
from cases import CASES, WIDTH, gpt2, tokens
from safetensors.torch import load_file, load_model, save_file, save_model
from searched import CASE, X, every_method, every_network, masks_of, same, searched, values, wrapped, written
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import slth
from slth.wrapping import handle

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
