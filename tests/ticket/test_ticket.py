"""A ticket gives back the pruned network, to the last bit, and shows what it is."""

import copy
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import regression
import torch
from cases import every_case
from helpers import call_in_a_process
from regression import assert_same, error, every_method, net, state
from ticketing import CASE, as_bytes, blank, found
from torch import nn

import slth
from slth import Ticket, TicketError
from slth.search import Biprop, EdgePopup, Frozen, IteRand
from slth.threads import one_torch_thread
from slth.ticket import describing
from slth.ticket.__main__ import main
from slth.wrapping import handle, unwrap

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
