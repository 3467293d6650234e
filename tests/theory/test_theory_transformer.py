"""The bounds for feed-forward networks, blocks and transformers: Lemmas 2, 12, 13 and Theorems 10, 11, 14."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

from slth import theory

counts = st.integers(1, 300)
few = st.integers(1, 9)
epsilons = st.floats(1e-9, 0.999)
constants = st.floats(0.01, 100)
drifts = st.floats(1e-9, 1)
alphas = st.floats(1e-2, 1e3)
rounding = 1 + 1e-12


@st.composite
def blocks(draw):
    """d, heads, layers, alpha, epsilon as Theorem 11 allows them."""
    d = draw(counts)
    alpha = math.sqrt(d) * draw(st.floats(1, 100))
    return {"d": d, "heads": draw(counts), "layers": draw(few), "alpha": alpha, "epsilon": draw(epsilons)}


@st.composite
def stacks(draw):
    """d, heads, alpha, epsilon, blocks as Theorem 14 allows them, small enough for float64 to hold its products."""
    d = draw(st.integers(1, 64))
    alpha = math.sqrt(d) * draw(st.floats(1, 10))
    depth = draw(st.integers(1, 5))
    return {"d": d, "heads": draw(few), "alpha": alpha, "epsilon": draw(epsilons), "blocks": depth}


# feed-forward networks


@given(counts, counts, epsilons, constants)
def test_lemma2_is_lemma7_for_both_halves_of_each_entry(d_in, d_out, epsilon, constant):
    assert theory.lemma2_accuracy(d_in, d_out, epsilon) == theory.lemma7_accuracy(d_in, 2 * d_out, epsilon)
    both = theory.lemma7_hidden(d_in, 2 * d_out, epsilon, constant)
    assert abs(theory.lemma2_hidden(d_in, d_out, epsilon, constant) - both) <= 1


@given(counts, counts, epsilons)
def test_measured_constant_is_twice_as_large_for_halves(d_in, d_out, epsilon):
    doubled = theory.lemma2_hidden(d_in, d_out, epsilon, 2 * theory.MEASURED_CONSTANT["unit"])
    assert theory.lemma2_hidden(d_in, d_out, epsilon, "measured") == doubled


@given(st.lists(counts, min_size=2, max_size=5), epsilons, constants)
def test_theorem10_is_lemma2_at_the_accuracies_of_its_layers(widths, epsilon, constant):
    layers = len(widths) - 1
    hidden = theory.theorem10_hidden(widths, epsilon, constant)
    assert len(hidden) == layers
    for n, (d_in, d_out) in zip(hidden, pairwise(widths), strict=True):
        accuracy = theory.theorem10_accuracy(d_in, d_out, layers, epsilon)
        assert accuracy == pytest.approx(epsilon / (4 * layers * d_in * d_out))
        assert -d_in * constant * math.log(accuracy) / rounding <= n


@given(st.integers(1, 50), st.floats(1, 1e3), epsilons)
def test_theorem10_error_covers_what_its_accuracies_come_to(layers, alpha, epsilon):
    # a layer of one input and one output errs by its accuracy times its input; both halves are never active at once
    grown = alpha * math.expm1(layers * math.log1p(theory.theorem10_accuracy(1, 1, layers, epsilon)))
    assert grown <= theory.theorem10_error(alpha, epsilon) * rounding


def test_theorem10_known_figures():
    # 2 * ln(4 * 2 * 2 * 3 / 0.1) = 12.35, 3 * ln(4 * 2 * 3 * 1 / 0.1) = 16.44
    assert theory.theorem10_hidden([2, 3, 1], 0.1, 1.0) == (13, 17)
    assert theory.theorem10_error(2.0, 0.1) == pytest.approx(math.exp(0.1) - 1)
    assert theory.theorem10_error(1e6, 0.1) == math.inf
    assert theory.lemma2_hidden(2, 5, 0.1, 3.0) == 32  # 6 ln 200 = 31.79


# one block


@given(blocks())
def test_theorem11_budget_adds_up(block):
    budget = theory.theorem11_budget(**block)
    d, heads, layers, alpha, epsilon = block.values()
    assert budget.network_error + 2 * budget.attention_error <= epsilon * rounding
    assert heads * (budget.attention.softmax_term + budget.attention.vo_term) == pytest.approx(budget.attention_error)
    # the source's network sees no more than its budget says, and so errs by no more than its share
    assert budget.attention_error + alpha * (heads * math.sqrt(d) + 1) <= budget.network_norm * rounding
    assert theory.theorem10_error(budget.network_norm, budget.network_epsilon) == budget.network_error
    assert budget.network_accuracy == pytest.approx(epsilon / (24 * alpha * layers * heads * d**2.5))
    assert budget.failure <= epsilon


@given(blocks(), constants)
def test_theorem11_hidden_reaches_its_budget(block, constant):
    budget = theory.theorem11_budget(**block)
    hidden = theory.theorem11_hidden(**block, constant=constant)
    finest = min(budget.attention.qk_max_norm, budget.attention.vo_max_norm)
    for n, accuracy in ((hidden.hidden_mha, finest), (hidden.hidden_fc, budget.network_accuracy)):
        needed = -block["d"] * constant * math.log(accuracy)
        assert needed / rounding <= n < needed * rounding + 1


def test_theorem11_known_figures():
    block = {"d": 2, "heads": 1, "layers": 1, "alpha": math.sqrt(2), "epsilon": 0.1}
    # 2 ln(32 * 8 / 0.1) = 15.70, 2 ln(24 * 8 / 0.1) = 15.12
    assert theory.theorem11_hidden(**block, constant=1.0) == (16, 16)
    measured = theory.theorem11_hidden(**block, constant="measured")
    c = theory.MEASURED_CONSTANT["unit"]
    assert measured.hidden_mha == math.ceil(c * 2 * math.log(2560))
    assert measured.hidden_fc == math.ceil(2 * c * 2 * math.log(1920))


# sensitivity


@given(drifts, counts, few, alphas)
def test_lemma13_is_lemma12_with_residuals_and_twice(drift, d, heads, alpha):
    attention = theory.lemma12_attention(drift, d, heads, alpha)
    block = theory.lemma13_block(drift, d, heads, alpha)
    assert block == pytest.approx(2 * (attention + heads * math.sqrt(d) * drift))
    # the residual adds 1, not heads sqrt(d): the printed form is generous here
    assert block * rounding >= 2 * (attention + drift)


@given(drifts, counts, few, alphas, st.floats(1, 3))
def test_sensitivities_are_ordered(drift, d, heads, alpha, wider):
    moved = wider * alpha
    tight, loose = (
        theory.tanh_attention(drift, heads, alpha, moved),
        theory.lemma12_attention(drift, d, heads, alpha, moved),
    )
    assert tight <= loose * rounding
    assert (
        theory.tanh_block(drift, heads, alpha, moved) <= theory.lemma13_block(drift, d, heads, alpha, moved) * rounding
    )
    assert theory.lemma12_attention(drift, d, heads, alpha) <= loose * rounding
    assert theory.lemma12_attention(drift, d, heads, alpha, alpha) == theory.lemma12_attention(drift, d, heads, alpha)


@given(drifts, st.integers(2, 300), few, st.floats(1, 100))
def test_printed_lemma13_is_rescued_by_its_slack_where_alpha_is_as_assumed(drift, d, heads, times):
    alpha = times * math.sqrt(d)
    printed = theory.lemma13_block(drift, d, heads, alpha) / 2
    assert theory.tanh_block(drift, heads, alpha) <= printed * rounding


def test_control_printed_lemma13_fails_for_small_alpha():
    # d = heads = T = 1, all weights 1: the block is 4x, and no bound below 4 drift can hold
    assert theory.lemma13_block(0.01, 1, 1, 0.1) / 2 < 4 * 0.01 <= theory.lemma13_block(0.01, 1, 1, 0.1)


def test_lemma12_known_figures():
    # 3 * 2 * (0.5 (e^(4 * 0.5 * 0.1) - 1) + 0.1)
    assert theory.lemma12_attention(0.1, 4, 3, 0.5) == pytest.approx(6 * (0.5 * math.expm1(0.2) + 0.1))
    assert theory.lemma12_attention(0.1, 4, 3, 0.5, 1.0) == pytest.approx(6 * (0.5 * math.expm1(0.3) + 0.1))
    assert theory.lemma12_attention(0.0, 4, 3, 0.5) == theory.lemma13_block(0.0, 4, 3, 0.5) == 0
    assert theory.lemma12_attention(1.0, 1, 1, 1e3) == math.inf
    assert theory.tanh_attention(1.0, 1, 1e3) == pytest.approx(2001)
    assert theory.tanh_block(1.0, 2, 1e3) == pytest.approx(2 * (2 * 2001 + 1))


# many blocks


@given(stacks())
def test_theorem14_recursion(stack):
    budget = theory.theorem14_budget(**stack)
    assert len(budget) == stack["blocks"]
    first, last = budget[0], budget[-1]
    assert first.input_norm == first.source_norm == stack["alpha"]
    assert first.error == first.drift
    assert (last.drift, last.growth) == (stack["epsilon"], 1.0)
    root = stack["heads"] * math.sqrt(stack["d"])
    for before, block in pairwise(budget):
        assert block.input_norm == pytest.approx(before.input_norm * 4 * root, rel=1e-9)
        assert block.source_norm == 2 * block.input_norm
        assert before.growth == pytest.approx(block.growth * 16 * root * block.input_norm**2, rel=1e-9)
        assert block.error == block.drift / 2
        # what this block inherits and its own error fit into its drift, by the corrected Lemma 13
        inherited = theory.lemma13_block(before.drift, stack["d"], stack["heads"], block.input_norm, block.source_norm)
        assert inherited <= 0.79 * block.drift / 2
        assert block.input_norm + before.drift <= block.source_norm


@given(stacks())
def test_theorem14_drift_and_error_follow_from_growth(stack):
    depth, epsilon = stack["blocks"], stack["epsilon"]
    for b, block in enumerate(theory.theorem14_budget(**stack), start=1):
        drift = epsilon / (2 ** (depth - b) * block.growth)
        assert block.drift == pytest.approx(drift, rel=1e-9)


@given(stacks())
def test_theorem14_failure(stack):
    failure = theory.theorem14_failure(**stack)
    least = 1 if stack["blocks"] == 1 else 1 / 2
    most = 1 if stack["blocks"] == 1 else 1055 / 1984
    assert least * stack["epsilon"] / rounding <= failure <= most * stack["epsilon"] * rounding


@given(stacks(), few, constants)
def test_theorem14_hidden_is_theorem11_at_its_budget(stack, layers, constant):
    d, heads = stack["d"], stack["heads"]
    hidden = theory.theorem14_hidden(**stack, layers=layers, constant=constant)
    for block, widths in zip(theory.theorem14_budget(**stack), hidden, strict=True):
        alone = theory.theorem11_hidden(d, heads, layers, block.source_norm, block.error, constant)
        assert abs(widths.hidden_mha - alone.hidden_mha) <= 1  # both round up a number that carries rounding errors
        assert abs(widths.hidden_fc - alone.hidden_fc) <= 1


def test_theorem14_of_one_block_is_theorem11():
    block = {"d": 3, "heads": 2, "layers": 2, "alpha": 2.0, "epsilon": 0.1}
    assert theory.theorem14_hidden(**block, blocks=1, constant=2.5) == (theory.theorem11_hidden(**block, constant=2.5),)


@pytest.mark.parametrize(
    ("d", "heads", "alpha", "bits"),
    [(2, 1, math.sqrt(2), (11.3, 22.8, 39.3, 60.8)), (64, 4, 8.0, (28.3, 58.3, 102, 160))],
)
def test_theorem14_known_bits_of_the_first_block(d, heads, alpha, bits):
    for depth, wanted in enumerate(bits, start=1):
        first = theory.theorem14_budget(d, heads, alpha, 0.1, depth)[0]
        budget = theory.theorem11_budget(d, heads, 1, first.source_norm, first.error)
        assert -math.log2(budget.attention.qk_max_norm) == pytest.approx(wanted, abs=0.5 if wanted > 100 else 0.06)


def test_theorem14_outlives_float64():
    stack = {"d": 1024, "heads": 64, "alpha": 1e3, "epsilon": 0.1, "blocks": 100}
    first = theory.theorem14_budget(**stack)[0]
    assert (first.growth, first.drift, first.error) == (math.inf, 0.0, 0.0)
    hidden = theory.theorem14_hidden(**stack, layers=2, constant=1.0)
    assert hidden[0].hidden_mha > hidden[-1].hidden_mha > 1024 * 100


# bad input

block = {"d": 2, "heads": 1, "layers": 1, "alpha": 1.5, "epsilon": 0.1}
sensitivity = {"drift": 0.1, "d": 2, "heads": 1, "alpha": 1.5, "moved_alpha": 3.0}
tight = {name: value for name, value in sensitivity.items() if name != "d"}
stack = {name: value for name, value in block.items() if name != "layers"} | {"blocks": 2}
good = {
    theory.lemma2_accuracy: {"d_in": 2, "d_out": 1, "epsilon": 0.1},
    theory.lemma2_hidden: {"d_in": 2, "d_out": 1, "epsilon": 0.1, "constant": 1.0},
    theory.theorem10_accuracy: {"d_in": 2, "d_out": 1, "layers": 2, "epsilon": 0.1},
    theory.theorem10_hidden: {"widths": [2, 2], "epsilon": 0.1, "constant": 1.0},
    theory.theorem10_error: {"alpha": 1.5, "epsilon": 0.1},
    theory.theorem11_hidden: {**block, "constant": 1.0},
    theory.theorem11_budget: block,
    theory.lemma12_attention: sensitivity,
    theory.lemma13_block: sensitivity,
    theory.tanh_attention: tight,
    theory.tanh_block: tight,
    theory.theorem14_budget: stack,
    theory.theorem14_hidden: {**stack, "layers": 1, "constant": 1.0},
    theory.theorem14_failure: stack,
}
bad = {
    **{name: [0, -1, 2.0, True] for name in ("d", "d_in", "d_out", "heads", "layers", "blocks")},
    **{name: [0.0, -1.0, math.inf, math.nan, "big"] for name in ("alpha", "moved_alpha")},
    "epsilon": [0.0, 1.0, math.nan, "small"],
    "constant": [0.0, math.inf, "guessed"],
    "drift": [-1e-9, math.inf, math.nan],
    "widths": [[], [3]],
}
cases = [(function, name, value) for function, kwargs in good.items() for name in kwargs for value in bad[name]]


@one_case
@pytest.mark.parametrize(("function", "name", "value"), cases)
def test_bad_input_is_named(function, name, value):
    function(**good[function])
    with pytest.raises(ValueError, match=rf"^{name}=.*: must "):
        function(**{**good[function], name: value})


def test_a_width_of_a_network_is_checked():
    with pytest.raises(ValueError, match="widths=0: must be an int >= 1"):
        theory.theorem10_hidden([2, 0, 2], 0.1, 1.0)


def test_theorem10_needs_alpha_from_one():
    with pytest.raises(ValueError, match=r"alpha=0.5: must be at least 1"):
        theory.theorem10_error(0.5, 0.1)


@pytest.mark.parametrize("function", [theory.theorem11_budget, theory.theorem14_budget])
def test_alpha_below_the_square_root_of_the_width_is_refused(function):
    with pytest.raises(ValueError, match=r"alpha=1.5: must be at least"):
        function(**{**good[function], "d": 3})
