"""Files that somebody has tampered with: never a crash, never a wrong load, never anything executed.

The full size, 10,000 files, is one command: pytest -m slow tests/ticket/test_fuzz.py
"""

import json
import random
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

import slth
from slth import files
from slth.search import checkpoint
from slth.ticket import TicketError

FULL, SMALL = 10_000, 400

#: What no file may cause: audit events of CPython (PEP 578).
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "pickle.find_class",
    "marshal.loads",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
)
_watched: list[list[str]] = []


def _audit(event, arguments):
    if _watched and event.startswith(FORBIDDEN):
        _watched[-1].append(f"{event} {arguments!r:.100}")


sys.addaudithook(_audit)  # it cannot be taken away again: outside of nothing_executed it does nothing


@contextmanager
def nothing_executed():
    seen: list[str] = []
    _watched.append(seen)
    try:
        yield
    finally:
        _watched.pop()
    assert not seen, seen


def network():
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 3))


def ticket_bytes():
    return slth.Ticket.of(slth.wrap(network(), keep=0.4, weights="kaiming_normal", seed=2)).to_bytes()


def searching():
    """A search after its first step: model and optimiser."""
    model = slth.wrap(network(), keep=0.4, weights="kaiming_normal", seed=2)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(torch.ones(4, 6)).sum().backward()
    optimiser.step()
    return model, optimiser


#: Of the search above, as `slth.fit` makes it.
IDENTITY = checkpoint.Identity(
    {
        "steps": 2,
        "warmup": 0,
        "clip": None,
        "seed": 0,
        "method": ["EdgePopup", {"schedule": "constant"}],
        "optimiser": ["AdamW", [{"lr": "0.001", "betas": "(0.9, 0.999)"}]],
        "groups": [["0.weight", 0.4], ["2.weight", 0.4]],
    },
    ["0.parametrizations.weight.0.scores", "2.parametrizations.weight.0.scores"],
    "0" * 64,
)


def checkpoint_bytes(path):
    model, optimiser = searching()
    checkpoint.save(path, model, optimiser, IDENTITY, {"step": 1, "rows": [{"step": 1, "train_loss": 0.5}]})
    return path.read_bytes()


# ---------------------------------------------------------------- bytes


def mutated(data, dice):
    """The bytes with a few of them changed, cut out, doubled or moved."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        at, length = dice.randrange(len(out)), dice.choice((1, 1, 2, 8, 64))
        kind = dice.randrange(7)
        if kind == 0:
            out[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            out[at : at + length] = dice.randbytes(length)
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[max(0, at - length) : at]
        elif kind == 4:
            del out[at:]
        elif kind == 5:  # the length of the header, which comes first
            out[:8] = dice.choice((0, 1, 7, len(out), 1 << 31, 1 << 62, (1 << 64) - 1)).to_bytes(8, "little")
        else:
            out[at : at + 1] = dice.choice((b"\x00", b"\xff", b"{", b"}", b'"', b"-", b"9", b"\x80"))
        out = out or bytearray(b"\x00")
    return bytes(out)


def check_tickets(count):
    original = ticket_bytes()
    for index in range(count):
        data = mutated(original, random.Random(f"ticket {index}"))
        with nothing_executed():
            try:
                slth.Ticket.from_bytes(data)
            except TicketError:
                continue
        assert data == original, f"file {index} was loaded, though it was changed"


def check_checkpoints(count, path):
    original = checkpoint_bytes(path)
    for index in range(count):
        data = mutated(original, random.Random(f"checkpoint {index}"))
        path.write_bytes(data)
        with nothing_executed():
            try:
                checkpoint.read(path, IDENTITY)
            except checkpoint.CheckpointError:
                continue
        assert data == original, f"file {index} was loaded, though it was changed"


def test_mutated_tickets_are_refused():
    check_tickets(SMALL)


def test_mutated_checkpoints_are_refused(tmp_path):
    check_checkpoints(SMALL, tmp_path / "search.checkpoint")


@pytest.mark.slow
def test_ten_thousand_mutated_tickets_are_refused():
    check_tickets(FULL)


@pytest.mark.slow
def test_ten_thousand_mutated_checkpoints_are_refused(tmp_path):
    check_checkpoints(FULL, tmp_path / "search.checkpoint")


# ---------------------------------------------------------------- content, with a digest that fits

ODD = (None, True, -1, 0, 1, 2**31, 2**70, 0.5, -1e300, "", "uniform", "../x", "\x00", "é" * 50, [], [[]], {}, {"a": 1})


def changed(value, dice):
    """A JSON value with one thing in it changed, wherever it lies."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(sorted(value))
        kept = {k: v for k, v in value.items() if k != key}
        return kept if dice.random() < 0.1 else value | {key: changed(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.85:
        at = dice.randrange(len(value))
        if dice.random() < 0.2:
            return value[:at] + value[at + 1 :] if dice.random() < 0.5 else value + value[at : at + 1]
        return [*value[:at], changed(value[at], dice), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and dice.random() < 0.5:
        return value + dice.choice((-1, 1, 8, 1 << 20, 1 << 45))
    return dice.choice(ODD)


def forged(data, dice, kind_of_file="ticket"):
    """A file whose manifest or tensors were changed, sealed anew: its digest is right, its content is not."""
    tensors, manifest = files.unseal(data, kind_of_file, [1])
    if dice.random() < 0.7:
        manifest = changed(manifest, dice)
    else:
        name = dice.choice(sorted(tensors))
        tensor = tensors.pop(name)
        kind = dice.randrange(4)
        if kind == 0:
            tensors[name] = tensor.flatten()[: max(0, tensor.numel() - dice.randrange(1, 3))].clone()
        elif kind == 1:
            tensors[name] = tensor.double() if tensor.is_floating_point() else tensor.to(torch.int64)
        elif kind == 2:
            tensors[name + "x"] = tensor
    return files.seal(kind_of_file, 1, tensors, manifest if isinstance(manifest, dict) else {"x": manifest})


def check_forgeries(count):
    original = ticket_bytes()
    wanted = {name: t.clone() for name, t in slth.Ticket.from_bytes(original).apply(network()).state_dict().items()}
    for index in range(count):
        dice = random.Random(f"forgery {index}")
        try:
            data = forged(original, dice)
        except ValueError:  # what seal itself does not write
            continue
        plain = network()
        with nothing_executed():
            try:
                ticket = slth.Ticket.from_bytes(data)
                found = ticket.apply(plain).state_dict()
            except TicketError:
                continue
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), f"forgery {index} was applied and gave another network: {name}"


def test_forged_tickets_are_refused_or_harmless():
    check_forgeries(SMALL // 2)


@pytest.mark.slow
def test_thousands_of_forged_tickets_are_refused_or_harmless():
    check_forgeries(FULL // 2)


def check_forged_checkpoints(count, path):
    original, another = checkpoint_bytes(path), replace(IDENTITY, model="1" * 64)
    model, optimiser = searching()
    for index in range(count):
        try:
            path.write_bytes(forged(original, random.Random(f"forged checkpoint {index}"), "checkpoint"))
        except ValueError:  # what seal itself does not write
            continue
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with nothing_executed():
            try:
                checkpoint.restore(checkpoint.read(path, IDENTITY), model, optimiser)
            except checkpoint.CheckpointError:
                after = model.state_dict()
                assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), index
            with pytest.raises(checkpoint.CheckpointError):
                checkpoint.read(path, another)


def test_forged_checkpoints_change_nothing_or_fit(tmp_path):
    check_forged_checkpoints(SMALL // 2, tmp_path / "search.checkpoint")


@pytest.mark.slow
def test_thousands_of_forged_checkpoints_change_nothing_or_fit(tmp_path):
    check_forged_checkpoints(FULL // 2, tmp_path / "search.checkpoint")


def test_the_watch_notices():
    with pytest.raises(AssertionError, match="exec"), nothing_executed():
        exec(compile("1", "x", "exec"))
    assert json.dumps(changed({"a": [1, 2]}, random.Random(0))) != '{"a": [1, 2]}'
