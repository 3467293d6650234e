"""Tickets in attentions whose heads share: Theorem 9 of arXiv 2511.04217 beyond multi-head attention.

Theorem 9 prunes one factor of each merged matrix by structure (a hidden unit listens to one input coordinate) and
solves subset sums for the other. The structure depends on sizes alone, so all heads want the same of it, and a factor
that they share may have it, as long as the other factor is each head's own. Here keys and values have the structure,
queries and outputs the sums. Nothing is asked of the width that Theorem 9 does not ask: its bound on the failures is a
sum over all entries of all heads, whatever these share.

* Grouped and multi-query attention: keys and values serve several heads.
* Grouped-tied attention: key and value are one projection, and have one structure.
* Linear knocking heads: each T keeps its diagonal, which makes the candidates products of 3 or 4 factors; drawn with
  mixing_init="theory" all of these are of the size that the theory wants, with "random" they fade as hidden grows.
* Explicit attention (MEA): all components have the structure, hence their mixtures, whose tensors stay as they are.

Knocking heads with a `shared_width` go another way, see `slth.construct.projections`.
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
    """Find masks under which source, an attention of `slth.attention.ATTENTIONS`, computes what target computes.

    target: a :class:`slth.attention.MultiHeadAttention`, or any other that merges, with as many heads (as merged
    matrices) and the same d_in and d_out. Each entry of its merged matrices is one subset sum, with hidden / d_in
    candidates for W_Q W_K^T and for W_V W_O the same (side="input") or, where each head has values of its own, hidden /
    d_out (side="output", which solves for values and gives outputs the structure); "auto" takes what leaves more. alpha
    as for :func:`slth.construct.attention`, errors and certificate too; they hold for one attention mask on both, the
    causal one included. Masks are under the source's parameter names, mixing tensors among them. Neither module is
    changed. For a source with a shared_width, see :func:`slth.construct.projections.projections`.

    Raises ValueError for a source that cannot hold a ticket, which says what stands in the way; where either is
    wrapped, both share a weight, or they differ in d_in, d_out, heads or causal; for hidden too small; weights that are
    not finite, or too large for their products to be; a side that is none or cannot be taken; and alpha that is no
    finite number > 0. TypeError for a target or source that is no attention.
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
    """The masks, by name, of all parameters but those that sums are solved for."""
    masks = {}
    for name, role in source.roles().items():
        if name not in solved:
            weight = source.get_parameter(name)
            masks[name] = _of_role(role, weight, source).expand_as(weight).clone()
    return masks


def _of_role(role: str, weight: torch.Tensor, source: Attention) -> torch.Tensor:
    """The mask of a parameter: heads are mixed whole, a feature goes on as itself, a hidden unit has one coordinate."""
    if role == "heads":
        return torch.ones(weight.shape, dtype=torch.bool, device="cpu")
    if role == "features":
        return torch.eye(source.hidden, dtype=torch.bool, device="cpu")
    parts = source.d_out if role == "output" else source.d_in
    mask = torch.from_numpy(structure(parts, source.hidden))  # (parts, hidden)
    return mask.mT if role == "output" else mask


# ---------------------------------------------------------------- what cannot be


def _checked(source: Attention) -> SoftmaxAttention:
    """The source. Raises ValueError unless its facts say that it can be solved for, and nothing stands in the way."""
    facts, name = source.facts, type(source).__name__
    in_the_way = source.obstacles() + ([] if facts.constructible is True else [facts.constructible])
    in_the_way = list(dict.fromkeys(in_the_way)) or _not_square(source)
    if in_the_way:
        raise ValueError(f"source={name}: must be one that can be solved for; {'; '.join(in_the_way)}")
    if not isinstance(source, SoftmaxAttention):
        raise ValueError(f"source={name}: must be a slth.attention.SoftmaxAttention, whose factors can be solved for")
    return source


def _not_square(source: Attention) -> list[str]:
    """Which maps of features cannot be reduced to their diagonal, in words."""
    features = (source.get_parameter(name) for name, role in source.roles().items() if role == "features")
    shapes = {tuple(weight.shape) for weight in features}
    return [f"it maps features by {shape}, which must be square" for shape in shapes if shape[0] != shape[1]]


def _side(source: Attention, side: str) -> Side:
    """The side to take. Raises ValueError for "output" where heads share values."""
    roles = source.roles()
    own = roles.get("value") == "value" and "heads" not in roles.values()
    own = own and len(source.get_parameter("value")) == source.heads
    if side == "output" and not own:
        raise ValueError(f"side='output': would solve for values, which several heads of {type(source).__name__} share")
    if side == "auto":
        return better_side(source.d_in, source.d_out) if own else "input"
    return "output" if side == "output" else "input"


def _check_hidden(source: Attention, side: Side) -> None:
    """Raise ValueError unless a source is wide enough."""
    for name in ("d_in", "d_out") if side == "output" else ("d_in",):
        if source.hidden < getattr(source, name):
            raise ValueError(f"hidden={source.hidden}: must be >= {name}={getattr(source, name)}")
