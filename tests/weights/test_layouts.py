"""The fan of a layer, measured by the variance of what the layer itself computes; and what is no weight."""

import pytest
import torch
from tables import one_case
from torch import nn

import slth
from slth.masking.parameters import find
from slth.wrapping import handle, random_weight


class Stack(nn.Module):
    """Matrices (stack, out, in), or (stack, in, out)."""

    def __init__(self, inputs_first=False):
        super().__init__()
        self.is_transposed = inputs_first
        self.experts = nn.Parameter(torch.randn(4, 96, 48) if inputs_first else torch.randn(4, 48, 96))

    def forward(self, x):
        return x @ (self.experts if self.is_transposed else self.experts.mT)


class OwnConv1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(32, 24, 5))

    def forward(self, x):
        return nn.functional.conv1d(x, self.kernel)


def conv1d():
    from transformers.pytorch_utils import Conv1D

    return Conv1D(48, 96)


class Attention(nn.MultiheadAttention):
    """Its packed projection alone."""

    def forward(self, x):
        return x @ self.in_proj_weight.T


def rnn(cell):
    """The recurrent layer's own first product, its packed gates side by side."""

    class Gates(cell):
        def forward(self, x):
            return x @ self.weight_ih_l0.T

    return Gates(96, 48)


LAYERS = {
    "linear": (lambda: nn.Linear(96, 48, bias=False), (256, 96)),
    "Conv1D": (conv1d, (256, 96)),
    "bilinear": (lambda: nn.Bilinear(12, 8, 64, bias=False), None),
    "convolution": (lambda: nn.Conv2d(16, 32, 3, bias=False), (8, 16, 12, 12)),
    "grouped": (lambda: nn.Conv1d(32, 32, 5, groups=4, bias=False), (16, 32, 64)),
    "depthwise": (lambda: nn.Conv2d(64, 64, 5, groups=64, bias=False), (4, 64, 20, 20)),
    "transposed": (lambda: nn.ConvTranspose1d(32, 16, 5, padding=4, bias=False), (16, 32, 64)),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(32, 64, 5, groups=4, padding=4, bias=False), (16, 32, 64)),
    "transposed, depthwise": (lambda: nn.ConvTranspose2d(64, 64, 4, groups=64, padding=3, bias=False), (4, 64, 20, 20)),
    "transposed, with a stride": (
        lambda: nn.ConvTranspose2d(16, 32, 4, stride=2, padding=3, bias=False),
        (4, 16, 16, 16),
    ),
    "transposed, with an odd stride": (lambda: nn.ConvTranspose1d(32, 64, 3, stride=2, padding=2), (8, 32, 128)),
    "experts": (Stack, (4, 64, 96)),
    "experts, transposed": (lambda: Stack(True), (4, 64, 96)),
    "a convolution of one's own": (OwnConv1d, (16, 24, 64)),
    "packed attention": (lambda: Attention(96, 4, bias=False), (256, 96)),
    **{cell.__name__: (lambda cell=cell: rnn(cell), (256, 96)) for cell in (nn.RNN, nn.GRU, nn.LSTM)},
}


@one_case
@pytest.mark.parametrize("keep", [1.0, 0.4])
@pytest.mark.parametrize("init", ["kaiming_uniform", "signed_constant", "kaiming_normal"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_output_s_mean_square_is_twice_the_input_s(name, init, keep):
    make, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s, generator=generator) for s in ([shape] if shape else [(256, 12), (256, 8)])]
    model = slth.wrap(make(), keep, weights=init)
    with torch.no_grad():
        bias = getattr(model, "bias", None)
        if isinstance(bias, torch.Tensor):
            bias.zero_()
        out = model(*inputs)
    assert 1.75 < out.square().mean() < 2.25


@one_case
@pytest.mark.parametrize("name", LAYERS)
def test_scores_start_within_the_root_of_the_fan(name):
    make, _ = LAYERS[name]
    model = slth.wrap(make(), 1.0, weights="kaiming_uniform")
    for path, masked in handle(model).weights.items():
        fan = 6.0 / (3 * random_weight(model, path).square().mean())  # U[-b, b] with b = sqrt(6 / fan)
        assert float(masked.scores.detach().abs().max()) == pytest.approx(float(fan) ** -0.5, rel=0.1)


def test_a_weight_under_a_parametrization_is_laid_out_as_its_layer_has_it():
    layer = nn.ConvTranspose1d(8, 8, 4, stride=2, groups=2)
    (bare,) = find(layer)
    fan = bare.fan(bare.parts[0], 0.5)
    for put in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        (target,) = find(put(nn.ConvTranspose1d(8, 8, 4, stride=2, groups=2)))
        assert target.fan(target.parts[0], 0.5) == fan
    packed = nn.utils.parametrizations.weight_norm(nn.MultiheadAttention(8, 2), "in_proj_weight")
    roles = {target.path: [part.role for part in target.parts] for target in find(packed)}
    assert roles["parametrizations.in_proj_weight.original1"] == ["query", "key", "value"]


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4"])
def test_experts_of_transformers_have_the_fan_of_one_matrix(name):
    if name == "mixtral":
        from transformers import MixtralConfig as Config
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts as Experts

        config = Config(hidden_size=8, intermediate_size=12, num_local_experts=3)
    elif name == "gpt_oss":
        from transformers import GptOssConfig as Config
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts as Experts

        config = Config(hidden_size=8, intermediate_size=12, num_local_experts=3)
    else:
        from transformers import Llama4TextConfig as Config
        from transformers.models.llama4.modeling_llama4 import Llama4TextExperts as Experts

        config = Config(hidden_size=8, intermediate_size=12, num_local_experts=3)
    fans = {t.path: (t.fan(t.parts[0], 1.0).fan_in, t.fan(t.parts[0], 1.0).fan_out) for t in find(Experts(config))}
    assert fans == {"gate_up_proj": (8, 24), "down_proj": (12, 8)}


# ---------------------------------------------------------------- what is no weight


class Rescale(nn.Module):
    def __init__(self, name="weight"):
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(3, 4)))


class LayerScale(Rescale):
    pass


@one_case
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
        lambda: nn.utils.weight_norm(nn.Linear(4, 4), dim=1),
        lambda: nn.utils.weight_norm(nn.LSTM(4, 4), "weight_hh_l0"),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        lambda: nn.Sequential(Rescale("gamma"), nn.Linear(4, 4)),
        lambda: nn.Sequential(Rescale("layer_scale"), nn.Linear(4, 4)),
        lambda: nn.Sequential(LayerScale(), nn.Linear(4, 4)),
        lambda: nn.ModuleDict({"input_layernorm": Rescale(), "fc": nn.Linear(4, 4)}),
        lambda: nn.utils.parametrizations.weight_norm(nn.LayerNorm((3, 4))) and nn.Linear(4, 4),
    ],
)
def test_gains_are_left_alone(make):
    names = [target.path for target in find(make())]
    assert names
    assert not [n for n in names if n.endswith(("_g", "original0", "gamma", "scale")) or n.startswith(("0.w", "input"))]


def test_a_linear_layer_is_one_whatever_it_is_called():
    class NormedLinear(nn.Linear):
        pass

    model = nn.ModuleDict({"norm_out": nn.Linear(4, 4), "normal_map": Rescale(), "other": NormedLinear(4, 4)})
    assert [target.path for target in find(model)] == ["norm_out.weight", "normal_map.weight", "other.weight"]


@one_case
@pytest.mark.parametrize(
    ("name", "is_norm"),
    [
        *((name, False) for name in ("NormalizedLinear", "NormalisedConv", "NormedLinear", "NormalMap")),
        *((name, True) for name in ("TokenNorm", "GroupNorm2d", "LayerNormalization", "Normalisation")),
    ],
)
def test_a_norm_is_told_by_its_name_or_its_class_s(name, is_norm):
    matrix = type(name, (Rescale,), {})()
    for model in (nn.ModuleDict({"first": matrix}), nn.ModuleDict({name: Rescale()})):
        assert [t.path for t in find(nn.ModuleDict({"a": model, "b": nn.Linear(4, 4)}))][:-1] == [
            f"a.{path}.weight" for path in model if not is_norm
        ]


# ---------------------------------------------------------------- patterns


def test_a_pattern_that_matches_weights_takes_no_biases():
    model = nn.ModuleDict({"attn": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    for patterns, wanted in (
        (["*"], ["attn.weight"]),
        (["attn.*"], ["attn.weight"]),
        (["attn.*", "attn.bias"], ["attn.weight", "attn.bias"]),
        (["*bias"], ["attn.bias", "norm.bias"]),
        (["norm.*"], ["norm.weight", "norm.bias"]),
    ):
        assert [target.path for target in find(model, patterns)] == wanted


# ---------------------------------------------------------------- what cannot be masked


def of(parameter):
    return nn.ParameterDict({"a": nn.Parameter(parameter, requires_grad=False)})


@one_case
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Embedding(5, 4, max_norm=0.5)), r"0\.weight: max_norm=0\.5 writes to the weights"),
        (lambda: nn.EmbeddingBag(5, 4, max_norm=1.0), r"weight: max_norm=1\.0 writes .* set max_norm=None"),
        (lambda: of(torch.eye(4).to_sparse()), r"a is torch\.sparse_coo: must be a dense tensor"),
        (lambda: of(torch.ones(4, 4).to(torch.float8_e4m3fn)), r"a is torch\.float8_e4m3fn: must have 16 bits or more"),
        (lambda: of(torch.ones(1, 4).expand(3, 4)), r"a is an expanded view"),
        (
            lambda: of(torch.ones(4, 4, dtype=torch.complex64)),
            r"a is torch\.complex64 of shape .*: must be float",
        ),
    ],
)
def test_what_cannot_be_masked_is_named_with_a_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        slth.wrap(make())


def test_an_embedding_with_max_norm_may_be_left_out():
    model = slth.wrap(nn.Sequential(nn.Embedding(5, 4, max_norm=0.5), nn.Linear(4, 2)), parameters="1.*")
    model(torch.tensor([1])).sum().backward()
    assert handle(model).weights["1.weight"].scores.grad.any()


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("method", [None, slth.search.Biprop(), slth.search.IteRand(every=1), slth.search.Frozen()])
def test_a_row_of_padding_stays_zero_through_search_and_ticket(layer, method, tmp_path):
    def build():
        return layer(10, 8, padding_idx=3)

    model = slth.wrap(build(), 0.5, weights="signed_constant")
    assert not handle(model).masks()["weight"][3].any()
    tokens = torch.tensor([[3, 1, 2], [5, 3, 3]])
    if method is not None:
        options = {"method": method, "progress": False}
        slth.fit(model, lambda step: tokens, lambda m, t: m(t).square().mean(), 12, **options)
    slth.Ticket.of(model).save(tmp_path / "t")
    rebuilt = slth.Ticket.load(tmp_path / "t").apply(build())
    assert rebuilt(tokens).equal(model(tokens))
    assert not rebuilt.weight[3].any()
    assert not slth.unwrap(model).weight[3].any()


def test_a_row_of_padding_that_has_numbers_is_a_row_like_others():
    table = torch.arange(1.0, 41.0).reshape(10, 4)
    model = slth.wrap(nn.Embedding.from_pretrained(table, padding_idx=0), 1.0)
    assert model(torch.tensor([0])).equal(table[:1])
