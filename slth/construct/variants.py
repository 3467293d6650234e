"""Tickets in attentions with shared heads: Theorem 9 of arXiv 2511.04217 beyond multi-head attention.

Theorem 9 prunes one factor of each merged matrix to a structure (a hidden unit has one input coordinate) and solves
subset sums with the other. The structure depends on sizes alone, so it is the same for all heads, and heads may share
the factor that has it, as long as each head has its own other factor. Here keys and values have the structure, and
queries and outputs solve the sums. The required width is that of Theorem 9: its bound on the probability of failure is
a sum over all entries of all heads, whatever they share.

* Grouped and multi-query attention: keys and values serve several heads.
* Grouped-tied attention: key and value are one projection with one structure.
* Linear knocking heads: each T keeps its diagonal, which makes the candidates products of 3 or 4 factors. With
  mixing_init="theory" they have the size that the theory assumes; with "random" they shrink as hidden grows.
* Explicit attention (MEA): all components have the structure, and so have their mixtures; mixing tensors are not
  pruned.

For knocking heads with a `shared_width` see `slth.construct.projections`.
"""

from __future__ import annotations

from typing import Literal

import torch

from slth.attention import Attention, SoftmaxAttention
from slth.construct.certificates import evaluate
from slth.construct.checks import check_alpha, check_attention, check_threads
from slth.construct.construction import prune
from slth.construct.copies import double
from slth.construct.factors import SIDES, Side, better_side, solve, structure, tensors
from slth.construct.multi_head import AttentionConstruction, check_pair, measured
from slth.construct.projections import is_rectangular, projections


@torch.no_grad()
def variant(
    target: Attention,
    source: Attention,
    *,
    side: Side | Literal["auto"] = "auto",
    alpha: float | None = None,
    threads: int | None = None,
) -> AttentionConstruction:
    """Find masks with which source, an attention of `slth.attention.ATTENTIONS`, approximates target.

    Each entry of the target's merged matrices is one subset sum. Masks have the source's parameter names, including
    mixing tensors. Errors and certificate are as in :func:`slth.construct.attention`; they hold for the same attention
    mask on both modules, the causal one included. Neither module is changed.

    Args:
        target: a :class:`slth.attention.MultiHeadAttention`, or any other attention that merges, with the source's
            d_in, d_out and number of merged heads.
        source: for a source with a shared_width see :func:`slth.construct.projections.projections`.
        side: the factor of W_V W_O with the structural mask: "input" (values, hidden / d_in candidates), "output"
            (hidden / d_out candidates; only if each head has its own values), or "auto", the one with more candidates.
            W_Q W_K^T has hidden / d_in candidates.
        alpha: as in :func:`slth.construct.attention`.
        threads: None: all cores.

    Raises ValueError for a source that cannot hold a ticket, with the reason; if either is wrapped, both share a
    weight, or they differ in d_in, d_out, heads or causal; if hidden is too small; for weights or products of weights
    that are not finite; for a side that does not exist or cannot be used; and for an alpha that is no finite number
    > 0. Raises TypeError for a target or source that is no attention.
    """
    check_attention("source", source)
    check_attention("target", target)
    if side not in (*SIDES, "auto"):
        raise ValueError(f"side={side!r}: must be one of {', '.join(SIDES)} or auto")
    alpha, threads = None if alpha is None else check_alpha(alpha), check_threads(threads)
    if is_rectangular(source):
        if side == "input":
            raise ValueError("side='input': must be output or auto with a shared_width, where values are solved for")
        return projections(target, source, alpha=alpha, threads=threads)
    source = _checked(source)
    side = _side(source, side)
    check_pair(target, source)
    _check_hidden(source, side)
    return _solve(target, source, side, alpha, threads)


def _solve(
    target: Attention,
    source: SoftmaxAttention,
    side: Side,
    alpha: float | None,
    threads: int | None,
) -> AttentionConstruction:
    solved = "output" if side == "input" else "value"
    wanted = evaluate("target", target)
    masks = _structure(source, solved=("query", solved))
    ready = double(source)
    prune(ready, masks)
    query, key, value, output = ready.factors()
    key, value = (factor.expand(source.heads, -1, -1) for factor in (key, value))
    qk = solve(wanted[0].numpy(), query.numpy(), key.mT.numpy(), side="output", threads=threads)
    vo = solve(wanted[1].numpy(), value.numpy(), output.numpy(), side=side, threads=threads)
    masks |= tensors({"query": qk.mask_first, solved: vo.mask_second if side == "input" else vo.mask_first})
    prune(ready, masks)
    return measured(wanted, source, ready, masks, qk, vo, alpha=alpha)


def _structure(source: Attention, solved: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Make the structural masks, by name: those of all parameters without subset sums."""
    masks = {}
    for name, role in source.roles().items():
        if name not in solved:
            weight = source.get_parameter(name)
            masks[name] = _of_role(role, weight, source).expand_as(weight).clone()
    return masks


def _of_role(role: str, weight: torch.Tensor, source: Attention) -> torch.Tensor:
    """Make the structural mask of a parameter from its role.

    Mixing tensors of heads are kept, maps of features keep their diagonal, and a hidden unit has one coordinate.
    """
    if role == "heads":
        return torch.ones(weight.shape, dtype=torch.bool, device="cpu")
    if role == "features":
        return torch.eye(source.hidden, dtype=torch.bool, device="cpu")
    parts = source.d_out if role == "output" else source.d_in
    mask = torch.from_numpy(structure(parts, source.hidden))  # (parts, hidden)
    return mask.mT if role == "output" else mask


# ---------------------------------------------------------------- checks


def _checked(source: Attention) -> SoftmaxAttention:
    """Return source. Raises ValueError unless its class supports a construction and its options do not prevent one."""
    facts, name = source.facts, type(source).__name__
    in_the_way = source.obstacles() + ([] if facts.constructible is True else [facts.constructible])
    in_the_way = list(dict.fromkeys(in_the_way)) or _not_square(source)
    if in_the_way:
        raise ValueError(f"source={name}: must be one that can be solved for; {'; '.join(in_the_way)}")
    if not isinstance(source, SoftmaxAttention):
        raise ValueError(f"source={name}: must be a slth.attention.SoftmaxAttention, whose factors can be solved for")
    return source


def _not_square(source: Attention) -> list[str]:
    """Describe the maps of features that are not square, which cannot be reduced to their diagonal."""
    features = (source.get_parameter(name) for name, role in source.roles().items() if role == "features")
    shapes = {tuple(weight.shape) for weight in features}
    return [f"it maps features by {shape}, which must be square" for shape in shapes if shape[0] != shape[1]]


def _side(source: Attention, side: str) -> Side:
    """Return the side to use. Raises ValueError for "output" if heads share values."""
    roles = source.roles()
    own = roles.get("value") == "value" and "heads" not in roles.values()
    own = own and len(source.get_parameter("value")) == source.heads
    if side == "output" and not own:
        raise ValueError(f"side='output': would solve for values, which several heads of {type(source).__name__} share")
    if side == "auto":
        return better_side(source.d_in, source.d_out) if own else "input"
    return "output" if side == "output" else "input"


def _check_hidden(source: Attention, side: Side) -> None:
    """Raise ValueError unless the source's hidden is large enough for this side."""
    for name in ("d_in", "d_out") if side == "output" else ("d_in",):
        if source.hidden < getattr(source, name):
            raise ValueError(f"hidden={source.hidden}: must be >= {name}={getattr(source, name)}")
