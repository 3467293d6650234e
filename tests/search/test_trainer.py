"""Searches in the Trainer of transformers: exact masks, and runs that go on from checkpoints, bit for bit."""

import math

import pytest
import torch
from cases import gpt2, tokens

import slth
from slth.hf import SearchCallback
from slth.search import EdgePopup, IteRand
from slth.wrapping import effective, handle, random_weight

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and accelerate

STEPS, KEEP = 6, 0.3
METHODS = {
    "cubic": lambda: EdgePopup(schedule="cubic", arrival=1.0),
    "iterand": lambda: IteRand(every=2, rate=0.5),
}
WAYS = {"plain": {}, "accumulated": {"gradient_accumulation_steps": 2}, "bf16": {"bf16": True}}


def wrapped():
    return slth.wrap(gpt2(), keep=KEEP, weights="kaiming_normal", seed=1)


def trained(folder, method, way, **options):
    """A wrapped tiny GPT-2 after so many steps of Trainer."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        folder, max_steps=STEPS, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, seed=0,
        disable_tqdm=True, learning_rate=0.1, lr_scheduler_type="cosine", logging_strategy="no", **WAYS[way],
    )  # fmt: skip
    rows = tokens()
    data = [{"input_ids": row, "labels": row} for row in (*rows, *rows.flip(1), *rows, *rows.flip(1))]
    model = wrapped()
    Trainer(model, arguments, train_dataset=data, callbacks=[SearchCallback(METHODS[method]())]).train(**options)
    return model.eval()


def bits(model):
    """All that a search holds, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("method", "way"), [("cubic", "plain"), ("iterand", "accumulated"), ("iterand", "bf16")])
def test_masks_are_exact_and_a_resumed_run_is_an_unbroken_one(method, way, tmp_path):
    whole = trained(tmp_path, method, way)
    for path, mask in handle(whole).masks().items():
        for part in (one.of(mask) for one in handle(whole).weights[path].parts):  # query, key and value apart
            assert int(part.sum()) == math.floor(KEEP * part.numel() + 0.5)
        weight, random = effective(whole)[path], random_weight(whole, path)
        assert torch.equal(weight, torch.where(mask, random, 0.0))
    resumed = trained(tmp_path, method, way, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found, wanted = bits(resumed), bits(whole)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    x = tokens()
    with torch.no_grad():
        assert torch.equal(resumed(x).logits, whole(x).logits)
    moved = [m.scores for m in handle(whole).weights.values()]
    assert not any(map(torch.equal, moved, [m.scores for m in handle(wrapped()).weights.values()]))
    ticket = slth.Ticket.of(whole)
    plain = slth.Ticket.from_bytes(ticket.to_bytes()).apply(gpt2())
    assert all(torch.equal(plain.get_parameter(path), weight) for path, weight in effective(whole).items())


def test_what_is_no_search_is_refused():
    with pytest.raises(ValueError, match=r"^method='iterand': must be a search"):
        SearchCallback("iterand")
