"""Kinds of masks: multipliers against a plain reading of their definition, on networks of every kind."""

import math

import numpy as np
import pytest
import torch
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_cases import MLP
from torch import nn

import slth
from slth.masking import masks
from slth.masking.kinds import KINDS, Blocks, Nested, NOfM, Signed, as_kind, of_json
from slth.masking.layouts import Axes
from slth.wrapping import handle, random_weight

KEPT = {
    "signed(levels=2)": 0.6,
    "nested(levels=3)": 0.6,
    "blocks(rows=2, columns=2)": 0.5,
    "n_of_m(n=1, m=2)": 0.5,
}


def expected(kind, scores, keep, axes, shape):
    """The multipliers as kinds define them, by sorting in numpy; a group is one tensor of scores."""
    scores = scores.detach().numpy()
    order = np.argsort(-np.abs(scores), axis=None, kind="stable")
    if isinstance(kind, NOfM):
        return n_of_m(kind, np.abs(scores), axes.inputs)
    out = np.zeros(scores.size, np.int8)
    levels = getattr(kind, "levels", 1)
    for level in range(levels):
        out[order[: masks.count_kept(scores.size, keep * ((levels - level) / levels))]] += 1
    out = out.reshape(scores.shape)
    if isinstance(kind, Signed):
        out = np.where(scores < 0, -out, out)
    if isinstance(kind, Blocks):
        out = np.repeat(np.repeat(out, kind.rows, axes.outputs), kind.columns, axes.inputs)
        out = np.broadcast_to(out, shape)
    return out


def n_of_m(kind, magnitudes, axis):
    rows = np.moveaxis(magnitudes, axis, -1)
    out = np.zeros(rows.shape, np.int8)
    for index in np.ndindex(rows.shape[:-1]):
        for start in range(0, rows.shape[-1], kind.m):
            best = np.argsort(-rows[index][start : start + kind.m], kind="stable")[: kind.n]
            out[index][start + best] = 1
    return np.moveaxis(out, -1, axis)


def wrapped(case, kind, **options):
    """The case under masks of the kind, or None where the kind does not divide it, which changes nothing."""
    module = case.build()
    before = {name: p.clone() for name, p in module.named_parameters()}
    try:
        return slth.wrap(module, KEPT[kind], weights="signed_constant", kind=kind, **options)
    except ValueError as error:
        if "must be divisible by" not in str(error):
            raise
        assert all(p.equal(before[name]) for name, p in module.named_parameters())
        return None


def can_be_served(ticket, case):
    try:
        slth.serve(ticket, case.build())
    except ValueError as error:
        if "no layer can be served" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_network_under_every_kind(case, kind):
    model = wrapped(case, kind, scale="row")
    if model is None:
        assert kind.startswith(("blocks", "n_of_m"))
        return
    for masked in handle(model).weights.values():
        with torch.no_grad():
            masked.factors.copy_(torch.linspace(0.5, 1.5, len(masked.factors)))
    case.loss(model).backward()
    effective = slth.wrapping.effective(model)
    for path, masked in handle(model).weights.items():
        multiplier = masked.multiplier()
        if len(masked.parts) == 1:
            by_hand = expected(as_kind(kind), masked.scores, KEPT[kind], masked.form.axes, masked.form.shape)
            np.testing.assert_array_equal(multiplier.numpy(), by_hand)
        scale = masked.factors.repeat_interleave(1).reshape(
            [-1 if axis == masked.form.axes.outputs else 1 for axis in range(multiplier.dim())]
        )
        weight = random_weight(model, path) * multiplier * scale
        assert torch.equal(effective[path], weight.detach().to(effective[path].dtype))
        assert (effective[path] == 0).equal((multiplier == 0) | (random_weight(model, path) == 0))
        assert handle(model).masks()[path].equal(multiplier != 0)
    trained = [p for masked in handle(model).weights.values() for p in masked.trained]
    assert sum(bool(p.grad is not None and p.grad.any()) for p in trained) >= len(trained) // 2

    out = case.run(model.eval())
    ticket = slth.Ticket.from_bytes(slth.Ticket.of(model).to_bytes())
    assert ticket.version == 3
    torch.testing.assert_close(case.run(ticket.apply(case.build())), out)
    other = slth.wrap(case.build(1), KEPT[kind], kind=kind, scale="row", seed=5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(case.run(other.eval()), out)
    if can_be_served(ticket, case):
        close = {"rtol": 0.1, "atol": 0.05} if out.dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(case.run(slth.serve(ticket, case.build())), out, **close)


@pytest.mark.parametrize("kind", KEPT)
def test_most_networks_take_every_kind(kind):
    taken = [case.name for case in CASES if wrapped(case, kind) is not None]
    assert len(taken) >= 12


# ---------------------------------------------------------------- gradients


def test_gradients_are_those_of_the_kind():
    weight, grad = torch.randn(8, 16), torch.randn(8, 16)
    for text, slope in {
        "signed": lambda scores: grad * weight,
        "nested": lambda scores: grad * weight * torch.where(scores < 0, -1.0, 1.0),
        "n_of_m": lambda scores: grad * weight * torch.where(scores < 0, -1.0, 1.0),
        "blocks(rows=4, columns=2)": lambda scores: (
            (grad * weight).reshape(2, 4, 8, 2).sum((1, 3)) * torch.where(scores < 0, -1.0, 1.0)
        ),
    }.items():
        layer = nn.Linear(16, 8, bias=False)
        with torch.no_grad():
            layer.weight.copy_(weight)
        slth.wrap(layer, 0.5, kind=text)
        (layer.weight * grad).sum().backward()
        (masked,) = handle(layer).weights.values()
        torch.testing.assert_close(masked.scores.grad, slope(masked.scores.detach()))


@pytest.mark.parametrize(("scale", "count"), [("matrix", 3), ("head", 6), ("row", 48)])
def test_factors_of_a_fused_attention(scale, count):
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    slth.wrap(layer, 0.5, scale=scale)
    masked = handle(layer).weights["in_proj_weight"]
    assert masked.factors.shape == (count,)
    x = torch.randn(2, 5, 16)
    layer(x, x, x)[0].square().sum().backward()
    slope = masked.factors.grad
    assert slope is not None
    with torch.no_grad():  # the scale of a key changes attention alone, that of a value the output
        before = layer(x, x, x)[0]
        masked.factors[-1] = 2.0
        assert not torch.equal(layer(x, x, x)[0], before)


# ---------------------------------------------------------------- tickets


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_tell_all_multipliers(data):
    kind = data.draw(st.sampled_from([Signed(), Signed(3), Nested(2), Nested(5), Blocks(2, 3), NOfM(2, 4), NOfM(3, 4)]))
    inputs_first = data.draw(st.booleans())
    axes = Axes(1, 0) if inputs_first else Axes(0, 1)
    shape = (12, 24) if not inputs_first else (24, 12)
    grid = kind.score_shape(shape, axes)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scores = torch.from_numpy(rng.integers(-3, 4, size=grid)).float()  # with many ties
    keep = 0.5 if isinstance(kind, Blocks) else getattr(kind, "n", 3) / getattr(kind, "m", 5)
    multiplier = torch.from_numpy(np.array(expected(kind, scores, keep, axes, shape)))
    pieces = kind.pieces(multiplier, axes)
    assert kind.joined(shape, pieces, axes).equal(multiplier)
    with pytest.raises(ValueError, match="bits, must be"):
        kind.joined(shape, [torch.cat([piece, piece.new_zeros(1)]) for piece in pieces], axes)


@pytest.mark.parametrize(
    ("kind", "keep", "bits"),
    [
        ("prune", 0.5, 1.0),
        ("signed", 2 / 3, math.log2(3)),
        ("signed", 1.0, 1.0),
        ("signed(levels=2)", 0.8, math.log2(5)),
        ("nested(levels=2)", 2 / 3, math.log2(3)),
        ("nested(levels=3)", 0.75, 2.0),
        ("blocks(rows=4, columns=2)", 0.5, 1 / 8),
        ("n_of_m", 0.5, math.log2(6) / 4),
    ],
)
def test_a_file_is_as_large_as_its_bits(kind, keep, bits):
    """Within 2 % and what describes the weights."""
    layer = nn.Linear(1024, 1024, bias=False)
    slth.wrap(layer, keep, weights="signed_constant", kind=kind, scale="row")
    assert as_kind(kind).bits(keep) == pytest.approx(bits)
    ticket = slth.Ticket.of(layer)
    counted = layer.weight.numel() * bits / 8 + 4 * 1024
    header = len(ticket.to_bytes()) - sum(t.nbytes for t in ticket.tensors.values())
    assert header < 2048
    assert len(ticket.to_bytes()) - header == pytest.approx(counted, rel=0.02)


def test_kinds_by_pattern():
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    slth.wrap(model, 0.5, kind={"0.*": "n_of_m"})
    first, second = handle(model).weights.values()
    assert (first.form.kind, second.form.kind) == (NOfM(2, 4), as_kind("prune"))


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_as_text_and_json(kind):
    one = as_kind(kind)
    assert as_kind(str(one)) == of_json(one.to_json()) == one
    assert hash(one) == hash(as_kind(str(one)))


def test_set_masks_takes_multipliers():
    model = slth.wrap(MLP.build(), 0.6, kind="signed(levels=2)")
    other = slth.wrap(MLP.build(), 0.9, kind="signed(levels=2)", seed=3)
    given = handle(model).multipliers()
    handle(other).set_masks(given)
    assert all(mask.equal(given[path]) for path, mask in handle(other).multipliers().items())
    bad = {path: mask.clamp(max=1) for path, mask in given.items()}
    with pytest.raises(ValueError, match=r"mask of 0\.weight: must be one that scores of signed\(levels=2\) give"):
        handle(other).set_masks(bad)
    assert all(mask.equal(given[path]) for path, mask in handle(other).multipliers().items())


@pytest.mark.parametrize("kind", ["signed", *KEPT])
def test_searches_go_on_as_if_they_had_not_ended(tmp_path, kind):
    inputs = torch.linspace(-1, 1, 32).reshape(2, 16)
    stops = iter([False] * 5 + [True])

    def searched(path, loss):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
        slth.wrap(model, 0.5, weights="signed_constant", kind=kind, scale="matrix")
        slth.fit(model, lambda step: inputs + step, loss, 8, lr=0.1, checkpoint=path, save_every=1, progress=False)
        return model

    def loss(model, batch):
        return (model(batch) - batch[:, :8]).square().mean()

    def stopping(model, batch):
        if next(stops):
            raise KeyboardInterrupt
        return loss(model, batch)

    whole = searched(tmp_path / "whole", loss)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "parts", stopping)
    again = searched(tmp_path / "parts", loss)
    for one, other in zip(handle(whole).weights.values(), handle(again).weights.values(), strict=True):
        assert one.scores.equal(other.scores)
        assert one.factors.equal(other.factors)
        assert not one.factors.equal(torch.ones_like(one.factors))
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sign"}, r"kind='sign': must be one of prune, signed, nested, blocks, n_of_m, or a Kind"),
        ({"kind": 3}, r"kind=3: must be one of"),
        ({"kind": "signed(level=2)"}, r"kind=signed: has no option 'level', must be one of levels"),
        ({"kind": "prune(levels=2)"}, r"kind=prune: has no option 'levels', must be left out"),
        ({"kind": "nested(levels=0)"}, r"kind=nested: levels=0: must be an int >= 1 and <= 100"),
        ({"kind": "nested(levels=101)"}, r"kind=nested: levels=101: must be an int >= 1 and <= 100"),
        ({"kind": "blocks(rows=0)"}, r"kind=blocks: rows=0: must be an int >= 1"),
        ({"kind": "n_of_m(n=4, m=4)"}, r"kind=n_of_m: n=4: must be an int from 1 to 3"),
        ({"kind": "n_of_m(n=1, m=4)"}, r"of 0\.weight: keep=0\.5: must be 0\.25, n=1 of m=4"),
        ({"kind": "n_of_m(n=3, m=6)"}, r"16 inputs: must be divisible by m=6"),
        ({"kind": "blocks(rows=3)"}, r"32 outputs and 16 inputs: must be divisible by rows=3 and columns=4"),
        ({"kind": {"9.*": "signed"}}, r"kind: the pattern '9\.\*' matches no weight"),
        ({"kind": {"0.*": "signed"}, "policy": "global"}, r"kind=prune, signed\(levels=1\) within the group"),
        ({"kind": "blocks", "parameters": "*.bias"}, r"of 0\.bias: shape \(32,\): must have two axes or more"),
        ({"scale": "column"}, r"scale='column': must be None or one of matrix, head, row"),
        ({"scale": 2}, r"scale=2: must be None or one of"),
    ],
)
def test_bad_options_change_nothing(options, message):
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        slth.wrap(model, 0.5, weights="signed_constant", **options)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", [slth.search.Biprop(), slth.search.Frozen(), slth.search.Bernoulli()])
@pytest.mark.parametrize("options", [{"kind": "signed"}, {"scale": "row"}], ids=str)
def test_methods_that_take_plain_masks_alone(method, options):
    layer = slth.wrap(nn.Linear(16, 8), 0.5, **options)
    drawn = []
    with pytest.raises(ValueError, match="must have plain masks, kind=prune and no scale"):
        slth.fit(layer, lambda step: drawn.append(step), lambda model, batch: batch, 2, method=method)
    assert not drawn


def test_states_of_other_kinds_are_refused():
    model, other = (slth.wrap(MLP.build(), 0.5, kind=kind) for kind in ("signed", "nested"))
    with pytest.raises(ValueError, match=r'was wrapped with mask \["signed", {"levels": 1}\], here \["nested"'):
        other.load_state_dict(model.state_dict())
