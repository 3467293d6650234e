"""What every search must do, by one table: slth's own, as the registry has them, and two of a user's own file."""

import copy
import json
import pickle
import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from regression import INPUTS, assert_same, batches, fit, loss, net, state, wrapped
from tables import one_case

import slth
from slth import files, plugins
from slth.masking import traits
from slth.search import METHODS, Search, controls, method, options
from slth.search.freezing import LOCKED
from slth.search.methods import help_of
from slth.ticket import Ticket, TicketError
from slth.wrapping import handle, random_weight

TOY = str(Path(__file__).parents[1] / "support" / "toy_search.py")
OWN = [f"{TOY}:Momentum", f"{TOY}:Scaled"]
STEPS = 10
every_method = pytest.mark.parametrize("name", [*METHODS, *OWN], ids=lambda name: name.rpartition("/")[2])


def searched(name, steps=STEPS, **others):
    model = wrapped()
    fit(model, method(name), steps, **others)
    return model


@every_method
def test_a_fresh_model_takes_on_its_state(name):
    model, other = searched(name), wrapped(seed=5)
    other.load_state_dict(model.state_dict())
    assert_same(state(other), state(model))
    assert other.eval()(INPUTS).equal(model(INPUTS))
    assert Ticket.of(other).to_bytes() == Ticket.of(model).to_bytes()


@every_method
def test_a_copy_goes_on_as_the_model_does(name):
    model = searched(name)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for each in (model, *copies):
        fit(each, method(name), 3)
    for other in copies:
        assert_same(state(other), state(model))


@every_method
def test_it_goes_on_from_a_checkpoint(name, tmp_path):
    class Stopped(Exception):
        pass

    def until(model, batch):
        if not model.training or len(seen) == 7:
            raise Stopped
        seen.append(batch)
        return loss(model, batch)

    seen = []
    with pytest.raises(Stopped):
        slth.fit(
            wrapped(), batches, until, STEPS, method=method(name), lr=0.02, checkpoint=tmp_path / "c", save_every=3,
            progress=False,
        )  # fmt: skip
    model = wrapped()
    assert fit(model, method(name), STEPS, checkpoint=tmp_path / "c").resumed_at == 6
    assert_same(state(model), state(searched(name)))


@every_method
def test_its_ticket_is_the_network(name):
    model = searched(name)
    ticket = Ticket.from_bytes(Ticket.of(model).to_bytes())
    assert ticket.apply(net())(INPUTS).equal(model(INPUTS))
    assert_same(state(slth.unwrap(model)), state(ticket.apply(net())))


def random(model):
    """New scores for all weights, so that nothing of what was found is left in them."""
    controls.random_mask(model, seed=3)
    return model


@pytest.mark.parametrize("first", [*METHODS, *OWN, "frozen(seed=4)"], ids=lambda name: name.rpartition("/")[2])
@every_method
def test_it_searches_after_another_as_from_the_start(first, name):
    model, fresh = random(searched(first)), random(wrapped())
    for path, masked in handle(fresh).weights.items():  # weights that were drawn anew stay so
        random_weight(fresh, path).data.copy_(random_weight(model, path))
        if (generation := handle(model).weights[path].buffer("generation")) is not None:
            masked.put("generation", generation.clone())
    fit(model, method(name), STEPS)
    fit(fresh, method(name), STEPS)
    assert_same(state(model), state(fresh))
    assert Ticket.of(model).apply(net())(INPUTS).equal(model(INPUTS))


def test_no_score_is_stuck_after_frozen_ones():
    model = searched("frozen")
    locked = {path: masked.scores == LOCKED for path, masked in handle(model).weights.items()}
    fit(model, method("edge_popup"), STEPS)
    for path, masked in handle(model).weights.items():
        assert masked.made_by == "edge-popup"
        assert masked.scores.max() < 1
        assert len(masked.scores[locked[path]].unique()) > 0.3 * locked[path].sum()


def test_a_buffer_stays_for_a_search_of_the_same_class():
    masked = handle(wrapped()).weights["0.weight"]
    masked.put("mean", torch.ones_like(masked.scores))  # as a state_dict brings it
    for search in ("Own", "Own"):
        masked.begin(search)
        assert masked.buffer("mean").eq(1).all()
    masked.begin("Other")
    assert masked.buffer("mean") is None
    assert masked.made_by == "edge-popup"
    assert list(masked.state_dict())[-2:] == ["keep", "_extra_state"]


def test_a_class_that_is_no_dataclass_is_refused(tmp_path):
    text = (
        "from slth.search import Search, options\nclass M(Search):\n    decay: float = options.number(0.9, help='x')\n"
    )
    (tmp_path / "own.py").write_text(text)
    place = f"{tmp_path / 'own.py'}:M"
    for ask in (method, help_of, lambda name: method(name, decay=0.5)):
        with pytest.raises(ValueError, match=re.escape(f"method={place}: M: must be a frozen dataclass")):
            ask(place)

    class Lost(Search):
        decay: float = options.number(0.9, help="x")

    class Constant(Search):
        redraws: ClassVar[bool] = False

    with pytest.raises(ValueError, match="Lost: must be a frozen dataclass"):
        Lost()
    assert Constant().arrival == 0.75


def test_a_trait_that_is_no_dataclass_is_refused(monkeypatch):
    monkeypatch.setattr(traits, "_BY_KEY", dict(traits.known()))

    class Lost(traits.Trait):
        key: ClassVar[str] = "lost"
        factor: float = 0.5

    with pytest.raises(ValueError, match="Lost: must be a frozen dataclass"):
        handle(wrapped()).weights["0.weight"].add(Lost())


@one_case
@every_method
def test_its_options_are_its_own(name):
    kind = type(method(name))
    assert issubclass(kind, Search)
    for option, text in help_of(name).items():
        assert text.endswith(f"(default {getattr(kind(), option)!r})")
        assert method(f"{name}({option}={getattr(kind(), option)!r})") == kind()
    allowed = ", ".join(help_of(name))
    with pytest.raises(ValueError, match=rf"method.speed=3: .* has no such option, must be one of {allowed}$"):
        method(name, speed=3)
    with pytest.raises(ValueError, match=r"method.arrival=2: must be a number in \(0, 1\]"):
        method(name, arrival=2)


def test_what_is_no_method_is_refused_by_name():
    with pytest.raises(ValueError, match=f"method=steep: must be one of {', '.join(METHODS)}, or a class of yours"):
        method("steep")
    with pytest.raises(ValueError, match=r"method=pathlib:Path: must derive from slth\.search\.base\.Search"):
        method("pathlib:Path")
    with pytest.raises(ValueError, match=r"method=frozen: pruned \+ locked = 1.5: must be in"):
        method("frozen", pruned=0.75, locked=0.75)
    with pytest.raises(ValueError, match=r"method=<class 'slth\.search\.frozen\.Frozen'>: must be a search"):
        fit(wrapped(), METHODS["frozen"])


@one_case
@pytest.mark.parametrize(
    ("text", "name", "given"),
    [
        ("iterand", "iterand", {}),
        ("iterand(rate=0.2, every=None)", "iterand", {"rate": 0.2, "every": None}),
        ("a (1)/my file.py:Own(word=cubic, pair=(1, 2))", "a (1)/my file.py:Own", {"word": "cubic", "pair": (1, 2)}),
        ("a(1)/my.py:Own", "a(1)/my.py:Own", {}),
        ("own(text='two words')", "own", {"text": "two words"}),
    ],
)
def test_options_may_stand_in_the_text(text, name, given):
    assert plugins.split(text) == (name, given)
    assert plugins.join(name, given) == text


@one_case
@pytest.mark.parametrize("text", ["iterand(0.2)", "iterand(rate=)", "iterand(rate=open('x'))", "iterand(rate=1)(2)"])
def test_options_that_cannot_be_read_are_refused(text):
    with pytest.raises(ValueError, match="must be a name, or name"):
        plugins.split(text)


def test_what_a_users_search_made_says_where_it_comes_from(tmp_path):
    def said(name, **others):
        model = searched(name, 4, checkpoint=tmp_path / "c", **others)
        rest = json.loads(files.read(tmp_path / "c", "checkpoint", [1])[1]["rest"])
        (tmp_path / "c").unlink()
        return rest.get("method"), f"found by {OWN[0]}" in Ticket.of(model).describe(), model

    place, described, model = said(OWN[0])
    assert (place, described) == (OWN[0], True)
    assert handle(model).weights["0.weight"].made_by == "mean"
    fit(model, method("biprop"), 2)
    assert "found by" not in Ticket.of(model).describe()
    assert said("iterand")[:2] == (None, False)


def test_what_only_a_users_file_knows_is_refused_without_it(monkeypatch):
    model = searched(OWN[1])
    data, told = Ticket.of(model).to_bytes(), model.state_dict()
    with pytest.raises(ValueError, match=r"0.weight was scaled by its search"):
        slth.serve(Ticket.from_bytes(data), net())
    monkeypatch.delitem(traits.known(), "factor")
    why = re.escape(
        f"has 'factor', which no search that is loaded knows: load it first, as slth.search.method({OWN[1]!r})"
    )
    with pytest.raises(TicketError, match=why):
        Ticket.from_bytes(data)
    with pytest.raises(ValueError, match=why):
        wrapped().load_state_dict(told)


@one_case
@pytest.mark.parametrize("name", ["scores", "forward", "keep", "two words"])
def test_a_buffer_hides_nothing_of_a_mask(name):
    masked = handle(wrapped()).weights["0.weight"]
    with pytest.raises(ValueError, match=f"has the buffer '{name}': must be a name that a mask has for nothing else"):
        masked.put(name, torch.zeros(1))


def test_options_have_a_default_that_they_take():
    for kind in METHODS.values():
        options.check(kind())
