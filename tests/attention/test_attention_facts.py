"""What an attention must state of itself, and the user's own by place: in a GPT-2, solved for, compared."""

import sys
from dataclasses import replace

import pytest
import torch
from helpers import random_target

from slth import plugins
from slth.attention import ATTENTIONS, Attention, Facts, GroupedQueryAttention, SoftmaxAttention, find
from slth.attention.facts import MULTI_HEAD
from slth.construct import variant
from slth.models import gpt2
from slth.models.gpt2_attention import GPT2WithAttention, with_attention

OWN = '''
import torch
from dataclasses import replace
from torch import nn
from slth.attention import GroupedQueryAttention

class Tempered(GroupedQueryAttention):
    """Logits times a temperature, and a vector that is added to every output."""
    facts = replace(
        GroupedQueryAttention.facts,
        roles=GroupedQueryAttention.facts.roles | {"shift": "vector"},
        constructible="a vector is added to every output",
        grouped=False,
    )

    def __init__(self, *sizes, temperature=2.0, **options):
        super().__init__(*sizes, **options)
        self.temperature = temperature
        self.shift = nn.Parameter(torch.zeros(self.d_out, dtype=self.dtype))

    def _queries(self, x, positions):
        return self.temperature * super()._queries(x, positions)

    def _output(self, heads):
        return super()._output(heads) + self.shift
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The place of a class of the user's own."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield "own.py:Tempered"
    for name in [name for name in sys.modules if name.startswith("slth.plugins.")]:
        del sys.modules[name]


# ---------------------------------------------------------------- facts


def test_a_class_without_facts_of_its_own_is_refused():
    class Silent(GroupedQueryAttention):
        pass

    with pytest.raises(TypeError, match=r"Silent states no facts: its class must have facts = slth.attention.Facts\("):
        Silent(4, 4, 2, 4)


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"norm": "norm"}, "facts.norm needs an option norm; it takes kv_heads"),
        ({"mixing_inits": ("natural",)}, "facts.mixing_inits needs an option mixing_init"),
    ],
)
def test_facts_that_its_constructor_contradicts_are_refused(facts, match):
    class Wrong(GroupedQueryAttention):
        pass

    Wrong.facts = replace(GroupedQueryAttention.facts, **facts)
    with pytest.raises(TypeError, match=f"Wrong: {match}"):
        Wrong(4, 4, 2, 4)


def test_what_its_class_lacks_is_refused():
    class Bare(Attention):
        facts = Facts(roles=MULTI_HEAD, constructible=True)

    class Grouped(SoftmaxAttention):
        facts = Facts(roles=MULTI_HEAD, constructible=True, grouped=True)

    class Starting(SoftmaxAttention):
        facts = Facts(roles=MULTI_HEAD, constructible=True)

        def __init__(self, *sizes, mixing_init="natural"):
            super().__init__(*sizes)

    for kind, match in (
        (Bare, "facts.constructible=True needs factors"),
        (Grouped, "facts.grouped needs an option kv_heads"),
        (Starting, "takes mixing_init, so facts.mixing_inits must say"),
    ):
        with pytest.raises(TypeError, match=f"{kind.__name__}: {match}"):
            kind(4, 4, 2, 4)


def test_roles_that_are_none():
    with pytest.raises(ValueError, match=r"roles\['w'\]='weight': must be one of query, key"):
        Facts(roles={"w": "weight"}, constructible=True)
    with pytest.raises(ValueError, match=r"roles\['w'\]='tokens': must be one of .* where constructible=True"):
        Facts(roles={"w": "tokens"}, constructible=True)


def test_a_parameter_without_a_role_is_named():
    class Extra(GroupedQueryAttention):
        facts = replace(GroupedQueryAttention.facts, roles={"query": "query", "key": "key", "value": "value"})

    with pytest.raises(ValueError, match="parameter 'output' of Extra: its facts must say its role, as of query, key"):
        Extra(4, 4, 2, 4)
    module = GroupedQueryAttention(2, 2, 2, 8)
    module.extra = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="parameter 'extra' of GroupedQueryAttention: its facts must say its role"):
        variant(random_target(2, 2, 2), module)


# ---------------------------------------------------------------- the user's own


def test_an_attention_is_found_by_name_or_place(own):
    assert find("mea") is ATTENTIONS["mea"]
    assert find(own).__name__ == "Tempered"
    with pytest.raises(ValueError, match=r"variants='mhaa': must be one of mha, .*, or a place as my_file.py:Tempered"):
        find("mhaa", "variants")
    with pytest.raises(ValueError, match=r"attention=own.py:Temper: own.py has no class Temper"):
        find("own.py:Temper")


def test_its_facts_say_why_it_cannot_be_solved_for(own):
    source = find(own)(2, 2, 2, 8)
    with pytest.raises(ValueError, match=r"source=Tempered: must be .*; a vector is added to every output"):
        variant(random_target(2, 2, 2), source)


def test_it_stands_in_a_gpt2_and_is_loaded_where_its_code_was(own, tmp_path, monkeypatch):
    config = gpt2.config("tiny", width=0.25, vocabulary=11, length=7)
    model = with_attention(gpt2.build(config, seed=0), own, seed=1, qk_scale=3.0, options={"temperature": 0.5}).eval()
    inner = model.transformer.h[0].attn.inner
    stds = {name: float(getattr(inner, name).detach().std()) for name in ("query", "key", "value")}
    assert stds == pytest.approx({"query": 0.06, "key": 0.06, "value": 0.02}, rel=0.2)
    assert not inner.shift.any()
    model.save_pretrained(tmp_path / "saved")
    tokens = torch.arange(14).reshape(2, 7) % 11
    assert torch.equal(
        GPT2WithAttention.from_pretrained(tmp_path / "saved").eval()(tokens).logits, model(tokens).logits
    )
    monkeypatch.setattr(plugins, "_classes", {})  # as in another process
    with pytest.raises(ValueError, match=r"attention=own.py:Tempered: must be loaded first, by slth.attention.find\("):
        GPT2WithAttention.from_pretrained(tmp_path / "saved")


def test_a_config_executes_no_file_of_the_same_name_in_another_folder(own, tmp_path, monkeypatch):
    model = with_attention(gpt2.build(gpt2.config("tiny", width=0.25, vocabulary=11, length=7)), own)
    (tmp_path / "there").mkdir()
    model.save_pretrained(tmp_path / "there" / "model")
    (tmp_path / "there" / "own.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.chdir(tmp_path / "there")
    again = GPT2WithAttention.from_pretrained("model")
    assert type(again.transformer.h[0].attn.inner) is type(model.transformer.h[0].attn.inner)


def test_a_tied_projection_is_scaled_as_a_key():
    model = with_attention(gpt2.build(gpt2.config("tiny", width=0.25, vocabulary=11, length=7)), "gta", qk_scale=4.0)
    inner = model.transformer.h[0].attn.inner
    assert float(inner.key_value.detach().std()) == pytest.approx(float(inner.query.detach().std()), rel=0.2)
    assert float(inner.key_value.detach().std()) == pytest.approx(0.08, rel=0.2)
