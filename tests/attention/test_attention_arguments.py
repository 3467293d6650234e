"""Options and tokens that an attention does not take are told in a sentence."""

import numpy as np
import pytest
import torch
from tables import one_case

import slth
from slth.attention import ATTENTIONS, MultiHeadAttention

KINDS = ATTENTIONS | {"multi-head": MultiHeadAttention}


@one_case
@pytest.mark.parametrize("name", KINDS)
def test_an_option_that_is_not_there_is_named_with_those_that_are(name):
    kind = KINDS[name]
    with pytest.raises(ValueError, match=rf"^colour='red': {kind.__name__} takes .*init, seed, prefix, dtype"):
        kind(4, 4, 2, 8, colour="red")
    if name == "multi-head":
        with pytest.raises(ValueError, match=r"causal=True: .*ATTENTIONS\['mha'\] has causal"):
            kind(4, 4, 2, 8, causal=True)


def test_a_mechanism_that_is_not_there_is_told_which_are():
    with pytest.raises(KeyError, match="no attention is called 'mhaa': must be one of mha, gqa, mqa"):
        ATTENTIONS["mhaa"]
    assert ATTENTIONS.get("mhaa") is None


@one_case
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_tokens_of_another_kind_or_dtype_are_refused(name, masked):
    module = KINDS[name](4, 4, 2, 8)
    module = slth.wrap(module, 0.5) if masked else module
    x = torch.ones(3, 4)
    for given, told in (
        (x.double(), r"x of dtype torch.float64: must be torch.float32, as the [A-OQ-Z]\w+'s weights are"),
        (x.long(), r"x of dtype torch.int64: must be torch.float32"),
        (np.ones((3, 4), np.float32), r"x of type ndarray: must be a torch.Tensor"),
        (torch.tensor(1.0), r"x of shape \(\): must be"),
    ):
        with pytest.raises(ValueError, match=told):
            module(given)
    with torch.autocast("cpu"):
        assert module(x.bfloat16()).isfinite().all()


def test_too_many_sizes_are_refused_by_python():
    with pytest.raises(TypeError, match="positional arguments"):
        MultiHeadAttention(*range(2, 12))
