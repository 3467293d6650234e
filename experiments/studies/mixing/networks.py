"""Attentions and networks of equal size, by solving for the width of a variant's heads."""

import functools
from bisect import bisect_left
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slth import attention
from slth.attention import Attention, MultiHeadLinearAttention
from slth.experiments.lab import BadConfig
from slth.experiments.studies.mixing.study import Study
from slth.experiments.studies.mixing.variants import LINEAR, attention_of
from slth.experiments.studies.mixing.verdicts import BASE
from slth.masking import parameters as masked
from slth.models import gpt2
from slth.models.gpt2_attention import InGPT2, with_attention
from slth.weights import recipes


def options_of(study: Study, variant: str, length: int, mixing_init: str) -> dict[str, Any]:
    """Return the options of a mechanism that the study sets, for inputs of `length` tokens; others keep defaults.

    kv_heads is only set for mechanisms that share keys and values by design.
    """
    kind = attention_of(variant)
    values = {
        "length": length,
        "block": min(study.config.block, length),
        "mixing_init": "uniform" if variant == LINEAR else mixing_init,
    }
    if kind.facts.grouped and variant != BASE:
        values["kv_heads"] = study.kv_heads
    return {name: values[name] for name in attention.options_of(kind) if name in values}


def width_of(study: Study, variant: str, d: int, hidden: int, length: int) -> int:
    """Return the head width at which a variant's cost is nearest to that of MHA with `hidden`."""
    equal = study.config.equal

    @functools.cache
    def cost(variant: str, width: int) -> int:
        options = options_of(study, variant, length, study.config.mixing_init)
        module = attention_of(variant)(d, d, study.heads, width, causal=True, **options)
        return parameters(module) if equal == "parameters" else multiply_adds(module, length)

    step = attention_of(variant).facts.width_step
    widths = range(step, 8 * hidden + 1, step)
    wanted = cost(BASE, hidden)
    i = bisect_left(widths, wanted, key=lambda width: cost(variant, width))
    return min(widths[max(i - 1, 0) : i + 1], key=lambda width: abs(cost(variant, width) - wanted))


def require_drawn(study: Study) -> None:
    """Raise BadConfig for a search that redraws weights if a variant has weights that are not random."""
    start = study.config.mixing_init
    for variant in study.variants:
        kind, options = attention_of(variant), options_of(study, variant, study.how.length, start)
        module = kind(4, 4, study.heads, 2 * kind.facts.width_step, causal=True, **options)
        for param in masked.find(module):
            if recipes.recipe_of(module, param.path) is None:
                method = study.config.method
                allowed = f"another for method={method}: {variant}'s {param.path} is then not drawn at random"
                raise BadConfig("mixing_init", start, allowed)


def parameters(module: nn.Module) -> int:
    """Count the parameters, tied ones once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def multiply_adds(module: Attention, length: int) -> int:
    """Count the multiply-adds of a causal attention that decodes `length` tokens, with unmerged factors."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module.step(torch.zeros(1, length, module.d_in), module.start())
    return int(counter.get_total_flops()) // 2


def network(study: Study, variant: str, seed: int, *, ticket: bool) -> tuple[nn.Module, int]:
    """Make a random GPT-2 with this attention, as a ticket's source or for dense training; also return the width."""
    config, model = study.config, study.model
    if ticket:
        init, base_std, position_std, mixing = config.init, config.base_std, config.position_std, config.mixing_init
    else:
        init, base_std, position_std = config.dense_init, config.dense_base_std, config.dense_position_std
        mixing = config.dense_mixing_init
    plain = gpt2.build(
        model,
        init=init,
        base_std=base_std,
        embedding_std=config.embedding_std,
        position_std=position_std,
        seed=seed,
    )
    width = width_of(study, variant, model.n_embd, model.n_embd // model.n_head, study.how.length)
    options = options_of(study, variant, study.how.length, mixing)
    name = "mhla" if variant == LINEAR else variant
    made = with_attention(plain, name, init=init, base_std=base_std, hidden=width, seed=seed, options=options)
    if not ticket:
        for inner in attentions(made):
            if variant == LINEAR:
                inner.mixing.requires_grad_(False)
            elif isinstance(inner, MultiHeadLinearAttention) and options["mixing_init"] != "identity_plus_random":
                inner.register_forward_pre_hook(lambda inner, _: inner.clip_mixing_())
    return made, width


def attentions(model: nn.Module) -> list[Attention]:
    """Return the attentions of a network's blocks."""
    return [module.inner for module in model.modules() if isinstance(module, InGPT2)]
