"""The masks that GPT-2's attention is handed."""

import copy
import pickle

import pytest
import torch
from helpers import compiles
from small_gpt2 import small

from slth import kernels
from slth.models import gpt2
from slth.models.gpt2_attention import with_attention

TOKENS = torch.arange(12).reshape(2, 6) % 11


@pytest.fixture
def masks(monkeypatch):
    """The masks that attention was called with, transformers thinking that it is captured."""
    found, attention = [], kernels.attention

    def noted(query, key, value, mask=None, causal=False, **options):
        found.append((mask, causal))
        return attention(query, key, value, mask, causal, **options)

    monkeypatch.setattr(kernels, "attention", noted)
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *of: True)
    return found


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_tokens_alone_need_no_mask_where_transformers_cannot_look_at_positions(masks, copied):
    model = copied(gpt2.build(small(), seed=0))
    found = model(TOKENS).logits
    assert len(masks) == model.config.n_layer
    assert all(mask is None and causal for mask, causal in masks)
    given = model(TOKENS, position_ids=torch.arange(6)[None]).logits
    torch.testing.assert_close(found, given)


@pytest.mark.parametrize(
    "given",
    [
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])},
        {"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])},
    ],
    ids=["packed", "padded"],
)
def test_packed_and_padded_tokens_keep_their_masks(masks, given):
    gpt2.build(small(), seed=0)(TOKENS, **given)
    assert all(mask is not None for mask, _ in masks)


def test_another_attention_takes_no_mask_for_tokens_alone(monkeypatch):
    model = with_attention(gpt2.build(small(), seed=0), "kha_linear", seed=0)
    found = model(TOKENS).logits
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *of: True)
    assert model(TOKENS).logits.equal(found)


@compiles
def test_a_compiled_model_is_one_graph_without_a_mask():
    model = gpt2.build(small(), seed=0).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(TOKENS).logits, model(TOKENS).logits)
