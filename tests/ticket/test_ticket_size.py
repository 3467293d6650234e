"""How large a ticket is."""

import math
import zlib

import pytest
import torch
from regression import assert_same, fit, state, wrapped
from ticketing import bits, blank, found
from torch import nn

import slth
from slth import Ticket, files
from slth.models import gpt2
from slth.search import Frozen, IteRand, controls
from slth.weights import inits
from slth.wrapping import handle, unwrap


def test_a_mask_takes_a_bit_a_weight_or_less():
    entries = 16 * 48 + 48 * 4
    half, tenth = Ticket.of(wrapped(keep=0.5)).to_bytes(), Ticket.of(wrapped(keep=0.1)).to_bytes()
    assert bits(half) == entries / 8
    entropy = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
    assert entropy * entries / 8 <= bits(tenth) <= entropy * entries / 8 + 24
    large = slth.wrap(nn.Linear(400, 300, bias=False), keep=0.1, weights="signed_constant")
    assert len(Ticket.of(large).to_bytes()) < entropy * 120_000 / 8 + 500


@pytest.mark.parametrize(("pruned", "locked"), [(0.25, 0.25), (0.5, 0.2), (0.0, 0.4)])
def test_frozen_places_take_no_bits(pruned, locked):
    keep = locked + (1 - pruned - locked) / 2  # half of what is free
    model = slth.wrap(nn.Linear(120, 100, bias=False), keep=keep, weights="signed_constant")
    Frozen(pruned=pruned, locked=locked).prepare(model)
    data = Ticket.of(model).to_bytes()
    assert bits(data) == pytest.approx((1 - pruned - locked) * 12_000 / 8, abs=2)
    module = Ticket.from_bytes(data).apply(nn.Linear(120, 100, bias=False))
    assert_same(state(unwrap(model)), state(module))


def without_one_locked(model, seed):
    masks = handle(model).masks()
    masks["0.weight"].view(-1)[handle(model).weights["0.weight"].scores.gt(1e30).flatten().nonzero()[seed]] = False
    handle(model).set_masks(masks)


@pytest.mark.parametrize("control", [controls.random_mask, controls.shuffled_mask, without_one_locked])
def test_another_mask_than_was_frozen_takes_all_its_bits(control):
    model = found(Frozen(pruned=0.3, locked=0.3), keep=0.5)
    few = Ticket.of(model).to_bytes()
    control(model, seed=1)
    all_bits = Ticket.of(model).to_bytes()
    assert bits(all_bits) > bits(few) + 192 * 0.6 / 8
    assert_same(state(Ticket.from_bytes(all_bits).apply(blank())), state(unwrap(model)))


def test_what_follows_from_a_constant_or_a_seed_is_not_stored():
    model = gpt2.build(gpt2.config("tiny", n_layer=1), seed=4)
    slth.wrap(model, keep=0.3, parameters=["*.c_attn.weight", "*.c_proj.weight", "*.c_fc.weight"])
    ticket = Ticket.from_bytes(Ticket.of(model).to_bytes())
    told = {p.path: p for p in ticket.plain}
    assert not any(p.stored for p in ticket.plain)
    assert told["transformer.wte.weight"].recipe == slth.weights.recipes.recipe_of(model, "transformer.wte.weight")
    assert told["transformer.ln_f.weight"].value == 1
    assert told["transformer.h.0.attn.c_attn.bias"].value == 0
    module = ticket.apply(gpt2.build(gpt2.config("tiny", n_layer=1), seed=5))
    assert_same(state(unwrap(model)), state(module))


def test_redraws_take_a_number_for_each_weight_kept():
    model = wrapped()
    fit(model, IteRand(every=2, rate=0.5), steps=10)
    generation = {path: masked.generation for path, masked in handle(model).weights.items()}
    data = Ticket.of(model).to_bytes()
    tensors, _ = files.unseal(data, "ticket", [1])
    counts = zlib.decompress(tensors["generations"].numpy().tobytes())
    kept = [generation[path][mask] for path, mask in handle(model).masks().items()]
    assert list(counts) == torch.cat(kept).tolist()
    assert max(counts) > 1
    assert_same(state(Ticket.from_bytes(data).apply(blank())), state(unwrap(model)))


def float32_bytes(module):
    return 4 * sum({id(p): p.numel() for p in module.parameters()}.values())


def evaluated(model):
    tokens = (inits.uniform((2, 32), 0.5, seed=0, name="tokens") + 0.5).mul(200).long()
    with torch.no_grad():
        return model(tokens, labels=tokens).loss


@pytest.mark.parametrize(("init", "keep"), [("gpt2", 0.3), ("signed", 0.5)])
def test_a_tiny_gpt2_takes_a_31st_of_its_floats(init, keep):
    model = gpt2.build(gpt2.config(), init=init, seed=1)
    whole = float32_bytes(model)
    slth.wrap(model, keep=keep, policy="layer", seed=1)
    data = Ticket.of(model).to_bytes()
    assert 31 * len(data) <= whole
    module = Ticket.from_bytes(data).apply(gpt2.build(gpt2.config(), init=init, seed=2))
    assert evaluated(module).equal(evaluated(model))


@pytest.mark.slow
def test_gpt2_small_takes_a_31st_of_its_floats(tmp_path):
    model = gpt2.build(gpt2.config("small"), init="signed", seed=1)
    assert float32_bytes(model) == 4 * 124_439_808
    slth.wrap(model, keep=0.5, seed=1)
    assert 31 * Ticket.of(model).save(tmp_path / "t") <= 4 * 124_439_808
    expected = evaluated(unwrap(model))
    module = Ticket.load(tmp_path / "t").apply(gpt2.build(gpt2.config("small"), init="signed", seed=2))
    assert evaluated(module).equal(expected)
