"""GPT-2 (Radford et al. 2019) by Hugging Face, with random weights that a seed names.

The model is transformers' own GPT2LMHeadModel; only its weights are made here, by `slth.weights.inits`, so that a
ticket can tell them by their recipes. The fused `attn.c_attn` (d, 3 d) is three parts side by side: query, key and
value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from slth.defaults import usual
from slth.extras import extra
from slth.models import gpt2_head, gpt2_kernels
from slth.numbers import as_float, as_int, plainly
from slth.weights.recipes import Draw, Recipe, fill

with extra("gpt2"):
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.initialization import no_init_weights
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention


@dataclass(frozen=True)
class Size:
    """Blocks, width of the residual stream, heads, and the vocabulary and length (tokens) a size has by itself."""

    layers: int
    d: int
    heads: int
    vocabulary: int
    length: int


#: "tiny" has 995,328 weights in its blocks; "mini" is erwanf/gpt2-mini, which arXiv 2511.04217 prunes (Figures 7 and
#: 8) beside "small" and "medium" of Radford et al. 2019.
SIZES = {
    "tiny": Size(4, 144, 4, 256, 128),
    "mini": Size(4, 512, 8, 50257, 512),
    "small": Size(12, 768, 12, 50257, 1024),
    "medium": Size(24, 1024, 16, 50257, 1024),
}

#: init -> (distribution, its scale where the standard deviation is 1).
INITS = {"gpt2": ("normal", 1.0), "theory": ("uniform", math.sqrt(3.0)), "signed": ("sign", 1.0)}


@plainly
def config(
    size: str = "tiny",
    *,
    width: float = 1.0,
    vocabulary: int | None = None,
    length: int | None = None,
    vocabulary_multiple: int | None = None,
    **overrides: Any,
) -> GPT2Config:
    """A GPT-2 by size (a key of SIZES), without dropout, special tokens or a cache of keys and values.

    width multiplies d and the number of heads, whose own width stays (mini x 0.5 and medium x 2 are in arXiv
    2511.04217, Figure 7). vocabulary and length default to the size's own. vocabulary_multiple: what the vocabulary is
    padded to a multiple of, within the product that gives the logits alone (`slth.models.gpt2_head`); None: 64 on a
    GPU, 1 elsewhere. overrides are fields of GPT2Config.
    Raises ValueError for an unknown size or field, a vocabulary, length or multiple < 1, and a width that is not > 0
    or leaves no whole number of heads.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r}: must be one of {', '.join(SIZES)}")
    own = SIZES[size]
    vocabulary = own.vocabulary if vocabulary is None else as_int("vocabulary", vocabulary, 1)
    length = own.length if length is None else as_int("length", length, 1)
    unknown = overrides.keys() - {*GPT2Config().to_dict(), "attn_implementation"}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: must be fields of GPT2Config")
    heads = _heads(own, width)
    fields = {
        "vocab_size": vocabulary,
        "n_positions": length,
        "n_embd": heads * (own.d // own.heads),
        "n_layer": own.layers,
        "n_head": heads,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": gpt2_kernels.NAME,
    }
    if vocabulary_multiple is not None:
        fields[gpt2_head.FIELD] = as_int("vocabulary_multiple", vocabulary_multiple, 1)
    return GPT2Config(**(fields | overrides))


def _heads(size: Size, width: float) -> int:
    """The number of heads at a width factor."""
    if 0 < width < math.inf:
        heads = size.heads * Fraction(str(width))
        if heads.denominator == 1:
            return int(heads)
    raise ValueError(f"width={width}: must be a number > 0 that makes {size.heads} * width heads a whole number")


def check_length(config: GPT2Config, length: int) -> None:
    """Raise ValueError unless 1 <= length <= the positions (tokens) of the model."""
    if not 1 <= length <= config.n_positions:
        raise ValueError(f"length={length}: must be at least 1 and at most {config.n_positions}, the model's positions")


@plainly
def recipes(
    config: GPT2Config,
    *,
    init: str = "gpt2",
    base_std: float = 0.02,
    embedding_std: float = 0.02,
    position_std: float | None = None,
    qk_scale: float | str = 1.0,
    seed: int = 0,
) -> dict[str, Recipe]:
    """How every weight matrix is made, by its name in GPT2LMHeadModel; a head tied to the embedding has none.

    base_std is the standard deviation of an unscaled weight of the blocks, embedding_std that of `wte`, position_std
    that of `wpe` (None: embedding_std), in each init; 0.02 is GPT-2's. n is a head's width.

    ========  ==============  ===================  =========================================  ========================
    init      distribution    value, `c_fc`        query, key                                 both `c_proj`
    ========  ==============  ===================  =========================================  ========================
    gpt2      normal          base_std             base_std * qk_scale                        base_std / sqrt(2 layers)
    signed    +- a constant   base_std             base_std * qk_scale                        base_std
    theory    uniform         base_std             base_std * qk_scale * n^(1/4)              base_std
    ========  ==============  ===================  =========================================  ========================

    Sources: gpt2 Radford et al. 2019; theory arXiv 2511.04217, Theorem 3: U[-n^(1/4), n^(1/4)] for query and key and
    U[-1, 1] for all else, here times the base scale sqrt(3) base_std that gives a weight of U[-1, 1] the standard
    deviation base_std; signed Ramanujan et al. 2020, one bit a weight, all
    of one size, as a mask cannot make the smaller ones larger. qk_scale is a number > 0 or "theory", n^(1/4)
    (arXiv 2511.04217, Figure 8). Raises ValueError for an unknown init, and a standard deviation or qk_scale that is
    not finite and > 0.
    """
    if init not in INITS:
        raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}")
    position_std = embedding_std if position_std is None else position_std
    for name, std in (("base_std", base_std), ("embedding_std", embedding_std), ("position_std", position_std)):
        as_float(name, std, "(0, inf)")
    theory = math.sqrt(math.sqrt(config.n_embd // config.n_head))  # n^(1/4), rounded alike everywhere
    qk = base_std * numeric_scale(qk_scale, theory) * (theory if init == "theory" else 1.0)
    residual = base_std * residual_scale(init, config.n_layer)

    stds = {"wte": {"wte": embedding_std}, "wpe": {"wpe": position_std}}
    for i in range(config.n_layer):
        stds |= _block(f"h.{i}.", base_std, qk, residual)
    stds = {f"transformer.{path}": parts for path, parts in stds.items()}
    if not config.tie_word_embeddings:
        stds["lm_head"] = {"lm_head": embedding_std}

    distribution, unit = INITS[init]
    return {
        f"{path}.weight": Recipe(
            tuple(Draw(distribution, unit * std, seed, name) for name, std in parts.items()), dim=1
        )
        for path, parts in stds.items()
    }


def residual_scale(init: str, layers: int) -> float:
    """What an init scales the projections into the residual stream by: 1 / sqrt(2 layers) as GPT-2 does, or 1."""
    return 1.0 / math.sqrt(2 * layers) if init == "gpt2" else 1.0


def _block(at: str, base: float, qk: float, residual: float) -> dict[str, dict[str, float]]:
    """Module -> the standard deviation of each part of its weight, under the name that the part is drawn by."""
    return {
        f"{at}attn.c_attn": {f"{at}attn.query": qk, f"{at}attn.key": qk, f"{at}attn.value": base},
        f"{at}attn.c_proj": {f"{at}attn.output": residual},
        f"{at}mlp.c_fc": {f"{at}mlp.in": base},
        f"{at}mlp.c_proj": {f"{at}mlp.out": residual},
    }


def numeric_scale(qk_scale: float | str, theory: float) -> float:
    """qk_scale as a number, `theory` where it says so. Raises ValueError unless that is finite and > 0."""
    if qk_scale == "theory":
        return theory
    return as_float("qk_scale", qk_scale, "(0, inf)", "or 'theory'")


@plainly
def build(
    config: GPT2Config,
    *,
    init: str = "gpt2",
    base_std: float = 0.02,
    embedding_std: float = 0.02,
    position_std: float | None = None,
    qk_scale: float | str = 1.0,
    seed: int = 0,
) -> GPT2LMHeadModel:
    """A random GPT-2 in float32 on the CPU, its weights by :func:`recipes` (whose arguments and errors these are).

    Normalisations start at 1 and biases at 0. The model remembers its recipes (`slth.weights.recipes.recipe_of`).
    """
    made = recipes(
        config,
        init=init,
        base_std=base_std,
        embedding_std=embedding_std,
        position_std=position_std,
        qk_scale=qk_scale,
        seed=seed,
    )
    with usual(), no_init_weights():  # torch's own random numbers would be overwritten
        model = GPT2LMHeadModel(config)
    pad_vocabulary(model)
    gpt2_kernels.make_no_mask(model.transformer)
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    fill(model, made)
    return model


def pad_vocabulary(model: GPT2LMHeadModel) -> None:
    """Give a model the head that its config says, in place: see :func:`config`."""
    model.lm_head = gpt2_head.PaddedHead.of(model.lm_head, getattr(model.config, gpt2_head.FIELD, None))


# ---------------------------------------------------------------- attention logits


@dataclass
class _Moments:
    """Count, sum and sum of squares of the causal attention logits seen by its hooks."""

    heads: int
    count: int = 0
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64, device="cpu"))

    def hook(self, module: nn.Module, inputs: Any, fused: torch.Tensor) -> None:
        """Take in the output (batch, T, 3 d) of a `c_attn`."""
        query, key, _ = fused.unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)  # (batch, heads, T, n)
        allowed = torch.ones(fused.shape[1], fused.shape[1], dtype=torch.bool, device=fused.device).tril()
        for q, k in zip(query, key, strict=True):  # one sequence at a time: T * T logits a head
            logits = (q @ k.mT)[:, allowed].double() / math.sqrt(q.shape[-1])
            self.count += logits.numel()
            self.sums += torch.stack((logits.sum(), logits.square().sum())).cpu()

    def std(self) -> float:
        mean, square = (self.sums / self.count).tolist()
        return math.sqrt(max(square - mean**2, 0.0))


@torch.no_grad()
def logit_std(model: nn.Module, tokens: torch.Tensor) -> float:
    """Standard deviation of the attention logits q k^T / sqrt(n), before the softmax, at tokens (batch, T) int64.

    Over all layers, heads and sequences and the pairs of positions that the causal mask allows, about their common
    mean; n is a head's width. The model holds a GPT-2, masked or not: what its `c_attn` modules give out is what
    counts. Raises ValueError for a model without GPT-2 attention or more tokens than it has positions.
    """
    attentions = [module for module in model.modules() if isinstance(module, GPT2Attention)]
    if not attentions:
        raise ValueError(f"model of type {type(model).__name__}: must hold a GPT-2 with one attention or more")
    check_length(attentions[0].config, tokens.shape[-1])
    moments = _Moments(attentions[0].num_heads)
    handles = [attention.c_attn.register_forward_hook(moments.hook) for attention in attentions]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return moments.std()
