"""The paper's transformer, the language model around it, and both hidden in random ones (Theorems 11 and 14)."""

import copy
import math

import pytest
import torch
from helpers import causal_mask, direct_attention, random_inputs, random_mask
from tables import one_case

from slth.construct import certify, feed_forward, language_model, pruned, record_scales, transformer
from slth.construct.multi_head import attention
from slth.models.transformer import FeedForward, LanguageModel, Product, Table, Transformer, normalise
from slth.weights import inits

VOCABULARY, LENGTH = 7, 6


def target_of(d=2, blocks=2, heads=1, ff_widths=(), *, norm=False, seed=0):
    """A float64 target whose factors have spectral norm 1, as the theorem assumes."""
    target = Transformer(d, blocks, heads, 4, ff_widths, norm=norm, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        for weight in target.parameters():
            weight /= torch.linalg.matrix_norm(weight, ord=2, keepdim=True)
    return target


def source_of(d=2, blocks=2, heads=1, hidden=40, layers=1, *, norm=False, seed=100, dtype=torch.float32):
    """A source with `hidden` units per head and in each half-layer, for a target whose networks have d-wide layers."""
    widths = [width for _ in range(layers) for width in (hidden, d)][:-1]
    return Transformer(d, blocks, heads, hidden, widths, norm=norm, seed=seed, dtype=dtype)


def model_of(kind, seed, *, d=2, heads=1, hidden=4, ff_widths=(), norm=False, product_hidden=0, dtype=torch.float64):
    """A small language model; kind is Table or Product."""

    def matrix(rows, columns, name):
        if kind is Product:
            return Product(rows, columns, product_hidden, seed=seed, name=name, dtype=dtype)
        return Table(rows, columns, std=0.3, seed=seed, name=name, dtype=dtype)

    body = Transformer(d, 2, heads, hidden, ff_widths, norm=norm, seed=seed, dtype=dtype)
    parts = matrix(VOCABULARY, d, "embedding"), matrix(LENGTH, d, "positions"), body, matrix(d, VOCABULARY, "head")
    return LanguageModel(*parts)


def tokens(*shape, seed=0):
    return (inits.uniform(shape, 1.0, seed=seed, name="tokens").abs() * VOCABULARY).long()


def by_hand(model, x, mask=None):
    """Oracle: the vectors after each block, head by head and layer by layer."""
    states = []
    for block in model.blocks:
        y = x + direct_attention(block.attention, standard(x) if model.norm else x, mask)
        z = standard(y) if model.norm else y
        for i, (weight, scale) in enumerate(zip(block.feed_forward.layers, block.feed_forward.scales, strict=True)):
            z = (z.clamp_min(0) if i else z) @ weight.detach().to(x.dtype) * scale.to(x.dtype)
        x = y + z
        states.append(x)
    return states


def standard(x):
    """Oracle: mean 0 and variance 1 over the coordinates."""
    x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()


def largest(x):
    return torch.linalg.vector_norm(x.detach(), dim=-1).amax().item()


def masks_for(length, samples):
    return None, causal_mask(length), random_mask(1, samples, length, length)


# ---------------------------------------------------------------- the models


def test_normalise():
    x = random_inputs(0, 3, 5, 4, norm=7.0)
    assert torch.allclose(normalise(x, True), standard(x), rtol=0, atol=1e-13)
    assert normalise(x, False) is x
    assert normalise(torch.ones(2, 4), True).abs().max() == 0  # nothing to divide by, and no NaN


def test_feed_forward_is_a_relu_network_of_named_weights():
    network = FeedForward((3, 5, 2), seed=4, prefix="p.", dtype=torch.float64)
    network.scales[0], network.scales[1] = -2.0, 0.5
    drawn = [inits.uniform(s, 1.0, seed=4, name=f"p.layers.{i}").double() for i, s in enumerate([(3, 5), (5, 2)])]
    assert all(weight.equal(random) for weight, random in zip(network.layers, drawn, strict=True))
    x = random_inputs(0, 6, 3)
    assert torch.allclose(network(x), 0.5 * (-2.0 * x @ drawn[0]).clamp_min(0) @ drawn[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("d", "blocks", "heads", "ff_widths"), [(2, 1, 1, ()), (3, 2, 2, (5,)), (4, 3, 2, (6, 2))])
def test_transformer_is_what_the_paper_writes(d, blocks, heads, ff_widths, norm):
    model = Transformer(d, blocks, heads, 5, ff_widths, norm=norm, seed=3, dtype=torch.float64)
    for block in model.blocks:
        block.feed_forward.scales.mul_(0.5)
        block.attention.scale_qk.mul_(2)
    for length in (1, 5):
        x = random_inputs(length, 4, length, d, norm=math.sqrt(d))
        for mask in masks_for(length, 4):
            assert torch.allclose(model(x, mask), by_hand(model, x, mask)[-1], rtol=1e-10, atol=1e-10)


def test_no_two_weights_are_drawn_alike_and_a_seed_gives_the_same():
    model, again, other = (Transformer(2, 3, 1, 2, (2,), seed=seed) for seed in (5, 5, 6))
    drawn = [weight.flatten()[:4].tolist() for weight in model.parameters()]  # at n=2 several have the same shape
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn) == 3 * 6
    assert all(a.equal(b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not any(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_first_blocks_of_a_deeper_transformer_are_those_of_a_shallower_one():
    shallow, deep = (Transformer(2, blocks, 1, 4, (4,), seed=5) for blocks in (1, 3))
    assert all(tensor.equal(deep.state_dict()[name]) for name, tensor in shallow.state_dict().items())


def test_table_and_product():
    table = Table(4, 3, std=0.1, seed=0, name="t", dtype=torch.float64)
    assert table.matrix().equal(inits.normal((4, 3), 0.1, seed=0, name="t").double())
    product = Product(4, 3, 9, seed=0, name="t", dtype=torch.float64)
    product.scale.fill_(4)
    first = inits.uniform((4, 9), 1.0, seed=0, name="t.first").double()
    second = inits.uniform((9, 3), 1.0, seed=0, name="t.second").double()
    assert torch.allclose(product.matrix(), 4 * first @ second, rtol=0, atol=1e-14)
    assert [name for name, _ in product.named_parameters()] == ["first", "second"]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", [Table, Product])
def test_language_model_is_what_it_says(norm, kind):
    model = model_of(kind, 1, ff_widths=(5,), norm=norm, product_hidden=20)
    for length in (1, LENGTH):
        given = tokens(3, length)
        x = torch.stack([model.embedding.matrix()[row] for row in given]) + model.positions.matrix()[:length]
        state = by_hand(model.transformer, x.detach(), causal_mask(length))[-1]
        logits = (standard(state) if norm else state) @ model.head.matrix()
        assert model(given).shape == (3, length, VOCABULARY)
        assert torch.allclose(model(given), logits, rtol=1e-10, atol=1e-10)


def test_what_comes_later_changes_nothing_before_it():
    model = model_of(Table, 1, ff_widths=(5,))
    given = tokens(2, LENGTH)
    other = given.clone()
    other[:, 3] = (other[:, 3] + 1) % VOCABULARY
    one, two = model(given), model(other)
    assert torch.allclose(one[:, :3], two[:, :3], rtol=0, atol=1e-14)
    assert not torch.isclose(one[:, 3:], two[:, 3:]).all(dim=-1).any()  # every later position sees it
    assert torch.allclose(model(given[:, :3]), one[:, :3], rtol=0, atol=1e-14)


def test_too_many_tokens():
    with pytest.raises(ValueError, match=f"{LENGTH + 1} tokens: must be at most {LENGTH}"):
        model_of(Table, 0)(tokens(1, LENGTH + 1))


@one_case
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 0, 1, 4, ()), "blocks=0: must be an int >= 1"),
        ((2, -1, 1, 4, ()), "blocks=-1: must be an int >= 1"),
        ((2, 1, 0, 4, ()), "heads=0: must be an int >= 1"),
        ((2, 1, 1, 0, ()), "hidden=0: must be an int >= 1"),
        ((0, 1, 1, 4, ()), "^d=0: must be an int >= 1"),
        ((2, 1, 1, 4, (3, 0)), r"widths=\[2, 3, 0, 2\]: must be at least two ints >= 1"),
    ],
)
def test_dimensions_below_1(arguments, message):
    with pytest.raises(ValueError, match=message):
        Transformer(*arguments)


def test_a_network_without_layers():
    with pytest.raises(ValueError, match=r"widths=\[2\]"):
        FeedForward((2,))


# ---------------------------------------------------------------- construction

#: d, blocks, heads, layers of the target's networks, hidden, norm
CASES = [(2, 1, 1, 1, 40, False), (2, 3, 1, 1, 40, True), (3, 2, 2, 2, 36, False), (2, 2, 2, 3, 21, True)]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def pair(case, seed=0):
    d, blocks, heads, layers, hidden, norm = case
    target = target_of(d, blocks, heads, (d,) * (layers - 1), norm=norm, seed=seed)
    return target, source_of(d, blocks, heads, hidden, layers, norm=norm, seed=seed + 100)


@each_case
@pytest.mark.parametrize("scaled", [False, True])
def test_a_weight_is_exactly_zero_or_bit_for_bit_the_random_one(case, scaled):
    target, source = pair(case)
    if scaled:
        record_scales(target, source)
    before = [copy.deepcopy(module.state_dict()) for module in (target, source)]
    ticket = transformer(target, source)
    for module, state in zip((target, source), before, strict=True):
        assert all(tensor.equal(state[name]) for name, tensor in module.state_dict().items())
    twin = pruned(source, ticket.masks)
    assert set(ticket.masks) == {name for name, _ in source.named_parameters()}  # everything random is masked
    for name, mask in ticket.masks.items():
        weight, random = twin.get_parameter(name), source.get_parameter(name)
        assert (mask.dtype, mask.shape) == (torch.bool, random.shape)
        assert weight[mask].equal(random[mask])
        assert (weight[~mask] == 0).all()
        assert mask.equal(weight != 0)
    assert all(tensor.equal(source.state_dict()[name]) for name, tensor in twin.state_dict().items() if "scale" in name)
    assert ticket.weights == sum(weight.numel() for weight in source.parameters())
    assert ticket.keep == sum(int((weight != 0).sum()) for weight in twin.parameters()) / ticket.weights


@each_case
def test_the_parts_are_those_of_theorems_9_and_10(case):
    target, source = pair(case)
    d, blocks, heads, layers, hidden, _ = case
    ticket = transformer(target, source)
    twin = pruned(source, ticket.masks).double()
    unreachable = 0
    for b, (wanted, block) in enumerate(zip(target.blocks, source.blocks, strict=True)):
        attn = attention(wanted.attention, block.attention, side="input")
        network = feed_forward(wanted.feed_forward, block.feed_forward)
        assert all(ticket.masks[f"blocks.{b}.attention.{role}"].equal(mask) for role, mask in attn.masks.items())
        assert all(ticket.masks[f"blocks.{b}.feed_forward.{n}"].equal(mask) for n, mask in network.masks.items())
        assert all(
            torch.allclose(a, b)
            for a, b in zip(ticket.blocks[b].merged, twin.blocks[b].attention.merged(), strict=True)
        )
        assert all(a.equal(b) for a, b in zip(ticket.blocks[b].layers, network.errors.values(), strict=True))
        unreachable += attn.unreachable + network.unreachable
    assert ticket.unreachable == unreachable
    assert ticket.entries == blocks * (2 * heads * d * d + layers * 2 * d * d)
    assert ticket.candidates <= hidden // (2 * d)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("blocks", "heads", "layers"), [(1, 1, 1), (3, 2, 1), (2, 1, 2)])
def test_the_pruned_source_computes_what_the_target_computes(blocks, heads, layers, norm):
    """18 candidates per half: within 1e-2 of vectors of norm 1 and more, and within the certificate."""
    target = target_of(2, blocks, heads, (2,) * (layers - 1), norm=norm)
    source = source_of(2, blocks, heads, 72, layers, norm=norm, seed=12)
    record_scales(target, source)
    ticket = transformer(target, source)
    twin = pruned(source, ticket.masks).double()
    assert ticket.unreachable == 0
    for length in (1, 2, 9):
        x = random_inputs(length, 8, length, 2, norm=2**0.5, inside=True)
        for mask in masks_for(length, 8):
            error = largest(twin(x, mask) - target(x, mask))
            assert error <= certify(target, ticket, x, mask).blocks[-1]
            assert error < 1e-2
            assert largest(target(x, mask)) > 1


def test_zero_and_rank_deficient_targets():
    target, source = target_of(2, 2), source_of(2, 2, hidden=72, seed=12)
    with torch.no_grad():
        for weight in target.blocks[0].parameters():
            weight.zero_()
        for weight in target.blocks[1].parameters():
            weight[..., 1, :] = weight[..., 0, :]
    ticket = transformer(target, source)
    twin = pruned(source, ticket.masks).double()
    x = random_inputs(0, 8, 5, 2, norm=2**0.5)
    assert twin.blocks[0](x).equal(x)  # a block of zeros is met exactly
    bounds = certify(target, ticket, x).blocks
    assert bounds[0] < 1e-13  # float64's rounding
    assert largest(twin(x) - target(x)) <= bounds[1]
    assert bounds[1] < 0.1


# ---------------------------------------------------------------- errors of the construction


def test_targets_and_sources_that_differ():
    target = target_of(2, 2)
    for source, message in (
        (source_of(3, 2), "d: target has 2, source 3"),
        (source_of(2, 3), "blocks: target has 2, source 3"),
        (source_of(2, 2, norm=True), "norm: target has False, source True"),
        (source_of(2, 2, heads=2), "heads: target has 1, source 2"),
        (source_of(2, 2, layers=2), "source of 4 layers: must have twice the target's 1"),
        (source_of(2, 2, hidden=1), "hidden_qk=1: must be >= d_in=2"),
        (source_of(2, 2, hidden=3), "hidden=3: must be >= 4"),
    ):
        with pytest.raises(ValueError, match=message):
            transformer(target, source)


@one_case
@pytest.mark.parametrize("name", ["attention.key", "feed_forward.layers.0"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_targets_that_are_not_finite(name, value):
    target, source = target_of(2, 2), source_of(2, 2)
    with torch.no_grad():
        target.blocks[1].get_parameter(name).view(-1)[0] = value
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        transformer(target, source)


# ---------------------------------------------------------------- language models


@pytest.mark.parametrize("norm", [False, True])
def test_a_language_model_hidden_with_shared_tables(norm):
    target = model_of(Table, 0, norm=norm)
    source = model_of(Table, 1, hidden=72, ff_widths=(72,), norm=norm, dtype=torch.float64)
    for name in ("embedding", "positions", "head"):
        setattr(source, name, getattr(target, name))
    record_scales(target, source)
    ticket = language_model(target, source)
    assert set(ticket.masks) == {f"transformer.{name}" for name, _ in source.transformer.named_parameters()}
    twin = pruned(source, ticket.masks)
    assert twin.embedding.matrix().equal(target.embedding.matrix())
    given = tokens(5, LENGTH)
    states = (model.transformer(model.embed(given), causal_mask(LENGTH)) for model in (twin, target))
    bound = certify(target.transformer, ticket, target.embed(given).detach(), causal_mask(LENGTH)).blocks[-1]
    error = largest(next(states) - next(states))
    assert error <= bound
    assert (twin(given) - target(given)).abs().max() < 0.05


@pytest.mark.parametrize("norm", [False, True])
def test_a_language_model_hidden_with_random_tables(norm):
    """The drift of the embeddings goes into the certificate of the transformer."""
    target = model_of(Table, 0, norm=norm)
    source = model_of(Product, 1, hidden=72, ff_widths=(72,), norm=norm, product_hidden=36, dtype=torch.float64)
    record_scales(target, source)
    ticket = language_model(target, source)
    assert set(ticket.masks) == {name for name, _ in source.named_parameters()}
    assert ticket.unreachable == 0
    twin = pruned(source, ticket.masks)
    for name, mask in ticket.masks.items():
        weight, random = twin.get_parameter(name), source.get_parameter(name)
        assert weight[mask].equal(random[mask])
        assert (weight[~mask] == 0).all()
    for name in ("embedding", "positions", "head"):
        error = getattr(twin, name).matrix() - getattr(target, name).matrix()
        assert 0 < error.abs().max() < 1e-2
    given = tokens(5, LENGTH)
    drift = largest(twin.embed(given) - target.embed(given))
    x = target.embed(given).detach()
    error = largest(
        twin.transformer(twin.embed(given), causal_mask(LENGTH)) - target.transformer(x, causal_mask(LENGTH))
    )
    bounds = [certify(target.transformer, ticket, x, causal_mask(LENGTH), drift=e).blocks[-1] for e in (0.0, drift)]
    assert error <= bounds[1]
    assert bounds[0] < bounds[1]
    inner = transformer(target.transformer, source.transformer)
    assert ticket.entries == inner.entries + 2 * (VOCABULARY + LENGTH + VOCABULARY)
    assert ticket.candidates == min(inner.candidates, 36 // 2)


@pytest.mark.parametrize("name", ["embedding", "positions", "head"])
def test_tables_that_cannot_be_hidden(name):
    target = model_of(Table, 0)
    source = model_of(Product, 1, hidden=8, ff_widths=(8,), product_hidden=8)
    with torch.no_grad():
        getattr(target, name).weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=f"target {name} holds NaN or infinite values"):
        language_model(target, source)
    narrow = model_of(Product, 1, hidden=8, ff_widths=(8,), product_hidden=1)
    with pytest.raises(ValueError, match="hidden=1: must be >= 2"):
        language_model(model_of(Table, 0), narrow)
