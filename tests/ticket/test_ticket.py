"""A ticket gives back the very network, in a file of one bit a weight, and no other file gives anything at all."""

import copy
import math
import random
import re
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import pytest
import regression
import torch
from cases import CASES, every_case
from helpers import call_in_a_process
from hypothesis import given
from hypothesis import strategies as st
from regression import METHODS, assert_same, error, fit, net, state, wrapped
from torch import nn

import slth
from slth import Ticket, TicketError, files
from slth.building import built_of
from slth.models import gpt2
from slth.search import Biprop, EdgePopup, Frozen, IteRand, controls
from slth.threads import one_torch_thread
from slth.ticket import describing
from slth.ticket.__main__ import main
from slth.weights import inits
from slth.wrapping import handle, unwrap

CASE = {case.name: case for case in CASES}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def blank():
    """A network for tickets to be applied to: none of its numbers are those of regression.net."""
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
    return model


def found(method=None, **options):
    """A wrapped network, its mask of a short search."""
    model = wrapped(**options)
    fit(model, method, steps=12)
    return model


def as_bytes(model):
    """All tensors, bit by bit, so that -0 is not 0 and nan is nan."""
    return {name: value.reshape(-1).view(torch.uint8) for name, value in state(model).items()}


def bits(data):
    """Bytes of a ticket that tell its masks."""
    tensors, _ = files.unseal(data, "ticket", [1])
    return sum(tensors[name].numel() for name in ("coded", "masks") if name in tensors)


def resealed(data, change):
    """The ticket after a change of its tensors and manifest, with a digest of the file that fits."""
    tensors, manifest = files.unseal(data, "ticket", [1])
    change(tensors, manifest)
    return files.seal("ticket", 1, tensors, manifest)


def refused(data, match, module=None):
    """Neither load nor apply lets it pass, and the module is left as it was."""
    module = blank() if module is None else module
    before = state(module)
    with pytest.raises(TicketError, match=match):
        Ticket.from_bytes(data).apply(module)
    assert_same(before, state(module))


@pytest.fixture(scope="module")
def data():
    """A ticket of a search, its mask coded."""
    return Ticket.of(found(keep=0.2)).to_bytes()


# ---------------------------------------------------------------- there and back


@every_method
def test_every_search_has_a_ticket(tmp_path, method):
    model = found(method)
    path = tmp_path / "t.safetensors"
    size = Ticket.of(model).save(path)
    assert size == path.stat().st_size
    ticket, module = Ticket.load(path), blank()
    assert ticket.apply(module) is module
    assert error(module) == error(model)
    assert ticket.to_bytes() == path.read_bytes()
    masks = handle(model).masks()
    assert {name: mask.equal(masks[name]) for name, mask in ticket.masks().items()} == dict.fromkeys(masks, True)
    assert_same(state(unwrap(model)), state(module))


def test_equal_searches_have_equal_bytes():
    assert Ticket.of(found()).to_bytes() == Ticket.of(found()).to_bytes()
    assert Ticket.of(found()).to_bytes() != Ticket.of(found(seed=2)).to_bytes()


def wrapped_case(case):
    """A case under masks, after a forward pass in the mode that it was built in."""
    model = slth.wrap(case.build(), keep=0.3, weights="kaiming_normal", seed=3)
    with torch.no_grad():
        case.run(model)
    return model.eval()


ELSEWHERE = ("gpt2", "convolutions, evaluation", "lstm", "mixture of experts", "slth attention")


def outputs_of_tickets(folder):
    """What each of these cases puts out after its ticket of the folder was applied to a network from another seed.

    Once as it is and once without requires_grad, by which torch chooses between ways to multiply matrices.
    """
    outputs = {}
    with one_torch_thread(), torch.no_grad():
        for name in ELSEWHERE:
            module = Ticket.load(Path(folder) / f"{name}.ticket").apply(CASE[name].build(seed=1)).eval()
            outputs[name] = CASE[name].run(module), CASE[name].run(module.requires_grad_(False))
    torch.save(outputs, Path(folder) / "outputs")


def test_in_a_new_process_the_output_is_the_same_to_the_last_bit(tmp_path):
    expected = {}
    for name in ELSEWHERE:
        case, model = CASE[name], wrapped_case(CASE[name])
        Ticket.of(model).save(tmp_path / f"{name}.ticket")
        with torch.no_grad():
            masked = case.run(model)
            expected[name] = case.run(unwrap(model)), masked
    call_in_a_process(__file__, "outputs_of_tickets", str(tmp_path))
    outputs = torch.load(tmp_path / "outputs")
    for name, (plain, masked) in expected.items():
        assert outputs[name][0].equal(plain), name
        assert outputs[name][1].equal(masked), name


@every_case
def test_a_ticket_is_all_that_the_network_is(case):
    model = wrapped_case(case)
    ticket = Ticket.from_bytes(Ticket.of(model).to_bytes())
    module = ticket.apply(case.build(seed=1))
    assert_same(state(unwrap(model)), state(module))
    assert "NaN" not in ticket.describe()


def test_what_is_tied_stays_tied_and_is_told_once():
    case = CASE["gpt2"]
    model = wrapped_case(case)
    ticket, module = Ticket.of(model), case.build(seed=1)
    assert [w.path for w in ticket.weights].count("transformer.wte.weight") == 1
    assert not any("lm_head" in record.path for record in ticket.weights + ticket.plain)
    ticket.apply(module)
    assert module.lm_head.weight is module.transformer.wte.weight
    apart = copy.deepcopy(module)
    apart.lm_head.weight = nn.Parameter(apart.lm_head.weight.detach().clone())
    with pytest.raises(TicketError, match=r"lm_head\.weight is in the module but not in the ticket"):
        ticket.apply(apart)


def test_statistics_and_biases_come_back_to_the_bit():
    case = CASE["convolutions, training"]
    model = case.build()
    with torch.no_grad():
        for i in range(3):
            model(regression.inits.normal((4, 3, 8, 8), 1.0, seed=i, name="images"))
        for i, p in enumerate(model.parameters()):
            p.add_(i / 7)
        model[1].bias[0], model[1].bias[1], model[1].weight[0] = -0.0, math.inf, math.nan
    before = as_bytes(model)
    slth.wrap(model, keep=0.3, weights="kaiming_normal")
    module = Ticket.from_bytes(Ticket.of(model).to_bytes()).apply(case.build(seed=1))
    assert module[1].num_batches_tracked == 3
    vectors = {name for name, value in module.state_dict().items() if value.dim() < 2}
    assert {"1.running_mean", "1.bias"} < vectors
    after = as_bytes(module)
    assert {name for name, value in before.items() if not value.equal(after[name])}.isdisjoint(vectors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [EdgePopup(), Biprop()])
def test_other_dtypes(dtype, method):
    model = slth.wrap(net(dtype=dtype), keep=0.4, weights="kaiming_normal")
    method.prepare(model)
    module = Ticket.from_bytes(Ticket.of(model).to_bytes()).apply(blank().to(dtype))
    assert all(p.dtype == dtype for p in module.parameters())
    assert_same(state(unwrap(model)), state(module))


def test_odd_tensors_come_back():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 5))
            self.register_buffer("flags", torch.tensor([True, False]))
            self.register_buffer("on", torch.tensor(True))
            self.register_buffer("large", torch.tensor([2**62 + 1, -(2**63)]))
            self.register_buffer("larger", torch.full((3,), 2**63 - 1))
            self.register_buffer("none", torch.zeros(0, 3))
            self.register_buffer("waves", torch.tensor([1 + 2j, 3 - 1j]))
            self.register_buffer("minus", torch.full((3,), -0.0))
            self.register_buffer("zeros", torch.tensor([0.0, -0.0]))
            self.register_buffer("infinite", torch.full((3,), -math.inf))
            self.register_buffer("nan", torch.full((), math.nan))
            self.register_buffer("third", torch.full((2, 2), 1 / 3, dtype=torch.float64))
            self.register_buffer("passing", torch.ones(3), persistent=False)

    model = slth.wrap(Odd(), weights="kaiming_normal")
    ticket, module = Ticket.from_bytes(Ticket.of(model).to_bytes()), Odd()
    for buffer in module.buffers():
        buffer.zero_()
    ticket.apply(module)
    assert_same(as_bytes(unwrap(model)), as_bytes(module))
    stored = {"flags", "large", "none", "waves", "minus", "zeros", "infinite", "nan"}
    assert {p.path for p in ticket.plain if p.stored} == stored
    assert module.passing.eq(0).all()


# ---------------------------------------------------------------- size


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


# ---------------------------------------------------------------- what has no ticket


def base(**options):
    """A network that torch has drawn, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 48, **options), nn.ReLU(), nn.BatchNorm1d(48), nn.Linear(48, 4, **options))


@pytest.mark.parametrize("method", [EdgePopup(), Biprop(), Frozen(pruned=0.2, locked=0.2)])
def test_a_network_that_no_seed_makes_is_the_base_of_its_ticket(tmp_path, method):
    model = slth.wrap(base())
    fit(model, method, steps=4)
    ticket, expected = Ticket.of(model), state(unwrap(copy.deepcopy(model)))
    ticket.save(tmp_path / "t.safetensors")
    ticket = Ticket.load(tmp_path / "t.safetensors")
    assert (set(ticket.over), ticket.version) == ({"0.weight", "3.weight"}, 2)
    assert ", 2 over a base, " in repr(ticket)
    assert "seeds: none\nover a base: 2 weights that no seed makes" in ticket.describe()
    assert_same(expected, state(ticket.apply(base())))
    if not isinstance(method, Biprop):  # which leaves signs and one size
        assert_same(expected, state(ticket.apply(unwrap(model))))  # pruned already
    other = base()
    with torch.no_grad():
        other[3].weight[ticket.masks()["3.weight"].nonzero()[0].unbind()] += 1e-3
    before = state(other)
    with pytest.raises(TicketError, match=r"3\.weight: is not that of the ticket's base"):
        ticket.apply(other)
    assert_same(before, state(other))
    with pytest.raises(ValueError, match=r"no layer can be served: 0\.weight lies over a base"):
        slth.serve(ticket, base())


def test_only_what_no_seed_makes_lies_over_a_base():
    assert set(Ticket.of(wrapped(weights={"3.*": "kaiming_normal"})).over) == {"0.weight"}
    with pytest.raises(ValueError, match="Sequential is not wrapped"):
        Ticket.of(net())


def test_trained_weights_are_a_base():
    model = found()
    controls.train_weights(model)
    assert not Ticket.of(model).over
    fit(model, steps=2)
    trained = {path: slth.wrapping.random_weight(model, path) for path in handle(model).weights}
    ticket, module = Ticket.of(model), blank()
    assert set(ticket.over) == set(trained)
    with pytest.raises(TicketError, match=r"0\.weight: is not that of the ticket's base"):
        ticket.apply(module)
    with torch.no_grad():
        for path, weight in trained.items():
            module.get_parameter(path).copy_(weight)
    assert_same(state(ticket.apply(module)), state(unwrap(model)))


def test_plain_modules_have_tickets_under_masks():
    module = wrapped()
    masks = handle(module).masks()
    expected = Ticket.of(module)
    plain = net()
    with torch.no_grad():
        for path in masks:
            slth.weights.recipes.fill(plain, {path: slth.weights.recipes.recipe_of(module, path)})
    assert Ticket.of_masks(plain, masks).to_bytes() == expected.to_bytes()
    for wrong, match in (
        ({}, "must be of one parameter or more"),
        ({"nothing": masks["0.weight"]}, "masks of 'nothing': must be of the module's parameters"),
        ({"0.weight": masks["3.weight"]}, r"masks of '0.weight': torch.bool \(4, 48\), must be torch.bool \(48, 16\)"),
        ({"0.weight": masks["0.weight"].float()}, "masks of '0.weight': torch.float32"),
    ):
        with pytest.raises(ValueError, match=match):
            Ticket.of_masks(plain, wrong)
    with pytest.raises(ValueError, match="is wrapped"):
        Ticket.of_masks(module, masks)


def test_how_a_model_is_built_is_said_and_never_executed():
    model = gpt2.build(gpt2.config("tiny", n_layer=1), seed=4)
    config = model.config.to_dict()
    slth.wrap(model, seed=1)
    ticket = Ticket.from_bytes(Ticket.of(model, built=built_of(model)).to_bytes())
    path = "transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel"
    assert ticket.built["class"] == path
    assert ticket.built["config"]["n_embd"] == config["n_embd"]
    assert f"built as: {path}" in ticket.describe()
    assert ticket.to_bytes() != Ticket.of(model).to_bytes()
    odd = wrapped()
    ticket = Ticket.from_bytes(
        Ticket.of(odd, built={"class": "os.system\n\x1b[31m", "arguments": {"x": "\n"}}).to_bytes()
    )
    assert "built as: os.system\\n\\x1b[31m" in ticket.describe()
    assert built_of(odd, depth=2) == {"class": "torch.nn.modules.container.Sequential", "arguments": {"depth": 2}}


@pytest.mark.parametrize("built", [[1, 2], "text", {"class": object()}, {"scale": math.inf}])
def test_built_must_be_an_object_of_json(built):
    module = wrapped()
    masks = handle(module).masks()
    plain = slth.unwrap(wrapped())
    for make in (partial(Ticket.of, module), partial(Ticket.of_masks, plain, masks)):
        with pytest.raises(ValueError, match=r"built=.*: must be an object of JSON"):
            make(built=built)


def test_a_gate_of_another_kind_has_no_ticket():
    model = wrapped()
    for masked in handle(model).weights.values():
        masked.gate = lambda masked, weight: masked.pruned(weight).tanh()
    with pytest.raises(TicketError, match="what evaluation sees is neither its weights nor their signs"):
        Ticket.of(model)


def test_redrawn_weights_have_a_ticket():
    model = found(IteRand(every=2, rate=0.5))
    controls.redrawn_weights(model, seed=11)
    ticket = Ticket.of(model)
    assert {draw.seed for weight in ticket.weights for draw in weight.recipe.draws} == {11}
    assert_same(state(ticket.apply(blank())), state(unwrap(model)))


def test_a_name_that_cannot_be_read_has_no_ticket():
    model = nn.Module()
    model.layers = nn.ModuleDict({"a\x1b[2J": nn.Linear(3, 3)})
    with pytest.raises(TicketError, match=r"name 'layers\.a\\x1b\[2J\.weight': must be printable"):
        Ticket.of(slth.wrap(model, weights="kaiming_normal"))


# ---------------------------------------------------------------- other modules


def test_a_wrapped_module_is_refused(data):
    model = wrapped()
    before = state(model)
    with pytest.raises(ValueError, match="a ticket is applied to a plain module: Sequential is wrapped already"):
        Ticket.from_bytes(data).apply(model)
    assert_same(before, state(model))


def others():
    wide, deep, double, half, short = blank(), blank(), blank().double(), blank(), blank()
    wide[0] = nn.Linear(16, 49)
    deep.append(nn.Linear(4, 4))
    half[0].half()
    short[3] = nn.Linear(48, 4, bias=False)
    return [
        (wide, r"0\.bias: is float32 \(49,\), must be float32 \(48,\)"),
        (deep, r"4\.bias is in the module but not in the ticket"),
        (double, r"0\.bias: is float64 \(48,\), must be float32"),
        (half, r"0\.bias: is float16"),
        (short, r"3\.bias is in the ticket but not in the module"),
        (nn.ReLU(), r"0\.bias is in the ticket but not in the module"),
    ]


@pytest.mark.parametrize(("module", "match"), others())
def test_another_module_is_refused(data, module, match):
    refused(data, match, module)


def test_weights_of_another_dtype_are_refused():
    model = slth.wrap(nn.Linear(4, 5, bias=False).double(), weights="kaiming_normal")
    refused(Ticket.of(model).to_bytes(), r"weight: is float32 \(5, 4\), must be float64", nn.Linear(4, 5, bias=False))


# ---------------------------------------------------------------- other files


def weight(manifest, path="0.weight"):
    return next(entry for entry in manifest["weights"] if entry["path"] == path)


def test_a_wrong_seed_is_noticed(data):
    def change(tensors, manifest):
        weight(manifest)["recipe"][1][2] += 1

    refused(resealed(data, change), "its digest differs: a wrong seed or other bits")


def test_other_bits_are_noticed(data):
    def swap(tensors, manifest):
        """Another mask that keeps as many."""
        masks = Ticket.from_bytes(data).masks()
        masks["0.weight"] = masks["0.weight"].flip(0)
        del tensors["coded"]
        tensors["masks"] = slth.ticket.bits.pack(list(masks.values()))

    refused(resealed(data, swap), "its digest differs")


def test_a_wrong_level_is_noticed():
    def change(tensors, manifest):
        weight(manifest)["levels"][0] *= 1.0000002

    refused(resealed(Ticket.of(found(Biprop())).to_bytes(), change), "its digest differs")


def test_wrong_redraws_are_noticed():
    data = Ticket.of(found(IteRand(every=2, rate=0.5))).to_bytes()

    def redraws(change):
        def changed(tensors, manifest):
            counts = change(bytearray(zlib.decompress(tensors["generations"].numpy().tobytes())))
            tensors["generations"] = torch.frombuffer(bytearray(zlib.compress(counts)), dtype=torch.uint8)

        return resealed(data, changed)

    refused(redraws(lambda counts: counts[:-1]), "generations has 383 numbers: must be 384")
    refused(redraws(lambda counts: counts + b"\0"), "generations has 385 numbers")
    refused(redraws(lambda counts: b"\0" * 10**8), "generations has 385 numbers")
    refused(redraws(lambda counts: b"\5" + counts[1:]), "its digest differs")
    refused(resealed(data, lambda tensors, _: tensors["generations"].fill_(3)), "no ticket: its manifest does not fit")


def test_every_flipped_bit_and_truncation_is_noticed(data):
    for i in range(0, 8 * len(data), 31):
        changed = bytearray(data)
        changed[i // 8] ^= 1 << i % 8
        with pytest.raises(TicketError):
            Ticket.from_bytes(bytes(changed))
    for length in range(0, len(data), 17):
        with pytest.raises(TicketError, match="cut short"):
            Ticket.from_bytes(data[:length])


def test_a_file_is_named_in_the_error(tmp_path, data):
    path = tmp_path / "t.safetensors"
    path.write_bytes(data[:-1])
    with pytest.raises(TicketError, match=r"t\.safetensors: no ticket: cut short or damaged"):
        Ticket.load(path)
    with pytest.raises(FileNotFoundError):
        Ticket.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        Ticket.load(tmp_path)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: b"", "not a safetensors file"),
        (lambda: b"PK\3\4" + bytes(2000), "not a safetensors file"),
        (lambda: files.seal("ticket", 3, {}, {}), "version 3 of kind 'ticket': must be 1, 2"),
        (lambda: files.seal("checkpoint", 1, {}, {}), "a file of kind 'checkpoint': must be 'ticket'"),
        (lambda: files.seal("ticket", 1, {}, {}), r"its manifest does not fit \(KeyError: 'weights'\)"),
    ],
)
def test_other_files_are_refused(make, match):
    refused(make(), f"^no ticket: .*{match}")


def put(*keys):
    """A change of the manifest's entry at the end of the keys, of its first weight unless they say otherwise."""
    *way, last, value = keys

    def change(tensors, manifest):
        at = manifest if way[:1] == ["manifest"] else weight(manifest)
        for key in way[1:] if way[:1] == ["manifest"] else way:
            at = at[key]
        at[last] = value

    return change


def drop(*keys):
    def change(tensors, manifest):
        at = weight(manifest)
        for key in keys[:-1]:
            at = at[key]
        del at[keys[-1]]

    return change


def of_base(value):
    def change(tensors, manifest):
        del weight(manifest)["recipe"]
        weight(manifest)["base"] = value

    return change


def twice(tensors, manifest):
    manifest["weights"].append(manifest["weights"][0])


def both_kinds(tensors, manifest):
    manifest["plain"].append(dict(manifest["plain"][0], path="0.weight"))


def tensor(name, value=None):
    def change(tensors, manifest):
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


def shorter(tensors, manifest):
    tensors["coded"] = tensors["coded"][:-1].clone()


def raw(tensors, manifest):
    tensors["masks"] = tensors.pop("coded")


WRONG = {
    "weights of no list": (put("manifest", "weights", 5), "TypeError"),
    "no weights": (put("manifest", "weights", []), "must have at least one weight"),
    "no digest": (put("manifest", "digest", "x"), "its digest is none"),
    "a weight twice": (twice, "no name twice"),
    "a weight and plain": (both_kinds, "no name twice"),
    "no path": (drop("path"), "KeyError: 'path'"),
    "path of a number": (put("path", 5), "must be text"),
    "path of control characters": (put("path", "0.weight\n\x1b[31m"), "must be printable"),
    "shape of no list": (put("shape", 768), "must be a list"),
    "shape of truth": (put("shape", [True, 768]), "must be an int"),
    "shape below zero": (put("shape", [-48, -16]), "sizes >= 0"),
    "empty shape": (put("shape", [0, 16]), "must keep 0 to all of some"),
    "too many entries": (put("shape", [2**40, 2**40]), "more entries than a tensor can have"),
    "too many axes": (put("shape", [1] * 10**6), "1000000 axes"),
    "other shape": (put("shape", [16, 48]), r"0\.weight: is float32 \(48, 16\), must be float32 \(16, 48\)"),
    "large shape": (put("shape", [2**31, 2**31]), r"0\.weight: is float32 \(48, 16\), must be float32 \(2147483648, "),
    "other dtype": (put("dtype", "float64"), r"0\.weight: is float32 .* must be float64"),
    "keeps more than all": (put("kept", 769), "keeps 769 of 768"),
    "keeps another number": (put("kept", 100), r"0\.weight: its mask keeps 154, must keep 100"),
    "recipe and base": (put("base", "0" * 64), "must have either a recipe or the digest of a base"),
    "base of nothing": (of_base(None), "must be text"),
    "base of no digest": (of_base("x"), "the digest of its base is none"),
    "another base": (of_base("0" * 64), r"0\.weight: is not that of the ticket's base"),
    "built of text": (put("manifest", "built", "x"), "built='x': must be an object"),
    "no draws": (put("recipe", [0]), "0 parts along axis 0"),
    "draws that do not divide": (put("recipe", [0] + [["sign", 1.0, 0, "a", 0]] * 5), "5 parts along axis 0"),
    "axis outside": (put("recipe", 0, 2), "parts along axis 2"),
    "unknown distribution": (put("recipe", 1, 0, "exec"), "distribution='exec'"),
    "scale of zero": (put("recipe", 1, 1, 0), "scale=0"),
    "scale of text": (put("recipe", 1, 1, "1"), "must be a number"),
    "seed of a fraction": (put("recipe", 1, 2, 0.5), "must be an int"),
    "name that is no text": (put("recipe", 1, 3, "\ud800"), "UnicodeEncodeError"),
    "stream below zero": (put("recipe", 1, 4, -1), "stream=-1"),
    "parts of nothing": (put("parts", [0]), "IndexError"),
    "parts that do not divide": (put("parts", [0, *"abcde"]), "5 parts along axis 0"),
    "parts along no axis": (put("parts", [7, "a", "b"]), "parts along axis 7"),
    "levels without parts": (put("levels", [1.0, 2.0]), "2 levels, must be one for each of 1"),
    "a level": (put("levels", [1.0]), "its digest differs"),
    "frozen without a seed": (put("freezing", {"pruned": 0.1, "locked": 0.1}), "TypeError"),
    "frozen wholly": (put("freezing", {"pruned": 0.5, "locked": 0.5, "seed": 0}), r"pruned \+ locked"),
    "frozen": (put("freezing", {"pruned": 0.1, "locked": 0.1, "seed": 0}), "ValueError|its mask keeps"),
    "redrawn": (put("redrawn", True), "'generations' is missing"),
    "plain of no list": (put("manifest", "plain", {"a": 1}), "TypeError"),
    "value of text": (put("manifest", "plain", 0, "value", "x"), "must be a number"),
    "value": (put("manifest", "plain", 0, "value", 3.0), r"'stored\.0\.bias' is not told of"),
    "plain of another shape": (put("manifest", "plain", 0, "shape", [47]), r"0\.bias: is stored with another shape"),
    "no bits": (tensor("coded"), "'masks' is missing"),
    "no bias": (tensor("stored.0.bias"), r"'stored\.0\.bias' is missing"),
    "another bias": (tensor("stored.0.bias", torch.ones(47)), r"0\.bias: is stored with another shape"),
    "wrong bias": (tensor("stored.0.bias", torch.ones(48)), "its digest differs"),
    "one tensor more": (tensor("stored.x", torch.ones(1)), r"'stored\.x' is not told of"),
    "bits twice": (tensor("masks", torch.ones(120, dtype=torch.uint8)), "'masks' is not told of"),
    "bits of floats": (tensor("coded", torch.ones(60)), "bits of torch.float32"),
    "no bytes": (tensor("coded", torch.zeros(0, dtype=torch.uint8)), "0 bytes: must be at least 16"),
    "too few bytes": (shorter, "bytes of chunks: must be|damaged"),
    "coded bits as raw ones": (raw, "bytes: must be 120 for 960 bits"),
}


@pytest.fixture
def little_memory():
    """Have any allocation beyond half a gigabyte fail."""
    resource, held = pytest.importorskip("resource"), Path("/proc/self/statm")
    if not held.exists():
        pytest.skip("needs to know how much memory this process has")
    pages = int(held.read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 29), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("change", "match"), WRONG.values(), ids=WRONG)
def test_a_manifest_that_does_not_fit_is_refused(data, change, match):
    refused(resealed(data, change), match)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("freezing", [None, {"pruned": 0.1, "locked": 0.1, "seed": 0}])
@pytest.mark.parametrize("kind", ["coded", "masks"])
def test_a_small_file_does_not_take_much_memory(data, freezing, kind):
    """Each chunk of 2^20 bits that are all one takes but 8 bytes."""

    def change(tensors, manifest):
        shape, chunks = [1 << 20, 1 << 20], 1 << 16
        weight(manifest).update(shape=shape, kept=math.prod(shape))
        if freezing:
            weight(manifest)["freezing"] = freezing
        del tensors["coded"]
        tensors[kind] = torch.tensor([1 << 20, 0] * chunks, dtype=torch.int32).view(torch.uint8)

    hostile = resealed(data, change)
    assert "1048576x1048576" in Ticket.from_bytes(hostile).describe()
    refused(hostile, r"0\.weight: is float32 \(48, 16\), must be float32 \(1048576, 1048576\)")


@given(st.randoms(use_true_random=False))
def test_damaged_files_are_refused(data, draw):
    for _ in range(10):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            at, length = draw.randrange(len(changed) + 1), draw.randint(0, 16)
            changed[at : at + draw.choice([0, 1, length])] = draw.randbytes(draw.choice([0, 1, length]))
        if changed != data:
            with pytest.raises(TicketError):
                Ticket.from_bytes(bytes(changed))


def places(value, way=()):
    """Where anything stands in JSON."""
    yield way
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*way, key))


def other_values(draw, value):
    numbers = [0, 1, -1, 2, 48, 2**31, 2**63, 10**30, 0.5, 1e-300, True, False]
    return draw.choice([*numbers, None, "", "x", "0.weight", "float64", [], {}, [value], [value, value], {"a": value}])


def mutated(manifest, draw):
    for _ in range(draw.randint(1, 2)):
        *way, last = draw.choice([place for place in places(manifest) if place])
        at = manifest
        for key in way:
            at = at[key]
        match draw.randrange(4):
            case 0 if isinstance(at, list):
                at.insert(last, copy.deepcopy(draw.choice(at)))
            case 0 | 1:
                del at[last]
            case 2 | 3:
                at[last] = other_values(draw, at[last])


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("method", [Biprop(), Frozen(pruned=0.2, locked=0.2), IteRand(every=2, rate=0.5)])
def test_hostile_manifests_are_refused_or_tell_the_same_network(method):
    model = found(method)
    data, draw, outcomes = Ticket.of(model).to_bytes(), random.Random(0), []
    expected = state(unwrap(model))
    for _ in range(120):
        module = blank()
        try:
            ticket = Ticket.from_bytes(resealed(data, lambda tensors, manifest: mutated(manifest, draw)))
            ticket.describe()
            ticket.apply(module)
            assert_same(expected, state(module))
            outcomes.append("applied")
        except TicketError:
            assert_same(state(blank()), state(module))
            outcomes.append("refused")
    assert outcomes.count("refused") > 80


# ---------------------------------------------------------------- for people


def test_a_ticket_describes_itself():
    model = found(IteRand(every=2), keep=0.25)
    ticket = Ticket.of(model)
    lines = ticket.describe().splitlines()
    assert re.fullmatch(rf"<Ticket: \d+ weights, .* kept \(0\.\d+\), {len(ticket.to_bytes()):,} bytes>", repr(ticket))
    assert lines[0] == f"ticket, version 1, {len(Ticket.of(model).to_bytes()):,} bytes"
    assert lines[1] == "2 masked weights with 960 entries, 240 kept (0.25)"
    assert lines[2] == "seeds: 1"
    assert lines[3] == "stored as they are: 52 numbers in 2 tensors"
    assert lines[4].startswith("digest of the network: ")
    assert [line.split() for line in lines[-2:]] == [
        ["0.weight", "48x16", "0.2500", "normal", "0.7071"],
        ["3.weight", "4x48", "0.2500", "normal", "0.4082"],
    ]
    assert lines[5] == "all weights: redrawn"
    assert "\nall weights: binary\n" in Ticket.of(found(Biprop())).describe()
    two = Ticket.of(found(Frozen(pruned=0.2, locked=0.2)))
    assert "\nall weights: partly frozen\n" in two.describe()
    assert describing._common((two.weights[0], Ticket.of(found(EdgePopup())).weights[1])) == []
    assert describing._line(two.weights[0], []).endswith(", partly frozen")


def test_show(tmp_path, capsys, data):
    path = tmp_path / "t.safetensors"
    path.write_bytes(data)
    assert main(["show", str(path)]) == 0
    assert capsys.readouterr() == (Ticket.from_bytes(data).describe() + "\n", "")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"x\ny")])
def test_show_says_in_a_line_what_is_wrong(tmp_path, capsys, make):
    path = tmp_path / "a\nticket"
    make(path)
    assert main(["show", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "ticket" in err


def test_show_wants_a_file(capsys):
    for arguments in ([], ["show"], ["eat", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    assert "usage: python -m slth.ticket" in capsys.readouterr().err


def test_show_as_a_program_that_nobody_listens_to(tmp_path, data):
    path = tmp_path / "t.safetensors"
    path.write_bytes(data)
    command = [sys.executable, "-m", "slth.ticket", "show", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
