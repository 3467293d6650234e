"""GPT-2 with another attention: saved, loaded, refused."""

import logging
import re

import numpy as np
import pytest
import torch
from small_gpt2 import small
from tables import one_case
from transformers import GPT2LMHeadModel

import slth
from slth.attention import ATTENTIONS
from slth.models import gpt2
from slth.models.gpt2_attention import GPT2WithAttention, with_attention
from slth.wrapping import handle

# ---------------------------------------------------------------- another attention, saved and loaded

OTHERS = {
    "kha_linear": {},
    "differential": {},
    "mhla": {"block": 4, "mixing_init": "identity_plus_random", "floor": 0.1},
    "mha": {"rope": True},
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_attention_is_loaded_as_it_was_saved(tmp_path, name):
    model = with_attention(gpt2.build(small(), seed=0), name, hidden=6, seed=3, options=OTHERS[name]).eval()
    tokens = torch.arange(14).reshape(2, 7) % 11
    model.save_pretrained(tmp_path)
    loaded = GPT2WithAttention.from_pretrained(tmp_path).eval()
    assert loaded.config.slth_attention == model.config.slth_attention
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = GPT2WithAttention.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_a_plain_gpt2_says_that_the_attention_is_another(tmp_path, caplog, monkeypatch):
    with_attention(gpt2.build(small(), seed=0), "kha_linear", seed=0).save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    GPT2LMHeadModel.from_pretrained(tmp_path)
    assert re.search(r"attn\.inner\.query +\| .*UNEXPECTED", caplog.text)
    assert re.search(r"attn\.c_attn\.weight +\| .*MISSING", caplog.text)


def test_a_config_that_names_no_attention_is_refused():
    with pytest.raises(ValueError, match="config without slth_attention"):
        GPT2WithAttention(small())


@one_case
@pytest.mark.parametrize(
    "given",
    [
        {"attention": "differential", "hidden": 7},
        {"attention": "mha", "qk_scale": 0.0},
        {"attention": "mha", "base_std": -1.0},
        {"attention": "mha", "options": {"kv_heads": 2}},
    ],
    ids=str,
)
def test_another_attention_that_is_refused_changes_nothing(given):
    model = gpt2.build(small(use_cache=True), seed=0)
    config, modules = model.config.to_dict(), list(model.modules())
    with pytest.raises(ValueError, match="must"):
        with_attention(model, **given)
    assert model.config.to_dict() == config
    assert list(model.modules()) == modules


def test_options_out_of_numpy_are_saved(tmp_path):
    with_attention(
        gpt2.build(small(), seed=0), "differential", options={"lambda_std": np.float32(0.1), "depth": torch.tensor(2)}
    ).save_pretrained(tmp_path)
    loaded = GPT2WithAttention.from_pretrained(tmp_path)
    assert loaded.config.slth_attention["options"] == {"lambda_std": 0.1, "depth": 2}


def test_a_saved_buffer_is_loaded(tmp_path, monkeypatch):
    """What a file holds is taken from it; only what none holds is put back."""
    start = ATTENTIONS["mha"].__init__

    def counting(self, *sizes, **options):
        start(self, *sizes, **options)
        self.register_buffer("steps", torch.zeros(2))

    monkeypatch.setattr(ATTENTIONS["mha"], "__init__", counting)
    model = with_attention(gpt2.build(small(), seed=0), "mha")
    model.get_buffer("transformer.h.1.attn.inner.steps").fill_(5)
    model.save_pretrained(tmp_path)
    loaded = GPT2WithAttention.from_pretrained(tmp_path)
    assert loaded.get_buffer("transformer.h.1.attn.inner.steps").tolist() == [5, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_added_to_logits(dtype):
    attention = with_attention(gpt2.build(small(), seed=0), "mha").transformer.h[0].attn
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    wanted, _ = attention(x, attention_mask=mask)
    for least in (-torch.inf, torch.finfo(dtype).min):
        added = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, least)
        assert attention(x, attention_mask=added)[0].equal(wanted)
    for bias in (-1.0, 1e-3, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="attention_mask adds a bias to logits: must be 0"):
            attention(x, attention_mask=added.masked_fill(mask.triu(), bias))
    with pytest.raises(ValueError, match=r"attention_mask of dtype torch\.int64: must be bool"):
        attention(x, attention_mask=mask.long())


def test_a_padded_vocabulary_is_in_no_ticket_and_no_logit():
    tokens = torch.arange(14).reshape(2, 7) % 11
    models = [gpt2.build(small(**more), seed=3) for more in ({}, {"vocabulary_multiple": 64})]
    plain, padded = (slth.wrap(model, 0.5, seed=1) for model in models)
    assert slth.Ticket.of(plain).to_bytes() == slth.Ticket.of(padded).to_bytes()
    for model in (plain, padded):
        model(tokens, labels=tokens).loss.backward()
    logits = padded(tokens).logits
    assert logits.shape == (2, 7, 11)
    assert logits.untyped_storage().nbytes() == 4 * 14 * 64
    torch.testing.assert_close(logits, plain(tokens).logits)
    for one, other in zip(handle(plain).scores(), handle(padded).scores(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
