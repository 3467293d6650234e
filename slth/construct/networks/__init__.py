"""Any module, its linear maps hidden in random products by pruning alone: `slth.construct.module`."""

from __future__ import annotations

import torch
from torch import nn

from slth.construct.checks import check_threads
from slth.construct.codes import Code
from slth.construct.networks.construction import ModuleConstruction, merge
from slth.construct.networks.hiding import COARSE, FINE, Options, hide
from slth.construct.networks.maps import linear_maps
from slth.construct.subset_sum import MAX_EXACT
from slth.numbers import as_int

__all__ = ["ModuleConstruction", "merge", "module"]

CANDIDATES = 32


@torch.no_grad()
def module(
    net: nn.Module,
    *,
    candidates: int | None = None,
    exact: bool = False,
    code: Code | None = None,
    embeddings: bool = False,
    seed: int = 0,
    threads: int | None = None,
) -> ModuleConstruction:
    """Hide every linear map of any module in random weights of its own, and record the rest.

    Without a code in random products (Lemma 7 of arXiv 2511.04217), where each entry is a sum of candidates of its own.

    Linear maps are the weights that `slth.wrap` would mask: of linear layers, transformers' Conv1D, convolutions (as
    matrices), attentions, packed or not, and recurrent layers, tied and shared ones once. Recorded as they are, and
    counted, are biases, norms, other buffers, and tables of tokens and positions. net is not changed.

    Args:
        net: a module with values; float64, float32, bfloat16, float16 or int8 weights.
        candidates: products that the sum of an entry chooses signs of, at most 40; more than 24 are taken in two
            stages of half as many. With exact those of one stage, at most 24. None: 32, or 16.
        exact: use several stages, the next one for what the last one left, until every merged weight rounds to the
            value that net has: then the networks are the same, bit for bit.
        code: of :func:`slth.construct.encode`, for fewer bits and larger errors than a sum of its own for each entry:
            a mask for each block of an input's weights, and recorded scales. Without candidates, and not exact.
        embeddings: hide the tables of tokens and positions as well, and what is tied to them.
        seed: of all random weights.
        threads: None: all cores.

    Raises ValueError for arguments outside these, a module that is wrapped, has no linear map or values that are not
    finite, and where exact cannot be had.
    """
    default, most = (COARSE, FINE) if exact else (CANDIDATES, MAX_EXACT)
    most = as_int("candidates", default if candidates is None else candidates, 1, most)
    if not isinstance(code, Code | None):
        raise TypeError(f"code={code!r}: must be a slth.construct.Code or None")
    if code is not None and (exact or candidates is not None):
        raise ValueError(f"code={code}: must be None where exact is True or candidates are given")
    options = Options(most, bool(exact), code, as_int("seed", seed), check_threads(threads))
    maps = linear_maps(net, tables=bool(embeddings))
    hidden = {
        each.name: hide(each.name, each.matrix(net.get_parameter(each.parameter).detach()).cpu(), options)
        for each in maps
    }
    return ModuleConstruction(net, maps, hidden, options.seed)
