"""A class, or what is no module at all, in a module's place is refused by a sentence; what slth has is listed."""

import pytest
import regression
import torch
from tables import one_case
from torch import nn

import slth
from slth import Ticket


class Net(nn.Sequential):
    """A network that is not made yet."""


CALLS = {
    "wrap": slth.wrap,
    "unwrap": slth.unwrap,
    "handle": slth.handle,
    "fit": lambda module: slth.fit(module, regression.batches, regression.loss, 1),
    "Ticket.of": Ticket.of,
    "apply": lambda module: Ticket.of(regression.wrapped()).apply(module),
    "serve": lambda module: slth.serve(Ticket.of(regression.wrapped()), module),
}


@one_case
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("module", "match"),
    [
        (Net, r"=Net: is a class, must be an instance, as Net\(\.\.\.\) gives"),
        (regression.net, r" of type function: must be a torch\.nn\.Module"),
        (regression.net().state_dict(), " of type OrderedDict: must be"),
        (None, " of type NoneType: must be"),
    ],
)
def test_a_module_is_an_instance(call, module, match):
    with pytest.raises(ValueError, match=match):
        call(module)


@pytest.mark.parametrize("make", [Ticket.apply, slth.serve])
def test_a_ticket_is_for_evaluation(make):
    model = regression.wrapped(dropout=0.5, weights="signed_constant")
    expected = model.eval()(regression.INPUTS)
    module = regression.net(dropout=0.5).train()
    made = make(Ticket.of(model.train()), module)
    assert not any(m.training for m in made.modules())
    torch.testing.assert_close(made(regression.INPUTS), expected)
    assert model.training


def test_a_refused_ticket_leaves_the_mode():
    module = nn.Linear(2, 2)
    with pytest.raises(slth.TicketError):
        Ticket.of(regression.wrapped()).apply(module)
    assert module.training


def test_what_there_is_is_listed():
    listed = dir(slth)
    assert set(slth.__all__) < set(listed)
    assert {"attention", "construct", "convert", "hf", "kernels", "search", "theory"} < set(listed)
    assert all(hasattr(slth, name) for name in listed)
