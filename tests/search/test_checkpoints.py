"""A checkpoint is resumed by the search that wrote it alone, and changes nothing where it is refused."""

import logging
import os
from dataclasses import make_dataclass

import pytest
import torch
from looping import STEPS, Stopped, fit, interrupted, sparse, until
from regression import assert_same, loss, net, state, wrapped
from tables import one_case

from slth import Ticket, files
from slth.search import Bernoulli, Biprop, CheckpointError, EdgePopup, Frozen, IteRand, Search, controls
from slth.wrapping import handle

OTHERS = {
    "seed": {"seed": 1},
    "lr": {"lr": 0.021},
    "steps": {"steps": STEPS + 1},
    "warmup": {"warmup": 0.2},
    "clip": {"clip": 0.5},
    "no clip": {"clip": None},
    "optimiser": {"optimiser": lambda parameters: torch.optim.SGD(parameters, lr=0.02)},
    "its options": {"optimiser": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1)},
    "method": {"method": Biprop()},
    "its seed": {"method": IteRand(every=5, seed=1)},
    "its rate": {"method": IteRand(every=5, rate=0.2)},
    "frozen": {"method": Frozen()},
    "keep": {"build": lambda: wrapped(keep=0.41)},
    "kind": {"build": lambda: wrapped(kind="signed")},
    "scale": {"build": lambda: wrapped(scale="matrix")},
    "policy": {"build": lambda: wrapped(policy="global")},
    "weights": {"build": lambda: wrapped(weights="signed_constant")},
    "their seed": {"build": lambda: wrapped(seed=2)},
    "scores": {"build": lambda: wrapped(scores="magnitude")},
    "dense": {"build": net, "method": None},
    "trained": {"build": lambda: begun(wrapped())},
    "biases": {"build": lambda: of_other_biases(wrapped())},
    "weights under the mask": {"build": sparse, "method": None},
}


def of_other_biases(model):
    """A model whose last biases another seed of torch has drawn."""
    with torch.no_grad():
        model[3].bias.add_(1.0)
    return model


def begun(model):
    """A model with a few steps behind it."""
    fit(model, steps=1)
    return model


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The checkpoint of an interrupted run of IteRand, as bytes."""
    path = tmp_path_factory.mktemp("left") / "c"
    interrupted(wrapped(), path, method=IteRand(every=5))
    return path.read_bytes()


@one_case
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, left, other):
    path, own = tmp_path / "c", {"method": IteRand(every=5)}
    path.write_bytes(left)
    options = own | other
    model = options.pop("build", wrapped)()
    before = state(model)
    with pytest.raises(CheckpointError, match="c: was written by another search"):
        fit(model, until(0), checkpoint=path, **options)
    assert_same(before, state(model))
    assert path.read_bytes() == left
    assert fit(wrapped(), checkpoint=path, **own).resumed_at == 10


TOLD = {
    "seed": "seed 0 != 1",
    "lr": r"lr 0\.02 != 0\.021",
    "steps": "steps 24 != 25",
    "no clip": "clip 1.0 != None",
    "optimiser": "optimiser AdamW != SGD",
    "its options": r"weight_decay 0\.0 != 0\.1",
    "method": r"\(method IteRand != Biprop\)",
    "its rate": r"\(method\.rate 0\.1 != 0\.2\)",
    "keep": r"keep of 0\.weight 0\.4 != 0\.41",
    "kind": r"\(kind of 0\.weight prune != signed\(levels=1\); kind of 3",
    "dense": r"method IteRand != none; .*only one of them trains",
    "trained": r"\(the model differs in 0\.parametrizations\.weight\.0\.scores, 3\..*scores; is it already",
    "biases": r"\(the model differs in 3\.bias; is it .*such as biases, needs torch\.manual_seed before",
}


@one_case
@pytest.mark.parametrize("name", TOLD)
def test_another_run_is_told_what_differs(tmp_path, name):
    path, own = tmp_path / "c", {"method": IteRand(every=5)}
    interrupted(wrapped(), path, **own)
    options = own | OTHERS[name]
    model = options.pop("build", wrapped)()
    with pytest.raises(CheckpointError, match=TOLD[name]):
        fit(model, until(0), checkpoint=path, **options)


def test_settings_that_are_equal_as_numbers_are_the_same_search(tmp_path):
    interrupted(wrapped(keep=1), tmp_path / "c", clip=1, method=Biprop(arrival=1))
    assert fit(wrapped(keep=1.0), checkpoint=tmp_path / "c", clip=1.0, method=Biprop(arrival=1.0)).resumed_at == 10


def named(name, restore=None, **fields):
    """A search of another class under a name, made anew."""
    hooks = {"restore": restore} if restore else {}
    return make_dataclass(name, fields.items(), bases=(Search,), namespace=hooks, frozen=True, kw_only=True)


def test_a_class_of_the_same_name_is_another_search(tmp_path):
    interrupted(wrapped(), tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"another search \(method EdgePopup != [\w.]+\.EdgePopup"):
        fit(wrapped(), until(0), checkpoint=tmp_path / "c", method=named("EdgePopup")())


def test_what_json_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"method\.what of type Tensor: must be numbers, text"):
        fit(wrapped(), until(0), checkpoint=tmp_path / "c", method=named("Own", what=object)(what=torch.zeros(2)))
    assert not (tmp_path / "c").exists()


def test_a_restore_that_fails_leaves_the_masks_as_they_were(tmp_path):
    def failing(self, model, step):
        raise ValueError("cannot restore")

    interrupted(wrapped(), tmp_path / "c", method=named("Own")())
    model = wrapped()
    before = state(model)
    with pytest.raises(ValueError, match="cannot restore"):
        fit(model, until(0), checkpoint=tmp_path / "c", method=named("Own", failing)())
    assert_same(state(model), before)


#: Of files that slth 0.1.0 wrote before checkpoints held settings: what their searches were known by.
OLD = {
    "8cde115a71f632524cded5cc610ae544ab03eca6196a5655d8a8f945ec90685d": {},
    "f6e420462eeeee5020ab60ff0d810c5d40372aec6d9ace24b75347ce690e4fda": {"method": IteRand(every=5)},
    "5c573895955a76318b899465346e1353388adad8005faf944777d4d4bf1ffe9e": {"method": IteRand(), "steps": 1000},
    "e0fd2ba9cf0106c2be833c150a9b6ecdbd831c760c8722835386428a4875cba8": {"method": Frozen(pruned=0, locked=0.2)},
    "fd418b2c79b90800f55206fb7ef5c86912e7755cb10ecdc753fd06cff3f923b2": {
        "method": Bernoulli(),
        "clip": 1,
        "warmup": 0,
        "lr": 1,
    },
}


@pytest.mark.parametrize(("identity", "options"), OLD.items())
def test_checkpoints_of_before_still_go_on(tmp_path, identity, options):
    path, options = tmp_path / "c", {"lr": 0.01} | options
    interrupted(wrapped(), path, **options)
    tensors, content = files.read(path, "checkpoint", [1])
    assert content["identity"] == identity
    del content["began"]
    files.save(path, "checkpoint", 1, tensors, content)
    with pytest.raises(CheckpointError, match=r"another search.*weights, scores, settings or seed differ"):
        fit(wrapped(), until(0), checkpoint=path, **options | {"seed": 5})
    with pytest.raises(Stopped):
        fit(wrapped(), until(11), checkpoint=path, **options)


@pytest.mark.parametrize("progress", [True, False])
def test_a_run_that_goes_on_says_so(tmp_path, caplog, capfd, progress):
    interrupted(wrapped(), tmp_path / "c")
    assert not caplog.records
    with caplog.at_level(logging.INFO, "slth.search"):
        fit(wrapped(), checkpoint=tmp_path / "c", progress=progress, name="mine")
    (record,) = caplog.records
    assert record.getMessage() == f"mine: goes on at step 10 of 24, from checkpoint {tmp_path / 'c'}"
    assert record.levelno == (logging.WARNING if progress else logging.INFO)


def test_a_relative_checkpoint_stays_where_it_was(tmp_path, monkeypatch):
    there = tmp_path / "elsewhere"
    there.mkdir()
    monkeypatch.chdir(tmp_path)

    def wandering(model, batch):
        os.chdir(there)
        return loss(model, batch)

    fit(wrapped(), loss=wandering, checkpoint="c", evaluate=lambda model: os.chdir("/") or {})
    assert not list(there.iterdir())
    monkeypatch.chdir(tmp_path)
    assert fit(wrapped(), until(0), checkpoint="c").resumed_at == STEPS


def test_dense_runs_are_told_apart_by_their_start(tmp_path):
    interrupted(net(), tmp_path / "c")
    other = net()
    with torch.no_grad():
        other[0].bias[3] += 1e-6
    with pytest.raises(CheckpointError, match="another search"):
        fit(other, checkpoint=tmp_path / "c")


def test_a_sparse_run_is_told_by_its_mask(tmp_path):
    interrupted(sparse(), tmp_path / "c")
    other = wrapped(keep=0.5)
    controls.train_weights(other)
    with pytest.raises(CheckpointError, match="another search"):
        fit(other, checkpoint=tmp_path / "c")


@one_case
@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda data: data[:-1], "c: cut short"),
        (lambda data: data[:50], "c: "),
        (lambda data: b"", "c: not a safetensors file"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "c: damaged"),
        (lambda data: b"x" * 1000, "c: not a safetensors file"),
        (lambda data: Ticket.of(wrapped()).to_bytes(), "c: a file of kind 'ticket': must be 'checkpoint'"),
        (lambda data: files.seal("checkpoint", 99, {}, {}), "c: version 99"),
        (lambda data: files.seal("checkpoint", 1, {}, {}), "c: was written by another search"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage, match):
    path, model = tmp_path / "c", wrapped()
    interrupted(wrapped(), path, method=Frozen(pruned=0.2, locked=0.2))
    path.write_bytes(damage(path.read_bytes()))
    before, content = state(model), path.read_bytes()
    with pytest.raises(CheckpointError, match=match):
        fit(model, until(0), checkpoint=path, method=Frozen(pruned=0.2, locked=0.2))
    assert_same(before, state(model))
    assert all(masked.free is None for masked in handle(model).weights.values())
    assert path.read_bytes() == content


@pytest.mark.parametrize("method", [Biprop(), Bernoulli(), Frozen(pruned=0.2, locked=0.2), IteRand(every=3)])
@pytest.mark.parametrize(("lost", "rest"), [("model.", {}), ("nothing", {"rest": "{}"})])
def test_a_checkpoint_of_this_search_that_lacks_something_changes_nothing(tmp_path, method, lost, rest):
    path, model = tmp_path / "c", wrapped()
    interrupted(wrapped(), path, method=method)
    tensors, content = files.read(path, "checkpoint", [1])
    files.save(path, "checkpoint", 1, {n: t for n, t in tensors.items() if not n.startswith(lost)}, content | rest)
    before, kinds = state(model), [masked.made_by for masked in handle(model).weights.values()]
    with pytest.raises(CheckpointError, match="checkpoint: "):
        fit(model, until(0), checkpoint=path, method=method)
    assert_same(before, state(model))
    assert [masked.made_by for masked in handle(model).weights.values()] == kinds == ["edge-popup"] * len(kinds)


@pytest.mark.parametrize("method", [EdgePopup(), Frozen(pruned=0.2, locked=0.2)])
def test_a_checkpoint_that_cannot_be_written_is_known_before(tmp_path, method):
    model = wrapped()
    before = state(model)
    with pytest.raises(FileNotFoundError, match="none"):
        fit(model, until(0), checkpoint=tmp_path / "none" / "c", method=method)
    with pytest.raises(IsADirectoryError):
        fit(model, until(0), checkpoint=tmp_path, method=method)
    assert_same(before, state(model))
