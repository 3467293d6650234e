"""What is in a ticket: counts by layer, projection and head, what is dead, and the overlap of two."""

import math
import runpy

import pandas as pd
import pytest
import torch
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from small_gpt2 import small
from tables import one_case
from torch import nn

import slth
from slth.attention import GroupedQueryAttention
from slth.building import built_of
from slth.models import gpt2
from slth.ticket import Overlap, TicketError, columns, overlap
from slth.ticket.__main__ import main
from slth.weights import inits

FUSED, OUT = "transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_proj.weight"
UP, DOWN = "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_proj.weight"


def masked(model, masks):
    """The model, wrapped, under these masks."""
    slth.wrap(model, 0.5)
    handle = slth.handle(model)
    handle.set_masks({path: masks.get(path, torch.ones_like(own)) for path, own in handle.masks().items()})
    return model


def random_mask(name, shape):
    return inits.uniform(shape, 1.0, seed=3, name=name) > 0


def gpt2_of(masks):
    return masked(gpt2.build(small(), seed=0), masks)


def row_of(found, weight, role, head=None):
    (row,) = [row for row in found.rows if (row.weight, row.role, row.head) == (weight, role, head)]
    return row


def test_counts_are_those_of_the_masks():
    fused, out = random_mask("fused", (24, 72)), random_mask("out", (24, 24))
    up, down = random_mask("up", (24, 96)), random_mask("down", (96, 24))
    found = slth.inspect(gpt2_of({FUSED: fused, OUT: out, UP: up, DOWN: down}))
    for part, role in enumerate(("query", "key", "value")):
        for head in range(3):
            row = row_of(found, FUSED, role, head)
            of_head = fused[:, part * 24 + head * 8 : part * 24 + head * 8 + 8]
            assert (row.layer, row.kept, row.size, row.units) == (1, int(of_head.sum()), 192, 8)
            assert row.share == int(of_head.sum()) / 192
    for head in range(3):
        assert row_of(found, OUT, "output", head).kept == int(out[head * 8 : head * 8 + 8].sum())
    assert (row_of(found, UP, "in").kept, row_of(found, UP, "in").units) == (int(up.sum()), 96)
    assert (row_of(found, DOWN, "out").kept, row_of(found, DOWN, "out").units) == (int(down.sum()), 96)
    table = row_of(found, "transformer.wte.weight", "wte")
    assert (table.layer, table.kept, table.size) == (None, 11 * 24, 11 * 24)
    assert found.shares("layer", "role")[1, "key"] == pytest.approx(fused[:, 24:48].float().mean().item())
    assert found.dead_heads == found.dead_units == {}


def test_a_ticket_and_its_model_are_the_same():
    model = gpt2_of({FUSED: random_mask("fused", (24, 72))})
    ticket = slth.Ticket.of(model, built=built_of(model))
    assert ticket.summary() == slth.inspect(model) == slth.inspect(ticket, heads=3)
    whole = slth.Ticket.of(model).summary()  # nobody said how many heads
    assert {row.head for row in whole.rows} == {None}
    assert whole.shares("role") == ticket.summary().shares("role")


def test_dead_heads_and_units():
    fused, out = torch.ones(24, 72, dtype=torch.bool), torch.ones(24, 24, dtype=torch.bool)
    fused[:, 48:56] = False  # values of head 0
    fused[:, 8:16] = False  # queries of head 1, which attends to all alike
    fused[:, 24] = False  # one key of head 0
    out[16:] = False  # outputs of head 2
    up, down = torch.ones(24, 96, dtype=torch.bool), torch.ones(96, 24, dtype=torch.bool)
    up[:, 5] = down[7] = False
    up[:-1, 9] = False
    model = gpt2_of({FUSED: fused, OUT: out, UP: up, DOWN: down})
    found = slth.inspect(model)
    assert found.dead_heads == {"transformer.h.1.attn": (0, 2)}
    assert found.dead_units == {UP: (5, 7)}
    assert row_of(found, FUSED, "key", 0).dead_units == 1
    assert row_of(found, OUT, "output", 2).dead_units == 8
    assert (row_of(found, UP, "in").dead_units, row_of(found, DOWN, "out").dead_units) == (1, 1)
    lines = str(found).splitlines()
    assert "dead heads: 2" in lines
    assert f"  {UP}: 5, 7" in lines

    net = slth.Ticket.of(model).apply(gpt2.build(small(), seed=1))
    inside = {}
    net.transformer.h[1].attn.c_proj.register_forward_hook(lambda m, x, y: inside.update(heads=x[0], output=y))
    net.transformer.h[0].mlp.c_proj.register_forward_hook(lambda m, x, y: inside.update(units=x[0]))
    net(torch.arange(7)[None])
    assert not inside["heads"][..., :8].any()
    assert inside["heads"][..., 8:].all()
    assert not inside["units"][..., 5].any()
    head = inside["heads"][..., 16:] @ net.transformer.h[1].attn.c_proj.weight[16:]
    assert not head.any()


def test_stacks_of_heads_say_themselves_how_many_there_are():
    model = GroupedQueryAttention(6, 6, 4, 2, kv_heads=2)
    value = torch.ones(2, 6, 2, dtype=torch.bool)
    value[1] = False
    found = slth.inspect(masked(model, {"value": value}))
    assert {(row.role, row.head) for row in found.rows} == {
        (role, head) for role, count in (("query", 4), ("key", 2), ("value", 2), ("output", 4)) for head in range(count)
    }
    assert found.dead_heads == {"": (2, 3)}  # both that read these values


def test_projections_of_torch_have_their_outputs_first():
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    fused, first = torch.ones(24, 8, dtype=torch.bool), torch.ones(12, 8, dtype=torch.bool)
    fused[16:20] = False
    first[3] = False
    model = masked(nn.ModuleList([model]), {"0.self_attn.in_proj_weight": fused, "0.linear1.weight": first})
    found = slth.inspect(model, heads=2)
    assert found.dead_heads == {"0.self_attn": (0,)}
    assert found.dead_units == {"0.linear1.weight": (3,)}
    assert row_of(found, "0.self_attn.out_proj.weight", "output", 1).units == 4


# ---------------------------------------------------------------- overlap


@given(st.integers(1, 2**30 - 1), st.integers(1, 2**30 - 1))
def test_the_overlap_is_that_of_sets(one, other):
    bits = [torch.tensor([bool(n >> i & 1) for i in range(30)]).reshape(5, 6) for n in (one, other)]
    models = [masked(nn.Linear(6, 5), {"weight": mask}) for mask in bits]
    (row,) = overlap(*models)
    sets = [{i for i in range(30) if n >> i & 1} for n in (one, other)]
    union = sets[0] | sets[1]
    assert (row.both, row.size) == (len(sets[0] & sets[1]), 30)
    assert row.overlap == len(sets[0] & sets[1]) / len(union)
    assert overlap(*reversed(models))[0].overlap == row.overlap


def test_independent_masks_overlap_by_chance():
    n = 1 << 16
    row = Overlap("w", 0, "in", None, n // 2, n // 4, 0, n)
    assert row.by_chance == (n / 8) / (3 * n / 4 - n / 8)
    assert math.isnan(Overlap("w", 0, "in", None, 0, 0, 0, n).overlap)
    masks = [inits.uniform((256, 256), 1.0, seed=seed, name="mask") > 0 for seed in (0, 1)]
    (row,) = overlap(*(masked(nn.Linear(256, 256), {"weight": mask}) for mask in masks))
    assert row.overlap == pytest.approx(row.by_chance, abs=0.01)
    table = pd.DataFrame(columns([row]))
    assert table.loc[0, "overlap"] == row.overlap
    assert table.loc[0, "by_chance"] == row.by_chance


def test_what_cannot_be_inspected_is_refused():
    model = gpt2_of({})
    for heads, message in ((0, "heads=0: must be an int >= 1"), (5, "heads=5: must divide the 24 features")):
        with pytest.raises(ValueError, match=message):
            slth.inspect(model, heads=heads)
    with pytest.raises(ValueError, match="wrap"):
        slth.inspect(gpt2.build(small()))
    with pytest.raises(ValueError, match=r"other: has \('weight', .* must have the same weights"):
        overlap(model, masked(nn.Linear(6, 5), {}))
    with pytest.raises(ValueError, match="other: has 1 matrices, must have 2"):
        overlap(masked(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6)), {}), masked(nn.Sequential(nn.Linear(6, 5)), {}))


# ---------------------------------------------------------------- command, example


@one_case
@pytest.mark.parametrize("other", [False, True])
def test_the_command_says_what_is_kept(tmp_path, capsys, other):
    model = gpt2_of({FUSED: random_mask("fused", (24, 72))})
    path = tmp_path / "t.safetensors"
    slth.Ticket.of(model, built=built_of(model)).save(path)
    assert main(["summary", str(path), *([str(path)] if other else [])]) == 0
    said = capsys.readouterr().out
    assert said.startswith(str(slth.inspect(model)))
    assert (f"overlap with {path}: 1.0000 of the union, " in said) == other
    with pytest.raises(TicketError):
        slth.Ticket.load(__file__)
    assert main(["summary", __file__]) == 1
    assert "no ticket" in capsys.readouterr().err


def test_the_example_measures_what_heads_are_worth(capsys):
    losses = runpy.run_path(str(ROOT / "examples/inspect_ticket.py"))["main"]()
    assert losses.keys() == {(layer, head) for layer in range(2) for head in range(2)}
    assert len({round(loss, 6) for loss in losses.values()}) == 4
    said = capsys.readouterr().out
    assert said.count("loss ") == 4
    assert "layer 0, head 0: norm " in said


def test_matrices_that_are_alone_of_their_role_are_listed():
    layers = nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)
    found = slth.inspect(slth.wrap(nn.Sequential(*layers), 0.5))
    assert str(found).splitlines()[:2] == ["0: 0.5000 kept", "2: 0.5000 kept"]
