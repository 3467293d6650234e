"""Tickets of searches, for the tests of tickets."""

import pytest
import torch
from cases import CASES
from regression import assert_same, fit, net, state, wrapped

from slth import Ticket, TicketError, files

CASE = {case.name: case for case in CASES}


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
