"""One switch for all: with Triton chosen, wrap, the attentions and GPT-2 go through the kernels and find the same."""

import pytest
import torch
from tables import one_case
from torch import nn

pytest.importorskip("triton")

import slth
from slth import kernels
from slth.attention import DifferentialAttention, GroupedQueryAttention, MultiHeadAttention, MultiHeadLinearAttention
from slth.kernels import Selector, dispatch
from slth.kernels.attention import triton as triton_attention
from slth.kernels.mhla import triton as triton_mhla
from slth.kernels.seeded import triton as triton_seeded
from slth.kernels.select.nan import NaNWatch
from slth.masking import parameters
from slth.models import gpt2, gpt2_kernels
from slth.weights import inits
from slth.weights.recipes import Draw


@pytest.fixture
def asked():
    """The calls that took Triton, by kernel."""
    with kernels.counted() as counts:
        yield Taken(counts)


class Taken:
    def __init__(self, counts):
        self.counts = counts

    def __contains__(self, kernel):
        return self.count(kernel) > 0

    def __bool__(self):
        return any(impl == "triton" for _, impl in self.counts)

    def count(self, kernel):
        return self.counts[kernel, "triton"]


def tokens(*shape):
    return inits.normal(shape, 1.0, seed=4, name="tokens")


def both(call):
    """What a call gives by torch and by Triton."""
    wanted = call()
    with kernels.use("triton"):
        return wanted, call()


def assert_close(wanted, found):
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("hidden", [4, 24])  # kept as heads, and merged
def test_multi_head_attention(asked, hidden, masked):
    layer = MultiHeadAttention(8, 6, 2, hidden, init="xavier_uniform")
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if masked else None
    assert_close(*both(lambda: layer(tokens(2, 9, 8), mask).detach()))
    assert "attention" in asked


def test_grouped_query_attention(asked):
    layer = GroupedQueryAttention(8, 8, 4, 6, kv_heads=2, init="xavier_uniform", causal=True)
    assert_close(*both(lambda: layer(tokens(2, 11, 8)).detach()))
    assert "attention" in asked


@pytest.mark.parametrize("causal", [False, True])
def test_linear_attention(asked, causal):
    layer = MultiHeadLinearAttention(8, 8, 2, 6, length=21, block=8, init="xavier_uniform", causal=causal)
    assert_close(*both(lambda: layer(tokens(2, 21, 8)).detach()))
    assert "mhla" in asked


def test_gpt2(asked):
    config = gpt2.config("tiny", width=0.25, vocabulary=40, length=12, n_layer=1)
    model = gpt2.build(config, seed=0).eval()
    text = torch.arange(12)[None] % 40
    with torch.no_grad():
        assert_close(*both(lambda: model(text).logits))
    assert "attention" in asked


ATTENTIONS = {
    "heads": lambda: MultiHeadAttention(8, 6, 2, 4, init="xavier_uniform"),
    "merged": lambda: MultiHeadAttention(8, 6, 2, 24, init="xavier_uniform"),
    "causal": lambda: GroupedQueryAttention(8, 6, 4, 6, kv_heads=2, init="xavier_uniform", causal=True),
    "causal merged": lambda: GroupedQueryAttention(8, 6, 2, 24, init="xavier_uniform", causal=True),
    "causal differential": lambda: DifferentialAttention(8, 6, 2, 4, init="xavier_uniform", causal=True),
    "linear": lambda: MultiHeadLinearAttention(
        8, 6, 2, 6, length=21, block=8, init="xavier_uniform", causal=True, phi="elu1"
    ),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attentions_under_autocast(asked, name):
    layer = ATTENTIONS[name]()

    def gradients():
        with torch.autocast("cpu", torch.float16):
            out = layer(tokens(2, 9, 8))
        return out.detach().float(), *torch.autograd.grad(out.float().square().sum(), list(layer.parameters()))

    for wanted, found in zip(*both(gradients), strict=True):
        assert found.dtype == wanted.dtype
        assert float((found - wanted).abs().max()) <= 2e-2 * float(wanted.abs().max())
    assert asked


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attentions_compile_as_one_graph(name, impl):
    layer = ATTENTIONS[name]()
    with kernels.use(impl):
        found = torch.compile(layer, fullgraph=True, backend="eager")(tokens(2, 9, 8))
    assert_close(layer(tokens(2, 9, 8)).detach(), found.detach())


@pytest.mark.parametrize("name", ["causal", "causal merged", "causal differential"])
def test_causal_attentions_make_no_mask(monkeypatch, name):
    given = []
    for kernel in ("attention", "merged_attention"):
        real = getattr(kernels, kernel)

        def noting(*args, real=real, **options):
            given.extend(args[3:])
            return real(*args, **options)

        monkeypatch.setattr(kernels, kernel, noting)
    layer = ATTENTIONS[name]()
    assert_close(*both(lambda: layer(tokens(2, 9, 8)).detach()))
    assert set(given) == {None, True}


def test_causal_attentions_with_a_mask(asked):
    mask = torch.eye(9, dtype=torch.bool) | (tokens(2, 9, 9) > 0)
    for name in ("causal", "causal merged", "causal differential"):
        layer = ATTENTIONS[name]()
        assert_close(*both(lambda layer=layer: layer(tokens(2, 9, 8), mask).detach()))
        with kernels.use("triton"), pytest.raises(ValueError, match="has no True"):
            layer(tokens(2, 9, 8), torch.arange(9)[:, None].expand(9, 9) != 3)  # others attend to token 3: no padding
    assert "attention" in asked
    assert "merged_attention" in asked


@pytest.mark.parametrize("name", ["causal", "causal differential"])
def test_several_tokens_are_decoded_causally(asked, name):
    layer = ATTENTIONS[name]()

    def decoded():
        cache = layer.start()
        return torch.cat([layer.step(part, cache) for part in tokens(2, 9, 8).split([4, 1, 3, 1], dim=1)], 1).detach()

    wanted, found = both(decoded)
    assert_close(wanted, found)
    assert_close(layer(tokens(2, 9, 8)).detach(), found)
    assert asked.count("attention") == 4


@one_case
@pytest.mark.parametrize("keys", [5, 9])
@pytest.mark.parametrize("own", [True, False, None])
@pytest.mark.parametrize("told", [True, False, None])
def test_gpt2s_attention_is_causal_where_torchs_is(asked, own, told, keys):
    module = nn.Module()
    if own is not None:
        module.is_causal = own
    q, k, v = tokens(1, 2, 5, 8), tokens(1, 2, keys, 8), tokens(1, 2, keys, 8).flip(-1)
    before = asked.count("attention")
    wanted, found = both(lambda: gpt2_kernels.attend(module, q, k, v, None, is_causal=told)[0])
    assert_close(wanted, found)
    assert asked.count("attention") == before + 1


def test_a_mask_of_gpt2_that_adds_to_logits_is_torchs():
    q, k, v, mask = tokens(1, 2, 5, 8), tokens(1, 2, 5, 8), tokens(1, 2, 5, 8).flip(-1), tokens(1, 1, 5, 5)
    found, _ = gpt2_kernels.attend(nn.Module(), q, k, v, mask)
    assert_close(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2), found)


def test_gpt2s_heads_may_be_wider_than_the_kernels_take(monkeypatch):
    monkeypatch.setattr(dispatch, "_obstacle", lambda tensor: "")
    monkeypatch.setattr(dispatch, "_misfit", lambda device: "")
    q = tokens(1, 2, 5, 264)
    found, _ = gpt2_kernels.attend(nn.Module(), q, q, q, None)
    assert found.shape == (1, 5, 2, 264)


@pytest.mark.parametrize("policy", ["layer", "global"])
def test_wrapped_weights(asked, policy):
    def gradients():
        net = nn.Sequential(nn.Linear(7, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False))
        model = slth.wrap(net, keep=0.4, policy=policy, weights="kaiming_normal", seed=1)
        model(tokens(5, 7)).square().sum().backward()
        wrapped = slth.handle(model)
        found = {path: masked.scores.grad for path, masked in wrapped.weights.items()}
        return found, wrapped.masks()

    (wanted, kept), (found, same) = both(gradients)
    for path in wanted:
        assert_close(wanted[path], found[path])
        assert torch.equal(kept[path], same[path])
    assert all(kernel in asked for kernel in ("select_threshold", "masked_weight", "score_gradient"))


def test_scores_with_nan_are_noticed_later():
    scores = tokens(4, 5)
    scores[1, 2] = float("nan")
    with kernels.use("triton"):
        selector = Selector()
        selector.cut([scores], 10)
        with pytest.raises(ValueError, match="scores hold NaN"):
            selector.cut([tokens(4, 5)], 10)
        selector.cut([tokens(4, 5)], 10)


@pytest.mark.parametrize("k", [1, 20, 41])
def test_a_cut_on_the_device_keeps_what_any_cut_keeps(k):
    scores = [tokens(4, 5).mul(2).round(), tokens(3, 7).mul(2).round()]
    cut = Selector().cut(scores, k)
    with kernels.use("triton"):
        other = Selector().cut(scores, k)
    assert isinstance(other.value, torch.Tensor)
    assert torch.equal(cut.mask(scores[0]), other.mask(scores[0]))
    assert torch.equal(cut.mask(scores[1], 20), other.mask(scores[1], 20))


class Conv1D(nn.Module):
    """Hugging Face's, as far as a mask needs to know."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.weight = nf, nn.Parameter(tokens(nx, nf))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize("policy", ["layer", "global"])
def test_wrapped_weights_in_parts(asked, policy):
    """GPT-2's c_attn, whose query, key and value compete each for itself, and a convolution."""

    def masks_and_weights():
        net = nn.ModuleDict({"c_attn": Conv1D(12, 4), "conv": nn.Conv2d(3, 4, 3)})
        handle = slth.handle(slth.wrap(net, keep=0.4, policy=policy, weights="kaiming_normal", seed=1))
        kept = handle.masks()
        assert len(handle.weights["c_attn.weight"].parts) == 3
        return kept, {"c_attn.weight": net["c_attn"].weight.detach(), "conv.weight": net["conv"].weight.detach()}

    (kept, wanted), (same, found) = both(masks_and_weights)
    for path in wanted:
        assert torch.equal(kept[path], same[path])
        assert torch.equal(wanted[path], found[path])
        assert torch.equal(found[path] != 0, kept[path])
    assert asked.count("masked_weight") == 4  # three parts and a convolution


def test_parts_are_written_into_their_weight():
    weight, scores = tokens(6, 12), tokens(12, 6).T.mul(2).round()
    parts = [parameters.Part(i, 3, 1) for i in range(3)]
    pieces = [part.of(scores) for part in parts]

    def written():
        cut, out = Selector().cut(pieces, 29), torch.full_like(weight, 7.0)
        for i, part in enumerate(parts):
            kernels.pruned_weight(part.of(weight), (part.of(scores), cut.after(24 * i)), out=part.of(out))
        return out

    wanted, found = both(written)
    assert torch.equal(wanted, found)
    assert int((found != 0).sum()) == 29


def test_nan_in_the_last_cut_is_noticed_when_masks_are_asked_for():
    with kernels.use("triton"):
        model = slth.wrap(nn.Linear(7, 9), keep=0.4, policy="layer", weights="kaiming_normal", seed=1)
        model(tokens(5, 7))
        handle = slth.handle(model)
        (score,) = handle.scores()
        with torch.no_grad():
            score[2, 3] = float("nan")
        model(tokens(5, 7))
        for _ in range(2):
            with pytest.raises(ValueError, match="scores hold NaN"):
                handle.masks()
        with torch.no_grad():
            score[2, 3] = 1.0
        assert int(handle.masks()["weight"].sum()) == 25


def test_nan_is_noticed_in_looks_that_had_to_wait():
    class Late:
        def query(self):
            return False

        def synchronize(self):
            pass

    watch = NaNWatch()
    watch.look(tokens(3))
    watch.arrived = Late()
    watch.look(torch.tensor([float("nan")]))
    watch.look(tokens(3))
    with pytest.raises(ValueError, match="scores hold NaN"):
        watch.settle()
    watch.settle()


class Guarded:
    """Stands for a kernel, that must be launched on its tensors' device."""

    def __init__(self, guard, launched):
        self.guard, self.launched = guard, launched

    def __getitem__(self, grid):
        def launch(*args, **options):
            assert self.guard.device == torch.device("cpu")
            self.launched.append(grid)

        return launch


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    class Guard:
        device = None

        def __call__(self, tensor):
            self.tensor = tensor
            return self

        def __enter__(self):
            self.device = self.tensor.device

        def __exit__(self, *error):
            self.device = None

    guard, launched = Guard(), []
    monkeypatch.setattr(torch.cuda, "device_of", guard)
    for module, names in (
        (triton_attention, ("forward", "backward_queries", "backward_keys")),
        (triton_mhla, ("_summaries", "_attend", "_slopes")),
        (triton_seeded, ("_write", "_product", "_one_token")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Guarded(guard, launched))
    leaves = [tokens(2, 9, 8).requires_grad_() for _ in range(3)]
    kernels.attention(*leaves, impl="triton").sum().backward()
    assert len(launched) == 3
    kernels.mhla(*leaves, torch.ones(2, 2), block=8, impl="triton").sum().backward()
    assert len(launched) == 3 + 8
    bits = torch.full((16, 2), 255, dtype=torch.uint8)
    kernels.seeded_weight((16, 16), Draw("uniform", 1.0, 0, "w"), impl="triton")
    for rows in (1, 3):
        kernels.seeded_linear(tokens(rows, 16), Draw("uniform", 1.0, 0, "w"), bits, impl="triton")
    assert len(launched) == 3 + 8 + 3
