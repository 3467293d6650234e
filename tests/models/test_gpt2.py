"""GPT-2: sizes, how each weight is made, the function against one written by hand, and the attention logits."""

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from small_gpt2 import small
from tables import one_case
from torch import nn
from torch.nn.functional import gelu, layer_norm
from torch.nn.utils import parametrize

from slth.models import gpt2
from slth.weights.recipes import recipe_of

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def parts(model, block, name):
    """The parts of a block's weight by name."""
    weight = model.get_parameter(f"transformer.h.{block}.{name}.weight")
    if name != "attn.c_attn":
        return {name: weight}
    return dict(zip(("query", "key", "value"), weight.chunk(3, dim=1), strict=True))


# ---------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("size", "count"),
    # erwanf/gpt2-mini's count, and those of the published small and medium
    [("mini", 38_604_288), ("small", 124_439_808), ("medium", 354_823_168)],
)
def test_published_sizes_have_the_published_counts(size, count):
    with torch.device("meta"):
        assert gpt2.GPT2LMHeadModel(gpt2.config(size)).num_parameters() == count


def test_tiny_has_about_a_million_weights_in_its_blocks():
    made = gpt2.recipes(gpt2.config())
    model = gpt2.build(gpt2.config())
    blocks = [name for name in made if ".h." in name]
    assert sum(model.get_parameter(name).numel() for name in blocks) == 995_328
    assert len(blocks) == 16


@pytest.mark.parametrize(("size", "width", "d"), [("mini", 0.5, 256), ("medium", 2.0, 2048), ("tiny", 0.75, 108)])
def test_width_changes_the_number_of_heads_and_not_their_width(size, width, d):
    plain, changed = gpt2.config(size), gpt2.config(size, width=width)
    assert changed.n_embd == d
    assert changed.n_embd / changed.n_head == plain.n_embd / plain.n_head
    assert (changed.n_layer, changed.vocab_size, changed.n_positions) == (
        plain.n_layer,
        plain.vocab_size,
        plain.n_positions,
    )


def test_a_configuration_has_nothing_that_would_surprise():
    config = gpt2.config("small", vocabulary=300, length=64)
    assert (config.vocab_size, config.n_positions) == (300, 64)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0
    assert config.bos_token_id is None
    assert config.eos_token_id is None
    assert config.use_cache is False
    assert config._attn_implementation == "slth"
    assert gpt2.config(resid_pdrop=0.1, n_layer=3, attn_implementation="eager").n_layer == 3


@one_case
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "large"}, "size='large': must be one of tiny, mini, small, medium"),
        ({"width": 0}, "width=0: must be a number > 0 that makes 4"),
        ({"width": -1.0}, "width=-1.0: must be"),
        ({"width": math.nan}, "width=nan: must be"),
        ({"width": math.inf}, "width=inf: must be"),
        ({"width": 0.3}, "width=0.3: must be a number > 0 that makes 4 . width heads a whole number"),
        ({"vocabulary": 0}, "vocabulary=0: must be an int >= 1"),
        ({"length": 1.5}, "length=1.5: must be an int >= 1"),
        ({"layers": 2, "n_layer": 2, "d": 1}, "d, layers: must be fields of GPT2Config"),
    ],
)
def test_bad_configurations_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        gpt2.config(**given)


@one_case
@pytest.mark.parametrize("length", [0, -1, 8, 10**9])
def test_lengths_the_model_cannot_take(length):
    for fine in (1, 7):
        gpt2.check_length(small(), fine)
    with pytest.raises(ValueError, match=f"length={length}: must be at least 1 and at most 7, the model's positions"):
        gpt2.check_length(small(), length)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_has_a_recipe_and_nothing_else_has(tied):
    model = gpt2.build(small(tie_word_embeddings=tied), seed=3)
    made = gpt2.recipes(model.config, seed=3)
    assert set(made) == {name for name, weight in model.named_parameters() if weight.dim() == 2}
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32
        assert weight.requires_grad
        if name in made:
            assert recipe_of(model, name) == made[name]
            assert weight.equal(made[name].tensor(weight.shape))
        else:
            is_scale = name.endswith(".weight")  # of a normalisation
            assert weight.equal(torch.ones_like(weight) if is_scale else torch.zeros_like(weight))


def test_all_draws_have_names_of_their_own():
    draws = [draw for recipe in gpt2.recipes(small()).values() for draw in recipe.draws]
    assert len({draw.name for draw in draws}) == len(draws) == 2 + 2 * 6
    assert {"wte", "wpe", "h.0.attn.query", "h.1.attn.key", "h.1.attn.value", "h.1.mlp.out"} < {d.name for d in draws}


@one_case
@pytest.mark.parametrize("qk_scale", [1.0, 2.5, "theory"])
@pytest.mark.parametrize("init", gpt2.INITS)
def test_each_group_has_its_standard_deviation(init, qk_scale):
    """Within 5 standard errors; a normal sample's relative one, 1 / sqrt(2 n), is the widest of the three."""
    config = gpt2.config()
    n, base, embedding = 144 / 4, 0.05, 0.03
    model = gpt2.build(config, init=init, base_std=base, embedding_std=embedding, qk_scale=qk_scale, seed=1)
    theory = n**0.25
    qk = base * (theory if qk_scale == "theory" else qk_scale) * (theory if init == "theory" else 1.0)
    residual = base * (1 / math.sqrt(8) if init == "gpt2" else 1.0)
    wanted = {"query": qk, "key": qk, "value": base, "attn.c_proj": residual, "mlp.c_fc": base, "mlp.c_proj": residual}
    groups = [(model.transformer.wte.weight, embedding), (model.transformer.wpe.weight, embedding)]
    for block in range(4):
        for name in MATRICES:
            groups += [(part, wanted[kind]) for kind, part in parts(model, block, name).items()]
    for weight, std in groups:
        found = weight.detach().double()
        assert abs(found.square().mean().sqrt() / std - 1) < 5 / math.sqrt(2 * found.numel())
        assert abs(found.mean()) < 5 * std / math.sqrt(found.numel())
        largest = {"gpt2": 6.5, "theory": math.sqrt(3), "signed": 1.0}[init] * std
        assert found.abs().max() <= largest * (1 + 1e-6)
        if init == "signed":
            assert (found.abs() == found.abs().max()).all()
        if init == "theory":
            assert found.abs().max() > 0.999 * largest


@pytest.mark.parametrize("init", gpt2.INITS)
def test_parts_and_blocks_are_drawn_apart(init):
    model = gpt2.build(gpt2.config(), init=init)
    square = [part for block in (0, 1) for part in parts(model, block, "attn.c_attn").values()]
    square += [part for block in (0, 1) for part in parts(model, block, "attn.c_proj").values()]
    together = torch.corrcoef(torch.stack([part.detach().double().flatten() for part in square]))
    assert (together - torch.eye(8)).abs().max() < 5 / 144


@pytest.mark.parametrize("init", gpt2.INITS)
def test_a_scale_of_two_doubles_query_and_key_alone(init):
    plain, scaled = gpt2.build(small(), init=init), gpt2.build(small(), init=init, qk_scale=2.0)
    for name, weight in plain.named_parameters():
        wanted = weight.clone()
        if name.endswith("c_attn.weight"):
            wanted[:, : 2 * 24] *= 2
        assert scaled.get_parameter(name).equal(wanted)


@pytest.mark.parametrize(
    ("init", "digest"),
    [("gpt2", "fbbf89371a4ff38e"), ("theory", "993e8bb3bdd28639"), ("signed", "86fcd7d0c3c16218")],
)
def test_a_seed_names_the_weights(init, digest):
    """Bits that must never change: tickets name them by their seed."""

    def digest_of(seed):
        model = gpt2.build(small(), init=init, qk_scale="theory", seed=seed)
        data = b"".join(weight.detach().numpy().tobytes() for weight in model.parameters())
        return hashlib.sha256(data).hexdigest()

    assert digest_of(5) == digest_of(5)
    assert digest_of(5)[:16] == digest
    assert digest_of(6) != digest_of(5)


def test_building_leaves_torch_as_it_was():
    state, init = torch.random.get_rng_state(), nn.init.normal_
    gpt2.build(small())
    assert torch.random.get_rng_state().equal(state)
    assert nn.init.normal_ is init
    assert nn.Linear(3, 3).weight.unique().numel() == 9


@one_case
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init": "xavier"}, "init='xavier': must be one of gpt2, theory, signed"),
        ({"base_std": 0.0}, "base_std=0.0: must be a finite number > 0"),
        ({"embedding_std": math.nan}, "embedding_std=nan: must be a finite number > 0"),
        ({"qk_scale": 0.0}, "qk_scale=0.0: must be a finite number > 0, or 'theory'"),
        ({"qk_scale": -1}, "qk_scale=-1: must be"),
        ({"qk_scale": math.inf}, "qk_scale=inf: must be"),
        ({"qk_scale": "paper"}, "qk_scale='paper': must be"),
    ],
)
def test_bad_inits_are_refused(given, message):
    for refuses in (gpt2.recipes, gpt2.build):
        with pytest.raises(ValueError, match=message):
            refuses(small(), **given)


def test_models_without_gpt2_do_without_transformers():
    code = "import sys, slth.models; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- the function


def by_hand(model, tokens):
    """(logits (batch, T, vocabulary), attention logits of each block (batch, heads, T, T)) of a GPT-2, in float64."""
    weights = {name.removeprefix("transformer."): w.detach().double() for name, w in model.named_parameters()}
    heads, length = model.config.n_head, tokens.shape[1]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def affine(x, name):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def split(x):  # (batch, T, d) -> (batch, heads, T, n)
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    x = weights["wte.weight"][tokens] + weights["wpe.weight"][:length]
    attention_logits = []
    for i in range(model.config.n_layer):
        q, k, v = map(split, affine(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, dim=-1))
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        attention_logits.append(logits)
        mixed = logits.masked_fill(later, -math.inf).softmax(-1) @ v
        x = x + affine(mixed.transpose(1, 2).flatten(2), f"h.{i}.attn.c_proj")
        inner = gelu(affine(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
        x = x + affine(inner, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ weights["wte.weight"].T, attention_logits


def tokens_for(config, batch=3):
    return torch.arange(batch * config.n_positions).reshape(batch, -1) * 7 % config.vocab_size


@pytest.mark.parametrize("init", gpt2.INITS)
def test_the_model_is_gpt2(init):
    model = gpt2.build(small(), init=init, base_std=0.3, embedding_std=0.5, qk_scale=1.5)
    tokens = tokens_for(model.config)
    wanted, _ = by_hand(model, tokens)
    torch.testing.assert_close(model(tokens).logits.double(), wanted, atol=2e-5, rtol=1e-4)
    assert wanted.std() > 0.1


# ---------------------------------------------------------------- attention logits


@pytest.mark.parametrize("init", gpt2.INITS)
def test_logit_std_is_that_of_the_allowed_logits(init):
    model = gpt2.build(small(), init=init, base_std=0.3, embedding_std=0.5)
    for length in (1, 4, 7):
        tokens = tokens_for(model.config)[:, :length]
        _, logits = by_hand(model, tokens)
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        wanted = torch.cat([block[..., allowed].flatten() for block in logits]).std(correction=0)
        assert math.isclose(gpt2.logit_std(model, tokens), wanted.item(), rel_tol=1e-5)


def test_logit_std_grows_with_the_square_of_the_scale():
    tokens = tokens_for(small())
    plain, scaled = (gpt2.logit_std(gpt2.build(small(n_layer=1), qk_scale=s), tokens) for s in (1.0, 4.0))
    assert math.isclose(scaled, 16 * plain, rel_tol=1e-5)


def test_logit_std_sees_weights_that_are_computed_and_leaves_no_trace():
    class Masked(nn.Module):
        def forward(self, weight):
            return weight * (torch.arange(weight.numel()).reshape(weight.shape) % 3 == 0)

    model = gpt2.build(small(), base_std=0.3)
    tokens = tokens_for(model.config)
    dense = gpt2.logit_std(model, tokens)
    zeroed = gpt2.build(small(), base_std=0.3)
    for masked, plain in zip(model.transformer.h, zeroed.transformer.h, strict=True):
        parametrize.register_parametrization(masked.attn.c_attn, "weight", Masked())
        plain.attn.c_attn.weight.data = masked.attn.c_attn.weight.detach()
    found = gpt2.logit_std(nn.Sequential(model), tokens)
    assert found == gpt2.logit_std(zeroed, tokens)
    assert found < 0.7 * dense
    with pytest.raises(IndexError):
        gpt2.logit_std(model, tokens + 11)  # outside the vocabulary
    assert not any(module._forward_hooks for module in model.modules())


def test_logit_std_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="model of type Linear: must hold a GPT-2"):
        gpt2.logit_std(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="length=8: must be at least 1 and at most 7"):
        gpt2.logit_std(gpt2.build(small()), torch.zeros(1, 8, dtype=torch.int64))
