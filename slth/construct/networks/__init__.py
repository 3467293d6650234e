"""Hide the linear maps of any module in pruned random products: `slth.construct.module`."""

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
    """Hide every linear map of any module in new random weights, and record all other tensors.

    Without a code, linear maps are hidden in random products (Lemma 7 of arXiv 2511.04217), where each entry is a
    signed sum of its own candidates.

    Linear maps are the weights that `slth.wrap` would mask: those of linear layers, transformers' Conv1D, convolutions
    (as matrices), attentions, packed or not, and recurrent layers; tied and shared ones once. Biases, norms, other
    buffers, and token and position tables are recorded unchanged and counted. net is not changed.

    Args:
        net: a module, not on the device meta, with float64, float32, bfloat16, float16 or int8 weights.
        candidates: candidates per entry, at most 40; more than 24 are split into two stages of half as many. With
            `exact`, candidates per stage, at most 24. None: 32, or 16 with `exact`.
        exact: add stages, each of which approximates the remaining error, until every merged weight rounds to the
            value in net. The two networks are then equal, bit for bit.
        code: the code of :func:`slth.construct.encode`, which needs fewer bits and leaves larger errors than one sum
            per entry: it has one mask per block of an input's weights, and recorded scales. It excludes `candidates`
            and `exact`.
        embeddings: hide token and position tables as well, and weights tied to them.
        seed: seed of all random weights.
        threads: None: all cores.

    Raises ValueError for arguments out of range, for a module that is wrapped, has no linear map or has values that are
    not finite, and if `exact` cannot be achieved.
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
