"""Which parameters are weights, how they are laid out, and what their initialisation depends on."""

import pytest
import torch
from cases import CASES, HEADS, WIDTH, TiedLanguageModel, Twice, every_case
from tables import one_case
from torch import nn

from slth.attention import MultiHeadAttention
from slth.masking.parameters import Part, find, first_match
from slth.weights import inits

CASE = {case.name: case for case in CASES}


def paths(module, patterns=None):
    return [param.path for param in find(module, patterns)]


# ---------------------------------------------------------------- which

WEIGHTS = {
    "torch attention, separate": ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    "torch attention, bias_k": ["in_proj_weight", "out_proj.weight"],
    "lstm": ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"],
    "lstm, bidirectional": ["weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"],
    "convolutions, training": ["0.weight", "3.weight", "6.weight"],
    "bilinear": ["both.weight"],
    "slth attention": ["query", "key", "value", "output"],
    "slth feed-forward": ["layers.0", "layers.1"],
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_by_name(name):
    assert paths(CASE[name].build()) == WEIGHTS[name]


@every_case
def test_weights_are_the_matrices_that_are_no_bias_and_no_normalisation(case):
    module = case.build()
    norms = {id(p) for m in module.modules() if "Norm" in type(m).__name__ for p in m.parameters()}
    found = {id(param.tensor) for param in find(module)}
    for name, parameter in module.named_parameters():
        matrix = sum(size > 1 for size in parameter.shape) > 1 and "bias" not in name
        assert (id(parameter) in found) == (matrix and id(parameter) not in norms)


@one_case
@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: nn.Linear(1, 1), ["weight"]),  # a matrix by its layer, if not by its shape
        (lambda: nn.Conv1d(1, 1, 1), ["weight"]),
        (lambda: nn.Embedding(1, 5), ["weight"]),
        (lambda: nn.EmbeddingBag(4, 5), ["weight"]),
        (lambda: nn.GRUCell(1, 1), ["weight_ih", "weight_hh"]),
        (lambda: nn.LSTM(3, 4, proj_size=2), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        (lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 2)), ["1.weight"]),
        (
            lambda: nn.ParameterDict({"table": torch.ones(2, 3), "row": torch.ones(1, 3), "bias": torch.ones(2, 3)}),
            ["table"],
        ),
    ],
)
def test_what_counts_as_a_weight(make, wanted):
    assert paths(make()) == wanted


def test_a_normalisation_of_any_library_is_told_by_its_name():
    class OurRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 4))

    assert paths(nn.Sequential(OurRMSNorm(), nn.Linear(4, 2))) == ["1.weight"]
    assert paths(nn.Sequential(OurRMSNorm(), nn.Linear(4, 2)), ["0.*"]) == ["0.scale"]


def test_patterns_choose_and_the_order_stays_that_of_the_module():
    module = CASE["llama"].build()
    assert paths(module, ["*.o_proj.*", "model.layers.?.self_attn.q_proj.weight"]) == [
        f"model.layers.{i}.self_attn.{name}_proj.weight" for i in range(2) for name in "qo"
    ]
    assert paths(module, ["*norm*"]) == [name for name, _ in module.named_parameters() if "norm" in name]


def test_a_tied_weight_comes_once_with_all_its_places():
    module = TiedLanguageModel()
    first = find(module)[0]
    assert first.tensor is module.embedding.weight
    assert first.paths == ["embedding.weight", "head.weight"]
    assert first.places == [(module.embedding, "weight"), (module.head, "weight")]
    assert paths(module, ["head.*"]) == ["embedding.weight"]
    twice = Twice()
    assert [param.places for param in find(twice)] == [[(twice, "first"), (twice, "second")]]
    layer = nn.Linear(3, 3)
    assert paths(nn.Sequential(layer, layer)) == ["0.weight"]


def test_a_weight_that_one_of_its_places_calls_a_weight_is_one():
    module = nn.Module()
    module.bias = nn.Parameter(torch.ones(2, 3))
    module.layer = nn.Linear(3, 2)
    module.layer.weight = module.bias
    assert [param.paths for param in find(module)] == [["bias", "layer.weight"]]


# ---------------------------------------------------------------- parts


@every_case
def test_fused_weights_have_a_part_for_each_role(case):
    for param in find(case.build()):
        roles = [part.role for part in param.parts]
        assert roles == case.parts.get(param.path, roles[:1])
        pieces = [part.of(param.tensor) for part in param.parts]
        assert sum(piece.numel() for piece in pieces) == param.tensor.numel()
        assert torch.cat(pieces, dim=param.parts[0].dim).equal(param.tensor)


def test_a_part_is_a_view():
    weight = torch.zeros(2, 6)
    Part(1, 3, dim=1).of(weight).fill_(1.0)
    assert weight.equal(torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]] * 2))
    assert Part().of(weight) is weight


def test_the_parts_of_gpt2_s_cross_attention_are_key_and_value():
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    sizes = {
        "n_embd": WIDTH,
        "n_head": HEADS,
        "n_layer": 1,
        "vocab_size": 5,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    module = GPT2Attention(GPT2Config(**sizes), is_cross_attention=True, layer_idx=0)
    parts = {param.path: [(part.role, part.count, part.dim) for part in param.parts] for param in find(module)}
    assert parts == {
        "c_attn.weight": [("key", 2, 1), ("value", 2, 1)],
        "q_attn.weight": [("query", 1, 0)],
        "c_proj.weight": [("", 1, 0)],
    }


# ---------------------------------------------------------------- fans


def fans(module, keep=1.0):
    return {(t.path, part.index): t.fan(part, keep) for t in find(module) for part in t.parts}


@one_case
@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (nn.Linear(3, 5), (3, 5)),
        (nn.Conv2d(4, 6, (3, 5)), (4 * 15, 6 * 15)),
        (nn.Conv2d(4, 6, 3, groups=2), (2 * 9, 6 * 9)),
        (nn.ConvTranspose1d(4, 6, 3), (4 * 3, 6 * 3)),
        (nn.GRUCell(3, 5), (3, 15)),
        (MultiHeadAttention(3, 4, 2, 7), (3, 7)),
    ],
)
def test_fans_follow_the_layout(module, wanted):
    fan = next(iter(fans(module).values()))
    assert (fan.fan_in, fan.fan_out) == wanted
    if not isinstance(module, nn.ConvTranspose1d | nn.GRUCell | MultiHeadAttention):
        assert wanted == nn.init._calculate_fan_in_and_fan_out(module.weight)


def test_fans_of_a_bias_are_its_length():
    (param,) = find(nn.Linear(3, 5), ["bias"])
    assert param.fan(param.parts[0], 0.5) == inits.Fan(5, 5, width=5, keep=0.5)


def test_our_attention_is_drawn_as_it_draws_itself():
    module = MultiHeadAttention(3, 4, 2, 7, hidden_vo=5)
    assert fans(module) == {
        ("query", 0): inits.Fan(3, 7, width=7, role="query"),
        ("key", 0): inits.Fan(3, 7, width=7, role="key"),
        ("value", 0): inits.Fan(3, 5, width=5, role="value"),
        ("output", 0): inits.Fan(5, 4, width=5, role="output"),
    }


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "vit", "torch encoder, training"])
def test_roles_and_head_widths_of_other_libraries(name):
    case = CASE[name]
    width = WIDTH // (4 if name == "llama" else HEADS)
    found = fans(case.build(), keep=0.5)
    for role in ("query", "key", "value"):
        ours = [(path, fan) for (path, _), fan in found.items() if fan.role == role]
        assert len(ours) == 2  # one a layer
        for path, fan in ours:
            grouped = name == "llama" and role != "query"  # two heads of keys and values for four of queries
            assert fan == inits.Fan(WIDTH, WIDTH // 2 if grouped else WIDTH, width=width, role=role, keep=0.5), path
    assert all(fan.keep == 0.5 for fan in found.values())


# ---------------------------------------------------------------- tables of patterns


def test_the_first_pattern_that_matches_any_name_counts():
    table = {"*.b.*": 1, "a.*": 2, "*": 3}
    assert first_match(table, ["a.b.c"]) == 1
    assert first_match(table, ["a.c"]) == 2
    assert first_match(table, ["x", "y.b.z"]) == 1
    assert first_match(table, ["x"]) == 3
    assert first_match({"a": 1}, ["ab", "A"]) is None
    assert first_match({}, ["a"]) is None


# ---------------------------------------------------------------- what is refused


@one_case
@pytest.mark.parametrize(
    ("make", "patterns", "message"),
    [
        (
            lambda: nn.Linear(3, 2),
            ["*.weight"],
            r"'\*\.weight': matches no parameter; there are weight, bias",
        ),
        (lambda: nn.Linear(3, 2), ["weight", "b"], "parameters='b': matches no parameter"),
        (nn.ReLU, ["*"], r"parameters='\*': matches no parameter; there are no parameters"),
        (nn.Tanh, None, "Tanh: nothing to mask; it holds no parameters"),
        (lambda: nn.BatchNorm1d(3), None, "BatchNorm1d: nothing to mask; it holds weight, bias"),
        (lambda: nn.Linear(3, 2), [], "Linear: nothing to mask; it holds weight, bias"),
        (lambda: nn.Linear(3, 2, device="meta"), None, "weight: must have values before it is wrapped"),
        (lambda: nn.LazyLinear(2), None, "weight: must have values before it is wrapped"),
        (lambda: nn.LazyConv1d(2, 3), ["*"], "weight: must have values before it is wrapped"),
        (
            lambda: nn.ParameterList([torch.ones(0, 4)]),
            ["0"],
            r"0 is torch\.float32 of shape \(0, 4\): must be floating",
        ),
        (
            lambda: nn.ParameterList([nn.Parameter(torch.ones(2, 4) > 0, requires_grad=False)]),
            None,
            r"0 is torch\.bool of shape \(2, 4\): must be floating-point and not empty",
        ),
    ],
)
def test_what_cannot_be_masked_is_named(make, patterns, message):
    with pytest.raises(ValueError, match=message):
        find(make(), patterns)


def test_of_many_names_some_are_shown():
    with pytest.raises(ValueError, match=r"there are 0\.weight, .*, 3\.bias, \.\.\.$"):
        find(nn.Sequential(*(nn.Linear(2, 2) for _ in range(5))), ["x"])
