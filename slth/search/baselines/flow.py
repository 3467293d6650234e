"""SynFlow: saliencies from the flow through each weight when all weights are positive and all inputs are 1.

The flow R is the sum of the outputs of the network with weights |w| on an input of ones. A weight's saliency is
|w| dR/d|w|. Pruning takes STEPS steps, each to the share keep^(step / STEPS), with the flow of the weights left.

A network of linear layers and ReLUs is then linear in each layer, and the saliencies of each layer sum to R. Networks
with embeddings, normalisation and attention are made linear as follows:

- An embedding is a linear map of one-hot vectors. On an input of ones it returns the sum of all its rows, for every
  token.
- A layer normalisation would map equal inputs to 0. Here it divides by their root mean square, without a gradient.
- Softmax divides the logits by their sum, without a gradient. So an attention is linear in each of its query, key,
  value and output matrices, and the saliencies of each sum to the same number.

Other activations are unchanged: GELU has only positive inputs, where it is near the identity. Biases and gains are also
replaced by their magnitudes.

Source: Tanaka et al. 2020 (arXiv 2006.05467).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from slth.search.baselines.problem import Problem, gradients, most_salient, shown
from slth.search.batches import count_rows, leaves, rows
from slth.wrapping import handle, random_weight, root

STEPS = 100  # as in Tanaka et al.
PRUNED = -1.0  # the saliency of weights that an earlier step pruned


def synflow(problem: Problem, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Compute |w| dR/d|w| for the weights that the last step but one kept, and -1 for those pruned before."""
    wrapped, batch = handle(problem.model), problem.batch()
    count_rows(batch, "cut to one row")
    one = rows(batch, slice(0, 1))
    sizes = {path: weight.abs() for path, weight in problem.weights().items()}
    saliencies: dict[str, torch.Tensor] = {}
    kept = {path: torch.ones_like(size, dtype=torch.bool) for path, size in sizes.items()}
    for step in range(1, steps + 1):
        values = {path: (size * kept[path]).requires_grad_() for path, size in sizes.items()}
        slopes = gradients(total_flow(problem, one, values), values)
        for path, value in values.items():
            saliencies[path] = torch.where(kept[path], value.detach() * slopes[path], PRUNED)
        kept = most_salient(wrapped, saliencies, step / steps)
    return saliencies


def total_flow(problem: Problem, batch: Any, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute R, the sum of all outputs of the model with these weights on a batch of ones."""
    outputs: list[torch.Tensor] = []

    def catch(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.extend(each.sum() for each in leaves(output) if _is_floating(each))

    model = root(problem.model)
    hooks = [
        model.register_forward_pre_hook(_with_ones, with_kwargs=True),
        model.register_forward_hook(catch),
    ]
    try:
        with shown(model, weights), _magnitudes(model), _Linear():
            problem.loss_of(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(outputs).sum()


def _with_ones(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Replace each floating-point input by ones; tokens remain, as embeddings ignore them here."""

    def ones(value: Any) -> Any:
        return torch.ones_like(value) if _is_floating(value) else value

    return tuple(map(ones, args)), {name: ones(value) for name, value in kwargs.items()}


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@contextmanager
def _magnitudes(model: nn.Module) -> Iterator[None]:
    """Replace parameters that are not masked (biases, gains) by their magnitudes, in the block."""
    masked = {id(each) for m in handle(model).weights.values() for each in (m.scores, random_weight(model, m.path))}
    rest = [(p, p.data) for p in model.parameters() if id(p) not in masked]
    try:
        for parameter, value in rest:
            parameter.data = value.abs()
        yield
    finally:
        for parameter, value in rest:
            parameter.data = value


# ---------------------------------------------------------------- linear replacements


class _Linear(TorchFunctionMode):
    """Replaces embeddings, normalisations, softmax and attention as this module's docstring describes."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _LINEAR.get(function, function)(*args, **(kwargs or {}))


def _embedding(tokens: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return weight.sum(0).expand(*tokens.shape, -1)


def _layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    out = x / (x.detach().square().mean(axes, keepdim=True) + eps).sqrt()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _softmax(logits: torch.Tensor, dim: int, *args: Any, **kwargs: Any) -> torch.Tensor:
    masked = logits <= torch.finfo(logits.dtype).min / 2
    weights = logits.masked_fill(masked, 0.0)
    return weights / weights.detach().sum(dim, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, dim=-3) for t in (key, value))
    logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        attends = attn_mask if attn_mask.dtype == torch.bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
        logits = logits.masked_fill(~attends, -torch.inf)
    return _softmax(logits, -1) @ value


_LINEAR: dict[Any, Callable[..., Any]] = {
    functional.embedding: _embedding,
    functional.layer_norm: _layer_norm,
    functional.softmax: _softmax,
    torch.softmax: _softmax,
    torch.Tensor.softmax: _softmax,
    functional.scaled_dot_product_attention: _attention,
}
