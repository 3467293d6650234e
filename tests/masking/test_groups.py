"""What competes with what, and masks that are given."""

import pytest
import torch
from cases import WIDTH, every_case
from helpers import compiles
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_cases import CASE, KEEP, MLP, by_hand, mlp, shares, wrapped
from tables import one_case
from torch import nn

from slth.masking.masks import count_kept
from slth.wrapping import handle, wrap

# ---------------------------------------------------------------- groups


def kept(model, *paths):
    """(kept, all) weights of some parameters together."""
    masks = [handle(model).masks()[path] for path in paths]
    return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)


def test_named_groups_compete_within_and_the_rest_by_layer():
    model = wrapped(CASE["llama"], policy={"qk": ["*.q_proj.*", "*.k_proj.*"], "head": "lm_head.weight"})
    paths = list(handle(model).weights)
    qk = [path for path in paths if "q_proj" in path or "k_proj" in path]
    assert [group.name for group in handle(model).groups][:3] == ["model.embed_tokens.weight", "qk", *paths[3:4]]
    for members in (qk, ["lm_head.weight"], *([path] for path in paths if path not in qk)):
        count, total = kept(model, *members)
        assert count == count_kept(total, KEEP)
    masks, scores = handle(model).masks(), handle(model).weights
    least = min(float(scores[path].scores.detach().abs()[masks[path]].min()) for path in qk)
    most = max(float(scores[path].scores.detach().abs()[~masks[path]].max()) for path in qk)
    assert least >= most


def test_a_pattern_takes_all_that_is_fused():
    model = wrapped(CASE["gpt2"], policy={"attention": "*.c_attn.weight"})
    names = [group.name for group in handle(model).groups]
    assert "attention" in names
    assert not any("[" in name for name in names)
    count, total = kept(model, *CASE["gpt2"].parts)
    assert count == count_kept(total, KEEP)


@compiles
@pytest.mark.parametrize(
    "name", ["torch attention, packed", "slth feed-forward", pytest.param("gpt2", marks=pytest.mark.slow)]
)
def test_of_equal_scores_the_first_in_the_group_are_kept(name):
    case = CASE[name]
    model = wrapped(case, policy="global")
    with torch.no_grad():
        for scores in handle(model).scores():
            scores.fill_(-0.5)
    masks, in_order = handle(model).masks(), []
    for path, mask in masks.items():
        in_order += [piece.flatten() for piece in shares(case, path, mask).values()]
    kept = torch.cat(in_order)
    assert kept.equal(torch.arange(len(kept)) < count_kept(len(kept), KEEP))
    out = case.run(model)
    assert out.equal(case.run(by_hand(case, masks)))
    torch._dynamo.reset()
    torch.testing.assert_close(case.run(torch.compile(model, backend="eager")), out)


def test_keep_by_pattern_the_first_match_counts():
    model = wrap(CASE["gpt2"].build(), {"*.h.1.mlp.*": 1.0, "*.mlp.c_fc.*": 0.25, "*": 0.5})
    shares = {path: kept(model, path) for path in handle(model).weights}
    for path, (count, total) in shares.items():
        share = 1.0 if ".h.1.mlp." in path else 0.25 if ".c_fc." in path else 0.5
        assert count == count_kept(total, share)
    assert handle(model).kept() == sum(count for count, _ in shares.values())


def test_a_tied_weight_is_named_by_any_of_its_names():
    for pattern in ("lm_head.weight", "*wte.weight"):
        model = wrap(CASE["gpt2"].build(), {pattern: 0.25, "*": 0.5})
        count, total = kept(model, "transformer.wte.weight")
        assert count == count_kept(total, 0.25)
        model = wrapped(CASE["gpt2"], parameters=pattern)
        assert handle(model).paths == {"transformer.wte.weight": ["transformer.wte.weight", "lm_head.weight"]}


def test_keep_of_one_keeps_everything():
    model = wrap(mlp(), 1.0)
    assert all(mask.all() for mask in handle(model).masks().values())
    assert handle(model).kept() == sum(p.numel() for name, p in mlp().named_parameters() if "weight" in name)


def test_named_parameters_may_be_biases_and_norms():
    model = wrapped(CASE["bilinear"], parameters=["norm.weight", "*bias"])
    assert list(handle(model).weights) == ["both.bias", "norm.weight", "norm.bias"]
    assert [kept(model, path) for path in handle(model).weights] == 3 * [(1, 4)]


def test_parameters_were_once_named_targets():
    model = wrapped(CASE["bilinear"], targets="*bias")
    assert list(handle(model).weights) == ["both.bias", "norm.bias"]
    with pytest.raises(ValueError, match=r"targets='\*': must be left out"):
        wrapped(CASE["bilinear"], parameters="*bias", targets="*")


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
def test_keep_comes_down_along_a_schedule(schedule):
    model = wrapped(MLP, policy="global")
    counts = []
    for progress in (0.0, 0.3, 0.6, 1.0):
        handle(model).set_progress(schedule, progress)
        out = MLP.run(model)
        masks = handle(model).masks()
        assert out.equal(MLP.run(by_hand(MLP, masks)))
        counts.append(sum(int(mask.sum()) for mask in masks.values()))
        assert counts[-1] == handle(model).kept()
    total = WIDTH * 20 + 20 * 5
    assert counts[0] == total
    assert counts[-1] == count_kept(total, KEEP)
    assert counts == sorted(set(counts), reverse=True)


# ---------------------------------------------------------------- given masks


@every_case
def test_given_its_own_masks_back_a_model_stays_as_it_is(case):
    model = wrapped(case)
    masks, out = handle(model).masks(), case.run(model)
    handle(model).set_masks(masks)
    assert all(mask.equal(masks[path]) for path, mask in handle(model).masks().items())
    assert case.run(model).equal(out)
    assert handle(model).kept() == sum(int(mask.sum()) for mask in masks.values())


POLICIES = st.sampled_from(["layer", "global", {"inner": ["in_proj_weight"]}])


@given(st.data(), POLICIES)
@settings(max_examples=50)
def test_any_masks_can_be_given(data, policy):
    model = wrap(nn.MultiheadAttention(4, 2), 0.5, policy)
    masks = {}
    for path, masked in handle(model).weights.items():
        bits = data.draw(st.lists(st.booleans(), min_size=masked.scores.numel(), max_size=masked.scores.numel()))
        masks[path] = torch.tensor(bits).reshape(masked.scores.shape)
    pieces = dict(zip("qkv", masks["in_proj_weight"].chunk(3), strict=True)) | {"o": masks["out_proj.weight"]}
    groups = {"layer": ["q", "k", "v", "o"], "global": ["qkvo"]}.get(str(policy), ["qkv", "o"])
    before = handle(model).masks()
    if all(any(pieces[p].any() for p in group) for group in groups):
        handle(model).set_masks(masks)
        before = masks
    else:
        with pytest.raises(ValueError, match=r"masks keep nothing in .*: must keep at least one weight"):
            handle(model).set_masks(masks)
    assert all(mask.equal(before[path]) for path, mask in handle(model).masks().items())


@one_case
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: masks.pop("0.weight"), r"exactly the wrapped weights, differ in 0\.weight"),
        (lambda masks: masks.update(bias=torch.ones(2)), "exactly the wrapped weights, differ in bias"),
        (lambda masks: masks.update({"2.weight": torch.ones(20, 5) > 0}), r"mask of 2\.weight: torch\.bool \(20, 5\)"),
        (lambda masks: masks.update({"2.weight": torch.ones(5, 20)}), r"mask of 2\.weight: torch\.float32 \(5, 20\)"),
        (lambda masks: masks.update({"2.weight": torch.zeros(5, 20) > 0}), r"masks keep nothing in 2\.weight"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(change, message):
    model = wrapped(MLP)
    before = handle(model).masks()
    masks = dict(before)
    masks["0.weight"] = ~masks["0.weight"]
    change(masks)
    with pytest.raises(ValueError, match=message):
        handle(model).set_masks(masks)
    assert all(mask.equal(before[path]) for path, mask in handle(model).masks().items())
