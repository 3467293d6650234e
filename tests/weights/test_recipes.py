"""A recipe makes a random tensor again, bit for bit, and a module remembers those of its parameters."""

import copy
import io
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case
from torch import nn

from slth.attention import MultiHeadAttention
from slth.weights import inits, recipes
from slth.weights.recipes import DISTRIBUTIONS, Draw, Recipe, fill, of_generations, recipe_of, remember

few = settings(max_examples=40)
SEEDS = st.integers(0, 2**31)


@st.composite
def draws(draw):
    scale = draw(st.sampled_from([0.02, 1.0, 3.7]))
    stream = draw(st.integers(0, 300))
    return Draw(draw(st.sampled_from(list(DISTRIBUTIONS))), scale, draw(SEEDS), draw(st.text(max_size=5)), stream)


@given(draws(), st.lists(st.integers(1, 6), max_size=3))
@few
def test_a_draw_is_one_call_of_inits(draw, shape):
    function = getattr(inits, draw.distribution)
    wanted = function(shape, draw.scale, seed=draw.seed, name=draw.name, stream=draw.stream)
    made = draw.tensor(shape)
    assert made.dtype == torch.float32
    assert made.equal(wanted)


@one_case
@pytest.mark.parametrize("init", inits.INITS)
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_a_draw_by_the_name_of_an_init_is_its_weight(init, scale):
    fan = inits.Fan(5, 7, width=9, role="key", keep=0.3)
    wanted = inits.weight(init, (5, 7), fan, seed=3, name="a", scale=scale)
    assert recipes.draw(init, fan, seed=3, name="a", scale=scale).tensor((5, 7)).equal(wanted)


@given(
    st.lists(draws(), min_size=1, max_size=3), st.integers(0, 2), st.lists(st.integers(1, 4), min_size=3, max_size=3)
)
@few
def test_parts_lie_side_by_side_along_an_axis(parts, dim, shape):
    wanted = torch.cat([draw.tensor(shape) for draw in parts], dim=dim)
    whole = [size * len(parts) if axis == dim else size for axis, size in enumerate(shape)]
    assert Recipe(tuple(parts), dim).tensor(whole).equal(wanted)


@given(st.lists(draws(), min_size=1, max_size=3), SEEDS)
@few
def test_another_seed_changes_nothing_but_the_seed(parts, seed):
    again = Recipe(tuple(parts), 1).redrawn(seed)
    assert again.dim == 1
    for old, new in zip(parts, again.draws, strict=True):
        assert new.tensor((4, 4)).equal(Draw(old.distribution, old.scale, seed, old.name, old.stream).tensor((4, 4)))


@given(st.lists(draws(), min_size=1, max_size=2), st.data())
@few
def test_each_weight_is_that_of_its_generation(parts, data):
    recipe, shape = Recipe(tuple(parts), 0), (2 * len(parts), 5)
    counts = st.lists(st.sampled_from([0, 1, 2, 255]), min_size=10 * len(parts), max_size=10 * len(parts))
    generation = torch.tensor(data.draw(counts), dtype=torch.uint8).reshape(shape)
    value = of_generations(recipe, generation)
    later = {
        count: Recipe(tuple(Draw(d.distribution, d.scale, d.seed, d.name, d.stream + count) for d in parts)).tensor(
            shape
        )
        for count in (0, 1, 2, 255)
    }
    for place in zip(*torch.where(generation >= 0), strict=True):
        assert value[place] == later[int(generation[place])][place]
    assert of_generations(recipe, torch.zeros(shape, dtype=torch.uint8)).equal(recipe.tensor(shape))


@given(draws(), st.integers(0, 2), st.sampled_from([-1, 1]), st.lists(st.integers(1, 5), min_size=3, max_size=3))
@few
def test_pairs_are_equal_or_opposite_along_an_axis(draw, axis, sign, shape):
    recipe = Recipe((draw,), pairs=(axis, sign))
    made = recipe.tensor(shape)
    half = [-(-size // 2) if k == axis else size for k, size in enumerate(shape)]
    firsts, seconds = (made.movedim(axis, 0)[start::2] for start in (0, 1))
    assert firsts.movedim(0, axis).equal(draw.tensor(half))
    assert seconds.equal(sign * firsts[: len(seconds)])
    assert Recipe.of(json.loads(json.dumps(recipe.to_json()))).tensor(shape).equal(made)
    assert "pairs" not in Recipe((draw,)).to_json()


# ---------------------------------------------------------------- what modules remember

UNIFORM = Recipe((Draw("uniform", 0.5, 1, "w"),))
SIGNS = Recipe((Draw("sign", 0.1, 1, "a"), Draw("sign", 0.2, 1, "b")))


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))


def test_filled_parameters_are_their_recipes_and_are_remembered():
    module = mlp()
    before = copy.deepcopy(module)
    same = module[0].weight
    fill(module, {"0.weight": SIGNS, "1.weight": UNIFORM})
    assert module[0].weight is same
    assert same.requires_grad
    assert same.equal(SIGNS.tensor((6, 4)))
    assert module[1].weight.equal(UNIFORM.tensor((2, 6)))
    assert recipe_of(module, "0.weight") == SIGNS
    assert recipe_of(module[1], "weight") == UNIFORM
    assert recipe_of(module, "0.bias") is None
    assert module[0].bias.equal(before[0].bias)


def test_a_wider_parameter_holds_the_float32_values():
    module = mlp().double()
    fill(module, {"1.weight": UNIFORM})
    assert module[1].weight.dtype == torch.float64
    assert module[1].weight.equal(UNIFORM.tensor((2, 6)).double())


def test_what_is_remembered_goes_with_copies_and_files():
    module = mlp()
    fill(module, {"0.weight": SIGNS})
    other = copy.deepcopy(module)
    remember(module[0], "weight", UNIFORM)
    assert recipe_of(module, "0.weight") == UNIFORM
    assert recipe_of(other, "0.weight") == SIGNS
    file = io.BytesIO()
    torch.save(other, file)
    file.seek(0)
    assert recipe_of(torch.load(file, weights_only=False), "0.weight") == SIGNS


@one_case
@pytest.mark.parametrize("init", inits.INITS)
def test_our_attention_remembers_how_it_was_made(init):
    module = nn.ModuleDict({"inside": MultiHeadAttention(3, 4, 2, 5, init=init, seed=7, prefix="x.")})
    for name, parameter in module.named_parameters():
        assert recipe_of(module, name).tensor(parameter.shape).equal(parameter)


# ---------------------------------------------------------------- what is refused


def test_an_unknown_distribution():
    known = "uniform, uniform16, sign, normal, positive"
    with pytest.raises(ValueError, match=f"distribution='cauchy': must be one of {known}"):
        Draw("cauchy", 1.0, 0, "w")


def test_an_unknown_init():
    with pytest.raises(ValueError, match="init='glorot': must be one of theory"):
        recipes.draw("glorot", inits.Fan(1, 1), seed=0, name="w")


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_a_keep_out_of_range(keep):
    with pytest.raises(ValueError, match=rf"keep={keep}: must be a number in \(0, 1\]"):
        recipes.draw("kaiming_normal", inits.Fan(1, 1, keep=keep), seed=0, name="w")


def test_parts_that_do_not_divide_the_axis():
    with pytest.raises(ValueError, match=r"shape \(4, 3\): axis 1 must be divisible into 2 equal parts"):
        Recipe(SIGNS.draws, dim=1).tensor((4, 3))
