"""The theory of attentions whose heads share, held against quadrature and against Theorem 9 and Lemma 7."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm as normal
from tables import one_case

from slth import theory

rounding = 1 + 1e-9
constants = st.floats(0.01, 100)


@st.composite
def layers(draw):
    """What Theorem 9 takes, as keywords."""
    d_in, d_out = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    alpha = math.sqrt(max(d_in, d_out)) * draw(st.floats(1, 100))
    return {
        "d_in": d_in,
        "d_out": d_out,
        "heads": draw(st.integers(1, 64)),
        "alpha": alpha,
        "epsilon": draw(st.floats(1e-6, 0.99)),
    }


# densities


@one_case
@pytest.mark.parametrize("factors", [1, 2, 3, 4, 5])
def test_products_have_mass_1(factors):
    # in t = -ln |x|: the density times e^-t, and the two signs
    mass, _ = quad(lambda t: 2 * theory.product_density(math.exp(-t), factors) * math.exp(-t), 0, 60)
    assert mass == pytest.approx(1, abs=1e-9)


@given(st.floats(0.001, 1), st.integers(1, 5))
def test_one_factor_more_is_the_mean_over_its_scale(x, factors):
    """Given the product t of the others, one more U[-1, 1] spreads it evenly over [-|t|, |t|]."""
    spread, _ = quad(lambda t: theory.product_density(t, factors) / t, x, 1)
    assert theory.product_density(x, factors + 1) == pytest.approx(spread, rel=1e-6, abs=1e-9)
    assert theory.product_density(-x, factors) == theory.product_density(x, factors)


@given(st.floats(-0.5, 0.5), st.integers(1, 8))
def test_the_uniform_part_is_below_the_density(x, factors):
    assert theory.uniform_part(factors) <= theory.product_density(x, factors) * rounding


def test_the_uniform_part_is_all_there_is():
    for factors in (2, 3, 4):
        assert theory.product_density(0.5001, factors) < theory.uniform_part(factors)


def test_densities_known_figures():
    assert [round(theory.uniform_part(factors), 3) for factors in (1, 2, 3, 4)] == [0.5, 0.347, 0.12, 0.028]
    assert theory.uniform_part(2) == pytest.approx(math.log(2) / 2)
    assert theory.product_density(1.5, 3) == theory.product_density(-1.01, 1) == theory.product_density(1, 2) == 0
    assert theory.product_density(0, 1) == 0.5
    assert theory.product_density(0, 2) == math.inf


@given(st.floats(0.1, 100))
def test_the_part_of_a_normal_factor(std):
    keys, _ = quad(lambda k: normal.pdf(k, scale=std) / k, 0.5, 0.5 + 12 * std, epsabs=1e-12, limit=200)
    assert theory.normal_part(std) == pytest.approx(keys, rel=1e-6)


def test_the_part_of_a_normal_factor_at_the_ends():
    assert theory.normal_part(1e-300) == theory.normal_part(0.001) == 0
    assert 0 <= theory.normal_part(1e200) < 1e-190


# constants and widths


@given(constants, st.integers(2, 6))
def test_chain_constants_are_in_inverse_proportion_to_the_parts(constant, factors):
    found = theory.chain_constant(factors, constant)
    assert found * theory.uniform_part(factors) == pytest.approx(constant * theory.uniform_part(2))
    assert theory.chain_constant(2, constant) == constant
    assert theory.chain_constant(factors + 1, constant) > found


def test_chain_constants_known_figures():
    assert theory.chain_constant(3, 1.0) == pytest.approx(2 / math.log(2))
    assert theory.chain_constant(4, 1.0) == pytest.approx(6 / math.log(2) ** 2)
    assert theory.chain_constant(2, "measured") == max(theory.MEASURED_CONSTANT.values())


@given(st.integers(1, 64), st.integers(1, 64), st.floats(1e-6, 0.99), constants)
def test_a_chain_of_two_is_lemma_7(d_in, d_out, epsilon, constant):
    assert theory.chain_hidden(d_in, d_out, epsilon, 2, constant) == theory.lemma7_hidden(
        d_in, d_out, epsilon, constant
    )
    longer = theory.chain_hidden(d_in, d_out, epsilon, 3, constant)
    wanted = d_in * constant * (2 / math.log(2)) * math.log(d_in * d_out / epsilon)
    assert wanted / rounding <= longer <= wanted * rounding + 1


@given(layers(), constants)
def test_sharing_asks_for_no_more_than_theorem_9(layer, constant):
    hidden = theory.grouped_hidden(**layer, constant=constant)
    assert hidden == max(theory.theorem9_hidden(**layer, constant=constant))
    assert theory.knocking_hidden(**layer, constant=constant, mix="") == hidden


@given(layers(), constants)
def test_tied_values_are_met_so_much_finer_and_no_finer(layer, constant):
    hidden = theory.tied_hidden(**layer, constant=constant)
    budget = theory.theorem9_budget(**layer)

    def asked(n):
        return layer["d_in"] * constant * math.log(n**0.25 / budget.vo_max_norm)

    grouped = theory.grouped_hidden(**layer, constant=constant)
    assert hidden >= grouped
    assert hidden * rounding >= asked(hidden)
    if hidden > grouped:
        assert hidden - 1 < asked(hidden) * rounding


@given(layers(), constants)
def test_each_more_mixing_asks_for_more(layer, constant):
    widths = [theory.knocking_hidden(**layer, constant=constant, mix=mix) for mix in ("", "v", "qv", "qkv")]
    assert widths == sorted(widths)
    qk, vo = (theory.theorem9_hidden(**layer, constant=theory.chain_constant(n, constant)) for n in (4, 3))
    assert widths[-1] == max(qk.hidden_qk, vo.hidden_vo)
    assert theory.knocking_hidden(**layer, constant=constant, mix="k") == theory.knocking_hidden(
        **layer, constant=constant, mix="qq"
    )


@given(layers(), constants, st.floats(0.1, 10))
def test_explicit_attention_asks_by_the_part_of_a_normal_factor(layer, constant, norm):
    larger = constant * theory.uniform_part(2) / theory.normal_part(norm / math.sqrt(3))
    hidden = theory.explicit_hidden(**layer, constant=constant, norm=norm)
    assert hidden == pytest.approx(theory.grouped_hidden(**layer, constant=larger), rel=1e-12, abs=1)


def test_widths_known_figures():
    # the paper's one-head task: 2 ln 640 = 12.92 and 2 ln 56.57 = 8.07
    layer = {"d_in": 2, "d_out": 1, "heads": 1, "alpha": math.sqrt(2), "epsilon": 0.1, "constant": 1.0}
    assert theory.grouped_hidden(**layer) == 13
    assert theory.tied_hidden(**layer) == 13  # 2 ln(56.57 13^(1/4)) = 9.35
    assert theory.knocking_hidden(**layer, mix="v") == 24  # 8.07 * 2.885 = 23.3
    assert theory.knocking_hidden(**layer) == 162  # 12.92 * 12.488 = 161.4
    assert theory.explicit_hidden(**layer) == 18  # 12.92 * 0.3466 / 0.2578 = 17.4
    # 8 * 2 * max(3 * 2^1.5, 2) / 0.1 = 1357.6, and 2 ln of it = 14.43
    assert theory.projection_width(**layer, hidden=2) == 15


# projections


@one_case
@pytest.mark.parametrize(("alpha", "hidden"), [(1e102, 4), (1e107, 4), (1e300, 4), (10**200, 4), (64.0, 10**310)])
def test_projections_beyond_float64(alpha, hidden):
    layer = {"d_in": 2, "d_out": 1, "heads": 3, "alpha": alpha, "epsilon": 0.5}
    log = math.log(48 / 0.5) + max(math.log(3) + 3 * math.log(alpha), math.log(hidden))
    assert theory.projection_accuracy(**layer, hidden=hidden) == pytest.approx(math.exp(-log), rel=1e-12, abs=1e-320)
    if hidden == 4:
        assert theory.projection_width(**layer, hidden=4, constant=1.0) == math.ceil(4 * log)


@given(layers(), st.integers(1, 512), constants)
def test_projections_at_their_accuracy_keep_the_logits_within_theorem_9(layer, hidden, constant):
    accuracy = theory.projection_accuracy(**layer, hidden=hidden)
    r = math.sqrt(layer["d_in"] * hidden) * accuracy  # |dW_Q|_2 and |dW_K|_2
    logits = layer["alpha"] ** 2 * (r * (1 + r) + r) / math.sqrt(hidden)
    assert logits <= theory.theorem9_budget(**layer).logits * rounding
    entries = 2 * layer["heads"] * layer["d_in"] * hidden
    assert entries * accuracy <= layer["epsilon"] / 4 * rounding  # each fails as often as its accuracy says
    width = theory.projection_width(**layer, hidden=hidden, constant=constant)
    asked = hidden * constant * math.log(1 / accuracy)
    assert asked / rounding <= width <= asked * rounding + 1


# ranks


@given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 99))
def test_ranks(d_in, heads, hidden):
    assert theory.explicit_rank(d_in, hidden) == min(d_in, hidden) == theory.talking_rank(d_in, 1, hidden)
    assert theory.talking_rank(d_in, heads, hidden) == min(d_in, heads * hidden)
    assert theory.explicit_rank(d_in, hidden) <= theory.talking_rank(d_in, heads, hidden)


# bad input

layer = {"d_in": 2, "d_out": 1, "heads": 1, "alpha": 1.5, "epsilon": 0.1}
good = {
    theory.product_density: {"x": 0.5, "factors": 2},
    theory.uniform_part: {"factors": 2},
    theory.normal_part: {"std": 0.5},
    theory.chain_constant: {"factors": 3, "constant": 1.0},
    theory.chain_hidden: {"d_in": 2, "d_out": 1, "epsilon": 0.1, "factors": 3, "constant": 1.0},
    theory.grouped_hidden: {**layer, "constant": 1.0},
    theory.tied_hidden: {**layer, "constant": 1.0},
    theory.knocking_hidden: {**layer, "constant": 1.0, "mix": "qkv"},
    theory.explicit_hidden: {**layer, "constant": 1.0, "norm": 1.0},
    theory.projection_width: {**layer, "hidden": 4, "constant": 1.0},
    theory.projection_accuracy: {**layer, "hidden": 4},
    theory.explicit_rank: {"d_in": 2, "hidden": 4},
    theory.talking_rank: {"d_in": 2, "heads": 2, "hidden": 4},
}
bad = {
    "d_in": [0, 2.0, True],
    "d_out": [0, 1.5],
    "heads": [0, "2"],
    "hidden": [0, 1.5],
    "factors": [0, 2.5, True],
    "alpha": [0.0, math.inf, math.nan],
    "epsilon": [0.0, 1.0, math.nan],
    "constant": [0.0, math.inf, "guessed"],
    "norm": [0.0, -1.0, math.nan, 1e-3],
    "std": [0.0, math.inf, "wide"],
    "x": [math.nan],
    "mix": ["qx", "w"],
}
cases = [(function, name, value) for function, kwargs in good.items() for name in kwargs for value in bad[name]]


@one_case
@pytest.mark.parametrize(("function", "name", "value"), cases)
def test_bad_input_is_named(function, name, value):
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must "):
        function(**{**good[function], name: value})


def test_a_chain_has_two_factors_at_least():
    with pytest.raises(ValueError, match="factors=1: must be an int >= 2"):
        theory.chain_constant(1, 1.0)
