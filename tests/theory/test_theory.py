import math
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tables import one_case

from slth import theory

counts = st.integers(1, 300)
epsilons = st.floats(1e-9, 0.999)
constants = st.floats(0.01, 100)
logits = st.floats(0, 300)
small_logits = st.floats(0, 0.5)
alphas = st.floats(1e-3, 1e6)
rounding = 1 + 1e-12


@st.composite
def layers(draw):
    """d_in, d_out, heads, alpha, epsilon as Theorem 9 allows them."""
    d_in, d_out = draw(counts), draw(counts)
    alpha = math.sqrt(max(d_in, d_out)) * draw(st.floats(1, 100))
    return {"d_in": d_in, "d_out": d_out, "heads": draw(counts), "alpha": alpha, "epsilon": draw(epsilons)}


@st.composite
def softmax_changes(draw):
    """Logits z, their change e, inputs X (T, d_in), and the bounds m on |e| and alpha on the norms of the rows."""
    length, d_in = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    entries = st.floats(-10, 10)
    z = np.array(draw(st.lists(entries, min_size=length, max_size=length)))
    m = draw(st.floats(0, 8))
    signs = np.array(draw(st.lists(st.floats(-1, 1), min_size=length, max_size=length)))
    x = np.array(draw(st.lists(entries, min_size=length * d_in, max_size=length * d_in))).reshape(length, d_in)
    alpha = np.linalg.norm(x, axis=1).max()
    assume(alpha > 1e-6)
    return z, m * signs, x, m, float(alpha)


def softmax(z):
    p = np.exp(z - z.max())
    return p / p.sum()


def distance(z, e, x):
    return float(np.linalg.norm((softmax(z + e) - softmax(z)) @ x))


def worst_two_tokens(m, alpha):
    """The case of equality in the docstring of tanh_softmax."""
    return distance(np.array([-m / 2, m / 2]), np.array([m, -m]), alpha * np.array([[1.0], [-1.0]]))


# linear layers


@given(counts, counts, epsilons, constants)
def test_lemma7_hidden_is_the_least_that_reaches_the_accuracy(d_in, d_out, epsilon, constant):
    n = theory.lemma7_hidden(d_in, d_out, epsilon, constant)
    needed = -d_in * constant * math.log(theory.lemma7_accuracy(d_in, d_out, epsilon))
    assert needed / rounding <= n < needed * rounding + 1


@given(counts, counts, epsilons, constants)
def test_lemma7_hidden_grows_with_size_and_shrinks_with_epsilon(d_in, d_out, epsilon, constant):
    n = theory.lemma7_hidden(d_in, d_out, epsilon, constant)
    assert n <= theory.lemma7_hidden(d_in + 1, d_out, epsilon, constant)
    assert n <= theory.lemma7_hidden(d_in, d_out + 1, epsilon, constant)
    assert n <= theory.lemma7_hidden(d_in, d_out, epsilon / 2, constant)
    assert n <= theory.lemma7_hidden(d_in, d_out, epsilon, constant * 2)


def test_lemma7_known_figures():
    # 2 * 3 * ln(2 * 5 / 0.1) = 6 * 4.60517 = 27.63
    assert theory.lemma7_hidden(2, 5, 0.1, 3.0) == 28
    assert theory.lemma7_accuracy(2, 5, 0.1) == pytest.approx(0.01)
    # one more bit in every entry costs d_in C log(2) hidden dimensions: 64 * ln 2 = 44.36
    assert theory.lemma7_hidden(64, 64, 0.05, 1.0) - theory.lemma7_hidden(64, 64, 0.1, 1.0) in (44, 45)


# softmax


@given(softmax_changes())
def test_softmax_bounds_hold(change):
    z, e, x, m, alpha = change
    found = distance(z, e, x)
    slack = 1e-12 * alpha  # rounding of the distance itself
    assert found <= theory.tanh_softmax(m, alpha) + slack
    assert found <= theory.exp_softmax(m, alpha) + slack
    assert found <= theory.lemma8_softmax(m, x.shape[1], alpha) + slack
    if m <= 0.5:
        assert found <= theory.lemma5_softmax(m, x.shape[1], alpha) + slack


@given(st.floats(0, 8), alphas)
def test_tanh_bound_is_attained_by_two_opposite_tokens(m, alpha):
    assert worst_two_tokens(m, alpha) == pytest.approx(theory.tanh_softmax(m, alpha), rel=1e-9, abs=1e-12 * alpha)


@given(st.floats(0.01, 8), alphas)
def test_control_half_of_the_tanh_bound_does_not_hold(m, alpha):
    assert worst_two_tokens(m, alpha) > theory.tanh_softmax(m, alpha) / 2


@given(st.floats(0.01, 8), alphas)
def test_control_m_must_bound_the_logits_on_both_sides(m, alpha):
    assert worst_two_tokens(m, alpha) > theory.tanh_softmax(m / 2, alpha) * rounding


@given(logits, counts, alphas)
def test_softmax_bounds_are_ordered(m, d_in, alpha):
    tight, loose = theory.tanh_softmax(m, alpha), theory.exp_softmax(m, alpha)
    assert tight <= loose * rounding
    assert loose <= theory.lemma8_softmax(m, d_in, alpha) * rounding
    assert tight <= min(2 * alpha, m * alpha) * rounding


@given(small_logits, counts, alphas)
def test_lemma5_is_looser_than_lemma8_on_its_range(m, d_in, alpha):
    assert theory.lemma5_softmax(m, d_in, alpha) * rounding >= theory.lemma8_softmax(m, d_in, alpha)


def test_control_lemma5_fails_far_beyond_its_range():
    assert math.expm1(2 * 1.0) > 4 * 1.0  # why m > 1/2 is refused: at m = 1 Lemma 8 is above 4 m already


@given(logits, logits, counts, alphas)
def test_softmax_bounds_grow_with_m(m, more, d_in, alpha):
    assert theory.tanh_softmax(m, alpha) <= theory.tanh_softmax(m + more, alpha)
    assert theory.exp_softmax(m, alpha) <= theory.exp_softmax(m + more, alpha)
    assert theory.lemma8_softmax(m, d_in, alpha) <= theory.lemma8_softmax(m + more, d_in, alpha)


def test_softmax_known_figures():
    assert theory.tanh_softmax(2.0, 1.0) == pytest.approx(1.5231883119)
    assert theory.exp_softmax(0.5, 3.0) == pytest.approx(3 * (math.e - 1))
    assert theory.lemma8_softmax(0.5, 4, 3.0) == pytest.approx(6 * (math.e - 1))
    assert theory.lemma5_softmax(0.5, 4, 3.0) == 12.0
    assert theory.tanh_softmax(0, 1.0) == theory.exp_softmax(0, 1.0) == theory.lemma5_softmax(0, 9, 1.0) == 0


@pytest.mark.parametrize("m", [400.0, 1e300])
def test_large_logits_give_infinity_or_the_diameter(m):
    assert theory.lemma8_softmax(m, 64, 8.0) == theory.exp_softmax(m, 8.0) == math.inf
    assert theory.tanh_softmax(m, 8.0) == 16.0


# attention


@given(layers())
def test_budget_sums_to_epsilon(layer):
    budget = theory.theorem9_budget(**layer)
    assert layer["heads"] * (budget.softmax_term + budget.vo_term) == pytest.approx(layer["epsilon"])


@given(layers())
def test_budget_follows_from_its_entries(layer):
    d_in, d_out, alpha = layer["d_in"], layer["d_out"], layer["alpha"]
    budget = theory.theorem9_budget(**layer)
    assert budget.logits == pytest.approx(alpha**2 * d_in * budget.qk_max_norm)
    assert theory.lemma8_softmax(budget.logits, d_in, alpha) <= budget.softmax_term * rounding
    assert budget.vo_term == pytest.approx(alpha * d_in * math.sqrt(d_out) * budget.vo_max_norm)


@given(layers())
def test_failure_is_the_sum_over_all_entries_of_all_heads(layer):
    d_in, d_out = layer["d_in"], layer["d_out"]
    budget = theory.theorem9_budget(**layer)
    # Lemma 7 fails per entry with the probability that is also the accuracy of the entry
    per_head = d_in**2 * budget.qk_max_norm + d_in * d_out * budget.vo_max_norm
    assert budget.failure == theory.theorem9_failure(**layer) == pytest.approx(layer["heads"] * per_head)
    assert budget.failure <= 5 / 8 * layer["epsilon"] * rounding


@given(layers(), constants)
def test_theorem9_is_lemma7_at_the_accuracies_of_the_budget(layer, constant):
    d_in, d_out = layer["d_in"], layer["d_out"]
    budget = theory.theorem9_budget(**layer)
    hidden = theory.theorem9_hidden(**layer, constant=constant)
    qk = theory.lemma7_hidden(d_in, d_in, d_in**2 * budget.qk_max_norm, constant)
    vo = theory.lemma7_hidden(d_in, d_out, d_in * d_out * budget.vo_max_norm, constant)
    assert abs(hidden.hidden_qk - qk) <= 1  # both round up a number that carries rounding errors
    assert abs(hidden.hidden_vo - vo) <= 1
    assert hidden.hidden_qk >= hidden.hidden_vo or d_out > d_in


@given(layers(), constants)
def test_theorem9_hidden_is_monotone(layer, constant):
    base = theory.theorem9_hidden(**layer, constant=constant)
    for change in ({"heads": layer["heads"] + 1}, {"alpha": layer["alpha"] * 2}, {"epsilon": layer["epsilon"] / 2}):
        harder = theory.theorem9_hidden(**{**layer, **change}, constant=constant)
        assert harder.hidden_qk >= base.hidden_qk
        assert harder.hidden_vo >= base.hidden_vo


def test_theorem9_known_figures():
    # the paper's one-head task: 8 * 2^1.5 * 2^1.5 / 0.1 = 640, 2 * 2^0.5 * 2 / 0.1 = 56.57
    layer = {"d_in": 2, "d_out": 1, "heads": 1, "alpha": math.sqrt(2), "epsilon": 0.1}
    assert theory.theorem9_hidden(**layer, constant=1.0) == (13, 9)  # 2 ln 640 = 12.92, 2 ln 56.57 = 8.07
    budget = theory.theorem9_budget(**layer)
    assert 1 / budget.qk_max_norm == pytest.approx(640)
    assert budget.logits == pytest.approx(0.1 / 16)
    assert budget.softmax_term == budget.vo_term == pytest.approx(0.05)
    assert 1 / budget.vo_max_norm == pytest.approx(40 * math.sqrt(2))
    assert budget.failure == pytest.approx(0.1 * (1 / 16 + 1 / (2 * math.sqrt(2))))


def test_theorem9_stays_finite_at_huge_arguments():
    hidden = theory.theorem9_hidden(64, 64, 8, 1e200, 1e-300, 1e300)
    assert hidden.hidden_qk > hidden.hidden_vo > 10**300
    assert theory.theorem9_budget(64, 64, 8, 1e200, 1e-300).qk_max_norm == 0  # below float64's smallest number


# widths and back


@given(layers(), constants)
def test_required_hidden_is_the_larger_width_of_theorem9(layer, C):
    assert theory.required_hidden(**layer, C=C) == max(theory.theorem9_hidden(**layer, constant=C))


@given(layers(), constants, st.integers(1, 10**6))
def test_reachable_epsilon_is_the_least_that_the_width_grants(layer, C, hidden):
    del layer["epsilon"]
    epsilon = theory.reachable_epsilon(hidden, **layer, C=C)
    if epsilon is None:
        assert theory.required_hidden(**layer, epsilon=1 - 1e-10, C=C) >= hidden
        return
    assert 0 < epsilon < 1
    assert theory.required_hidden(**layer, epsilon=epsilon, C=C) <= hidden
    if epsilon > sys.float_info.min:
        assert theory.required_hidden(**layer, epsilon=epsilon * (1 - 1e-10), C=C) >= hidden


@given(layers(), constants)
def test_reachable_epsilon_undoes_required_hidden(layer, C):
    hidden = theory.required_hidden(**layer, C=C)
    epsilon = layer.pop("epsilon")
    assert theory.reachable_epsilon(hidden, **layer, C=C) <= epsilon * (1 + 1e-10)
    if hidden > 1:
        before = theory.reachable_epsilon(hidden - 1, **layer, C=C)
        assert before is None or before >= epsilon * (1 - 1e-10)


def test_widths_known_figures():
    # the paper's one-head task, alpha = sqrt 2: 2 ln(64 / 0.1) = 12.92, and 64 exp(-13 / 2) = 0.0962
    assert theory.required_hidden(2, 1, 0.1, C=1.0) == 13
    assert theory.reachable_epsilon(13, 2, 1, C=1.0) == pytest.approx(64 * math.exp(-6.5))
    assert theory.reachable_epsilon(8, 2, 1, C=1.0) is None  # 64 exp(-4) = 1.17
    assert theory.reachable_epsilon(10**9, 2, 1, C=1.0) == sys.float_info.min


def test_alpha_is_the_least_allowed_unless_given():
    for d_in, d_out in ((4, 1), (1, 4)):
        assert theory.required_hidden(d_in, d_out, 0.1) == theory.required_hidden(d_in, d_out, 0.1, alpha=2.0)
        assert theory.reachable_epsilon(999, d_in, d_out) == theory.reachable_epsilon(999, d_in, d_out, alpha=2.0)


def test_measured_stands_for_the_constant_of_the_harder_targets():
    constant = max(theory.MEASURED_CONSTANT.values())
    assert theory.lemma7_hidden(4, 4, 0.1, "measured") == theory.lemma7_hidden(4, 4, 0.1, constant)
    layer = {"d_in": 2, "d_out": 1, "heads": 3, "alpha": 2.0}
    assert theory.theorem9_hidden(**layer, epsilon=0.1, constant="measured") == theory.theorem9_hidden(
        **layer, epsilon=0.1, constant=constant
    )
    assert theory.required_hidden(**layer, epsilon=0.1) == theory.required_hidden(**layer, epsilon=0.1, C=constant)
    assert theory.reachable_epsilon(150, **layer) == theory.reachable_epsilon(150, **layer, C=constant)


# bad input

good = {
    theory.lemma7_accuracy: {"d_in": 2, "d_out": 1, "epsilon": 0.1},
    theory.lemma7_hidden: {"d_in": 2, "d_out": 1, "epsilon": 0.1, "constant": 1.0},
    theory.lemma8_softmax: {"m": 0.1, "d_in": 2, "alpha": 1.5},
    theory.lemma5_softmax: {"m": 0.1, "d_in": 2, "alpha": 1.5},
    theory.exp_softmax: {"m": 0.1, "alpha": 1.5},
    theory.tanh_softmax: {"m": 0.1, "alpha": 1.5},
    theory.theorem9_hidden: {"d_in": 2, "d_out": 1, "heads": 1, "alpha": 1.5, "epsilon": 0.1, "constant": 1.0},
    theory.theorem9_budget: {"d_in": 2, "d_out": 1, "heads": 1, "alpha": 1.5, "epsilon": 0.1},
    theory.theorem9_failure: {"d_in": 2, "d_out": 1, "heads": 1, "alpha": 1.5, "epsilon": 0.1},
    theory.required_hidden: {"d_in": 2, "d_out": 1, "heads": 1, "alpha": 1.5, "epsilon": 0.1, "C": 1.0},
    theory.reachable_epsilon: {"hidden": 20, "d_in": 2, "d_out": 1, "heads": 1, "alpha": 1.5, "C": 1.0},
}
bad = {
    "d_in": [0, -1, 2.0, True, math.nan],
    "d_out": [0, 1.5],
    "heads": [0, -3, "2"],
    "alpha": [0.0, -1.0, math.inf, math.nan, "big"],
    "epsilon": [0.0, 1.0, -0.1, 2, math.nan, "small"],
    "constant": [0.0, -1.0, math.inf, math.nan, "guessed"],
    "C": [0.0, -1.0, math.inf, math.nan, "guessed"],
    "hidden": [0, 1.5, True],
    "m": [-1e-9, math.inf, math.nan],
}
cases = [(function, name, value) for function, kwargs in good.items() for name in kwargs for value in bad[name]]


@one_case
@pytest.mark.parametrize(("function", "name", "value"), cases)
def test_bad_input_is_named(function, name, value):
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must "):
        function(**{**good[function], name: value})


@one_case
@pytest.mark.parametrize("function", [function for function, kwargs in good.items() if "heads" in kwargs])
@pytest.mark.parametrize("widths", [{"d_in": 3}, {"d_out": 3}])
def test_alpha_below_the_square_root_of_a_width_is_refused(function, widths):
    with pytest.raises(ValueError, match=r"alpha=1.5: must be at least max\(sqrt\(d_in\), sqrt\(d_out\)\) = 1.73"):
        function(**{**good[function], **widths})


def test_lemma5_refuses_large_m():
    assert theory.lemma5_softmax(0.5, 1, 1.0) == 2.0
    with pytest.raises(ValueError, match=r"m=0.51: must lie in \[0, 1/2\] for Lemma 5"):
        theory.lemma5_softmax(0.51, 1, 1.0)
