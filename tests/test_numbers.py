"""Numbers of numpy and torch are taken wherever an int or a float is, as the plain ones they are; nothing else is."""

from fractions import Fraction

import numpy as np
import pytest
import regression
import torch
from tables import one_case
from torch import nn

import slth
from slth import Ticket, theory
from slth.attention import ATTENTIONS, MultiHeadAttention
from slth.masking import masks
from slth.models import FeedForward, Transformer
from slth.numbers import as_float, as_int, plain
from slth.search import Bernoulli, Biprop, Frozen, IteRand, controls
from slth.search.freezing import Freezing
from slth.tasks import angular_velocity
from slth.weights import inits, recipes

WHOLE = {
    "int64": np.int64,
    "uint8": np.uint8,
    "array": lambda value: np.array(value),
    "array of one": lambda value: np.array([value]),
    "tensor": torch.tensor,
    "tensor of one": lambda value: torch.tensor([value], dtype=torch.int32),
}
REAL = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "array": lambda value: np.array([value], np.float32),
    "tensor": torch.tensor,
    "bfloat16": lambda value: torch.tensor(value, dtype=torch.bfloat16),
}
whole = pytest.mark.parametrize("kind", WHOLE.values(), ids=WHOLE)


@one_case
@whole
def test_an_int_is_an_int(kind):
    number = as_int("n", kind(3), 1, 3)
    assert (number, type(number)) == (3, int)


@one_case
@pytest.mark.parametrize("kind", REAL.values(), ids=REAL)
def test_a_float_is_a_float(kind):
    number = as_float("x", kind(0.5), "(0, 1]")
    assert (number, type(number)) == (0.5, float)


@one_case
@pytest.mark.parametrize("kind", REAL.values(), ids=REAL)
@pytest.mark.parametrize("keep", [0.35, 0.1, 0.9, 0.25])
def test_a_float_is_the_decimal_it_prints_as(kind, keep):
    """0.35 of 10 are 4, whatever the dtype: of float32's 0.3499999940 they would be 3."""
    assert as_float("keep", kind(keep)) == keep
    assert masks.count_kept(10, kind(keep)) == masks.count_kept(10, keep)
    (group,) = slth.handle(slth.wrap(nn.Linear(10, 1), keep=kind(keep), seed=0)).groups
    assert group.keep == keep


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_shortest_decimal_is_numpys(dtype):
    values = np.random.default_rng(0).random(300).astype(dtype)
    for value in (*values, -values[0], dtype(0), dtype(1), np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal):
        assert plain(value) == float(str(value))
        assert plain(torch.from_numpy(np.array(value))) == float(str(value))
    assert plain(dtype(-np.inf)) == -np.inf
    assert np.isnan(plain(dtype("nan")))


@one_case
@pytest.mark.parametrize(
    "value",
    [
        True, np.True_, torch.tensor(True), 2.0, np.float32(2), torch.tensor(2.0), "2", None, [2], np.array([2, 2]),
        torch.tensor([2, 2]), torch.empty(1, dtype=torch.int64, device="meta"), np.array([]), 2j, Fraction(2), 4, 0,
    ],
)  # fmt: skip
def test_anything_else_is_no_int(value):
    with pytest.raises(ValueError, match=r"n=.*: must be an int >= 1 and <= 3, of things"):
        as_int("n", value, 1, 3, "of things")


@one_case
@pytest.mark.parametrize(
    "value",
    [
        True,
        np.True_,
        "0.5",
        None,
        np.nan,
        np.float32("nan"),
        torch.tensor(torch.nan),
        0,
        1.1,
        np.ones(2),
        Fraction(1, 2),
    ],
)
def test_anything_else_is_no_float(value):
    with pytest.raises(ValueError, match=r"x=.*: must be a number in \(0, 1\], a share"):
        as_float("x", value, "(0, 1]", "a share")


@pytest.mark.parametrize(
    ("allowed", "words"),
    [("(0, inf)", "a finite number > 0"), ("[0, inf)", "a finite number >= 0"), ("(-inf, inf)", "a finite number")],
)
def test_what_is_allowed_is_said_in_words(allowed, words):
    with pytest.raises(ValueError, match=f"x=inf: must be {words}$"):
        as_float("x", np.float64("inf"), allowed)


def test_an_int_stays_one_where_a_float_is_asked_for():
    assert [type(as_float("x", value)) for value in (1, np.int64(1), torch.tensor(1))] == [int] * 3
    assert plain("word") == "word"
    assert plain(values := [1, 2]) is values


# ---------------------------------------------------------------- at every border


def searched(number, share, method=None, **options):
    """A search all of whose numbers went through `number` (ints) and `share` (floats): tensors and ticket."""
    model = regression.wrapped(keep=share(0.5), seed=number(3))
    options = {"method": method} | options
    slth.fit(
        model,
        regression.batches,
        regression.loss,
        number(4),
        lr=share(0.0625),
        warmup=share(0.25),
        clip=share(0.5),
        every=number(2),
        save_every=number(2),
        seed=number(5),
        progress=False,
        **options,
    )
    return model


METHODS = {
    "edge_popup": lambda number, share: slth.search.EdgePopup(schedule="linear", arrival=share(0.5)),
    "iterand": lambda number, share: IteRand(every=number(2), rate=share(0.5), seed=number(3)),
    "frozen": lambda number, share: Frozen(pruned=share(0.25), locked=share(0.25), seed=number(3)),
    "bernoulli": lambda number, share: Bernoulli(sigma=share(0.5), sharpness=share(2.0), seed=number(3)),
    "biprop": lambda number, share: Biprop(arrival=share(1.0)),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("kinds", [(np.int64, np.float32), (torch.tensor, torch.tensor)], ids=["numpy", "torch"])
def test_a_search_takes_them_and_is_the_same(tmp_path, method, kinds):
    expected = searched(int, float, method(int, float), checkpoint=tmp_path / "plain")
    model = searched(*kinds, method(*kinds), checkpoint=tmp_path / "theirs")
    regression.assert_same(regression.state(expected), regression.state(model))
    assert Ticket.of(model).to_bytes() == Ticket.of(expected).to_bytes()
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "theirs").read_bytes()


def parameters(module):
    """Parameters and buffers."""
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


def redrawn(seed):
    model = regression.wrapped()
    controls.redrawn_weights(model, seed)
    return Ticket.of(model).to_bytes()


def attention_of(name, d_in, d_out, heads, hidden, seed):
    options = {"length": heads} if name == "mhla" else {}
    return ATTENTIONS[name](d_in, d_out, heads, hidden, seed=seed, dtype=torch.float64, **options)


#: Calls with ints n(...) and floats x(...), to be the same for every kind of both.
BORDERS = {
    "inits": lambda n, x: inits.normal((n(2), n(3)), x(0.5), seed=n(3), name="w", stream=n(1)),
    "weight": lambda n, x: inits.weight(
        "kaiming_uniform", (3, 2), inits.Fan(n(3), n(2), keep=x(0.75)), seed=n(1), name="w", scale=x(0.5)
    ),
    "draw": lambda n, x: repr(recipes.Draw("uniform", x(0.5), n(3), "w", n(1))),
    "count_kept": lambda n, x: masks.count_kept(100, x(0.5)),
    "freezing": lambda n, x: repr(Freezing(x(0.25), x(0.5), n(3))),
    "keeps": lambda n, x: slth.handle(slth.wrap(nn.Linear(8, 4), {"*": x(0.25)}, seed=n(0))).groups[0].keep,
    "controls": lambda n, x: redrawn(n(7)),
    "feed_forward": lambda n, x: parameters(FeedForward([n(3), n(4), n(2)], seed=n(1))),
    "transformer": lambda n, x: parameters(Transformer(n(4), n(1), n(2), n(4), (n(4),), seed=n(1))),
    "theory": lambda n, x: theory.theorem14_hidden(n(200), n(16), n(2), x(128.0), x(0.125), n(6), x(5.0)),
    "widths": lambda n, x: theory.theorem10_hidden([n(200), n(100), n(50)], x(0.125), "measured"),
    "inverse": lambda n, x: theory.reachable_epsilon(n(255), n(4), n(4), heads=n(2), alpha=x(4.0), C=x(2.0)),
    "projection": lambda n, x: theory.projection_accuracy(n(200), n(200), n(99), n(200), x(64.0), x(0.5)),
    **{
        name: lambda n, x, name=name: parameters(attention_of(name, n(4), n(4), n(2), n(4), n(3)))
        for name in sorted(ATTENTIONS)
    },
    "depth": lambda n, x: parameters(
        ATTENTIONS["differential"](n(4), n(4), n(2), n(4), depth=n(2), lambda_std=x(0.0), seed=n(1))
    ),
    "merged": lambda n, x: parameters(MultiHeadAttention(n(4), n(4), n(2), n(8), hidden_qk=n(4), seed=n(3))),
    "task": lambda n, x: angular_velocity.sample(n(3), n(4), n(4), seed=n(1)).inputs,
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.equal(b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return (a, type(a)) == (b, type(b))


@one_case
@pytest.mark.parametrize("call", BORDERS.values(), ids=BORDERS)
def test_every_border_takes_them(call):
    expected = call(int, float)
    for number, share in [(np.uint8, np.float32), (np.int64, np.float64), (torch.tensor, torch.tensor)]:
        assert same(call(number, share), expected)


@one_case
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: slth.wrap(nn.Linear(4, 4), seed=True), "seed=True: must be an int"),
        (lambda: slth.wrap(nn.Linear(4, 4), seed=np.float64(3)), "seed=3.0: must be an int"),
        (lambda: slth.wrap(nn.Linear(4, 4), keep=np.float32(1.5)), r"keep=1.5: must be a number in \(0, 1\]"),
        (lambda: IteRand(seed=1.0), "seed=1.0: must be an int"),
        (lambda: Bernoulli(seed="1"), "seed='1': must be an int"),
        (lambda: Frozen(seed=None), "seed=None: must be an int"),
        (lambda: recipes.Draw("sign", True, 0, "w"), "scale=True: must be a finite number"),
        (lambda: theory.lemma7_hidden(np.float32(2), 2, 0.1, 1.0), "d_in=2.0: must be an int >= 1"),
        (lambda: MultiHeadAttention(2, True, 1, 3), "d_out=True: must be an int >= 1"),
        (lambda: ATTENTIONS["gqa"](2, 2, np.float32(1), 3), "heads=1.0: must be an int >= 1"),
        (lambda: ATTENTIONS["gqa"](2, 2, 1, 3, seed=None), "seed=None: must be an int"),
        (lambda: FeedForward([2, 2.0]), r"widths=\[2, 2.0\]: must be at least two ints"),
    ],
)
def test_what_is_no_number_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# ---------------------------------------------------------------- torch's defaults


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16, "meta", "cpu"], ids=str)
def defaults(request):
    """A context in which torch's default dtype or device is another one."""

    class Other:
        def __enter__(self):
            if isinstance(request.param, str):
                torch.set_default_device(request.param)
            else:
                torch.set_default_dtype(request.param)

        def __exit__(self, *error):
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)

    return Other()


@pytest.mark.parametrize("name", sorted(BORDERS.keys() - {"keeps", "controls"}))  # which use layers of torch's own
def test_nothing_depends_on_the_defaults(defaults, name):
    expected = BORDERS[name](int, float)
    with defaults:
        actual = BORDERS[name](int, float)
    assert same(actual, expected)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_no_search_depends_on_the_defaults(tmp_path, defaults, method):
    def run(path):
        data = [regression.batches(step) for step in range(12)]
        value = torch.nn.MSELoss()
        model = regression.wrapped()
        return model, lambda: slth.fit(
            model,
            data,
            lambda m, batch: value(m(batch[0]), batch[1]),
            12,
            method=method(int, float),
            checkpoint=path,
            progress=False,
        )

    expected, go = run(tmp_path / "usual")
    go()
    model, go = run(tmp_path / "other")
    plain, built = regression.net(), Ticket.of(expected).to_bytes()
    with defaults:
        go()
        found = Ticket.of(model).to_bytes()
        Ticket.from_bytes(found).apply(plain)
    regression.assert_same(regression.state(expected), regression.state(model))
    assert found == built
    assert (tmp_path / "usual").read_bytes() == (tmp_path / "other").read_bytes()
    regression.assert_same(regression.state(plain), regression.state(Ticket.from_bytes(built).apply(regression.net())))
