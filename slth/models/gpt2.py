"""GPT-2 (Radford et al. 2019) from transformers, with random weights that a seed determines.

The model is transformers' own GPT2LMHeadModel. Only its weights are generated here, by `slth.weights.inits`, so that a
ticket can store their recipes instead of the weights. The fused `attn.c_attn` (d, 3 d) concatenates three parts: query,
key and value.
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
    """Blocks, width d of the residual stream, heads, and the default vocabulary and length (tokens) of a size."""

    layers: int
    d: int
    heads: int
    vocabulary: int
    length: int


#: "tiny" has 995,328 weights in its blocks. "mini" is erwanf/gpt2-mini, and "small" and "medium" are those of Radford
#: et al. 2019; arXiv 2511.04217 prunes these three (Figures 7 and 8).
SIZES = {
    "tiny": Size(4, 144, 4, 256, 128),
    "mini": Size(4, 512, 8, 50257, 512),
    "small": Size(12, 768, 12, 50257, 1024),
    "medium": Size(24, 1024, 16, 50257, 1024),
}

#: init -> (distribution, its scale at a standard deviation of 1).
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
    """Make the config of a GPT-2 without dropout, special tokens or a cache of keys and values.

    Args:
        size: a key of SIZES.
        width: factor of d and of the number of heads; a head's width stays the same (mini x 0.5 and medium x 2 are in
            arXiv 2511.04217, Figure 7).
        vocabulary: number of tokens. None: that of the size.
        length: number of positions (tokens). None: that of the size.
        vocabulary_multiple: the product that computes the logits pads the vocabulary to a multiple of this
            (`slth.models.gpt2_head`). None: 64 on a GPU, 1 elsewhere.
        overrides: fields of GPT2Config.

    Raises ValueError for an unknown size or field, a vocabulary, length or multiple < 1, and a width that is not > 0 or
    does not give a whole number of heads.
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
    """Return the number of heads at a width factor. Raises ValueError if it is no whole number >= 1."""
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
    """Return the recipe of every weight matrix, by its name in GPT2LMHeadModel; a head tied to the embedding has none.

    In each init, base_std is the standard deviation of an unscaled weight of the blocks, embedding_std that of `wte`,
    and position_std that of `wpe` (None: embedding_std); GPT-2's is 0.02. n is a head's width.

    ========  ==============  ===================  =========================================  ========================
    init      distribution    value, `c_fc`        query, key                                 both `c_proj`
    ========  ==============  ===================  =========================================  ========================
    gpt2      normal          base_std             base_std * qk_scale                        base_std / sqrt(2 layers)
    signed    +- a constant   base_std             base_std * qk_scale                        base_std
    theory    uniform         base_std             base_std * qk_scale * n^(1/4)              base_std
    ========  ==============  ===================  =========================================  ========================

    Sources:

    - gpt2: Radford et al. 2019.
    - theory: arXiv 2511.04217, Theorem 3, with U[-n^(1/4), n^(1/4)] for query and key and U[-1, 1] for all else, here
      times sqrt(3) base_std, which gives a weight of U[-1, 1] the standard deviation base_std.
    - signed: Ramanujan et al. 2020, with one bit per weight. `c_proj` has the same size as the rest, since a mask
      cannot enlarge smaller weights.

    qk_scale is a number > 0 or "theory", n^(1/4) (arXiv 2511.04217, Figure 8). Raises ValueError for an unknown init,
    and for a standard deviation or qk_scale that is not finite and > 0.
    """
    if init not in INITS:
        raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}")
    position_std = embedding_std if position_std is None else position_std
    for name, std in (("base_std", base_std), ("embedding_std", embedding_std), ("position_std", position_std)):
        as_float(name, std, "(0, inf)")
    theory = math.sqrt(math.sqrt(config.n_embd // config.n_head))  # n^(1/4), rounded the same on every machine
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
    """Return an init's factor for the projections into the residual stream: 1 / sqrt(2 layers) in GPT-2, else 1."""
    return 1.0 / math.sqrt(2 * layers) if init == "gpt2" else 1.0


def _block(at: str, base: float, qk: float, residual: float) -> dict[str, dict[str, float]]:
    """Return module -> {name of a part of its weight: the part's standard deviation}."""
    return {
        f"{at}attn.c_attn": {f"{at}attn.query": qk, f"{at}attn.key": qk, f"{at}attn.value": base},
        f"{at}attn.c_proj": {f"{at}attn.output": residual},
        f"{at}mlp.c_fc": {f"{at}mlp.in": base},
        f"{at}mlp.c_proj": {f"{at}mlp.out": residual},
    }


def numeric_scale(qk_scale: float | str, theory: float) -> float:
    """Return qk_scale as a number, `theory` for "theory". Raises ValueError unless it is finite and > 0."""
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
    """Build a random GPT-2 in float32 on the CPU. Arguments and errors are those of :func:`recipes`.

    Normalisation weights are 1 and biases 0. The model stores its recipes (`slth.weights.recipes.recipe_of`).
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
    with usual(), no_init_weights():  # the initial values would be overwritten anyway
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
    """Replace a model's head, in place, by one with the config's vocabulary_multiple: see :func:`config`."""
    model.lm_head = gpt2_head.PaddedHead.of(model.lm_head, getattr(model.config, gpt2_head.FIELD, None))


# ---------------------------------------------------------------- attention logits


@dataclass
class _Moments:
    """Count, sum and sum of squares of the causal attention logits that its hooks compute."""

    heads: int
    count: int = 0
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64, device="cpu"))

    def hook(self, module: nn.Module, inputs: Any, fused: torch.Tensor) -> None:
        """Add the logits of a `c_attn` output (batch, T, 3 d)."""
        query, key, _ = fused.unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)  # (batch, heads, T, n)
        allowed = torch.ones(fused.shape[1], fused.shape[1], dtype=torch.bool, device=fused.device).tril()
        for q, k in zip(query, key, strict=True):  # one sequence at a time: T * T logits per head
            logits = (q @ k.mT)[:, allowed].double() / math.sqrt(q.shape[-1])
            self.count += logits.numel()
            self.sums += torch.stack((logits.sum(), logits.square().sum())).cpu()

    def std(self) -> float:
        mean, square = (self.sums / self.count).tolist()
        return math.sqrt(max(square - mean**2, 0.0))


@torch.no_grad()
def logit_std(model: nn.Module, tokens: torch.Tensor) -> float:
    """Compute the standard deviation of the attention logits q k^T / sqrt(n) at tokens (batch, T) int64.

    It is taken about the common mean over all layers, heads, sequences and pairs of positions that the causal mask
    allows; n is a head's width. The model contains a GPT-2, wrapped or not; the logits are computed from the outputs of
    its `c_attn` modules. Raises ValueError for a model without GPT-2 attention, and for more tokens than positions.
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
