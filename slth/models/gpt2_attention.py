"""GPT-2 with another attention in its blocks, any of `slth.attention.ATTENTIONS`.

    model = with_attention(gpt2.build(config, seed=0), "kha_linear", seed=0)

The new attentions have no biases; everything else in the model stays as it is.

    model.save_pretrained(folder)
    model = GPT2WithAttention.from_pretrained(folder)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from slth import plugins
from slth.attention import ATTENTIONS, Attention, find, options_of
from slth.defaults import usual
from slth.extras import extra
from slth.models.gpt2 import INITS, numeric_scale, pad_vocabulary, residual_scale
from slth.models.gpt2_kernels import entries_of, make_no_mask
from slth.numbers import as_float, plain, plainly
from slth.weights.recipes import Draw, Recipe, fill

with extra("gpt2"):
    from transformers import GPT2Config, GPT2LMHeadModel

#: Role of a projection -> the part of GPT-2 whose standard deviation it has; the attention initialises other roles.
_STDS = {"query": "qk", "key": "qk", "value": "base", "output": "residual"}


class InGPT2(nn.Module):
    """An attention with the interface of GPT-2's own: (hidden states, ...) -> (output, None)."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.inner = attention

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: object = None,
        attention_mask: torch.Tensor | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """Map x (batch, T, d) -> ((batch, T, d), None); attention_mask (batch, 1, T, T) is bool, or 0 and -inf.

        Raises ValueError for a cache, for a mask if the attention does not support masks, and for a float mask with
        other values than 0 and -inf (or the least number of its dtype).
        """
        if past_key_values is not None:
            raise ValueError(
                "past_key_values: must be None, as use_cache=False has it; the attentions' start and step decode"
            )
        attention_mask = entries_of(attention_mask)
        if attention_mask is not None:
            attention_mask = _as_bool(attention_mask)[:, 0]
        return self.inner(hidden_states, attention_mask), None


def _as_bool(mask: torch.Tensor) -> torch.Tensor:
    """Convert a mask to bool, True = attend. Raises ValueError for a float mask with values other than 0 and -inf."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise ValueError(f"attention_mask of dtype {mask.dtype}: must be bool, or a float that is added to logits")
    attended = mask == 0
    if not (attended | (mask <= torch.finfo(mask.dtype).min)).all():
        raise ValueError(
            "attention_mask adds a bias to logits: must be 0 (attend) or -inf, or the dtype's least number (do not "
            "attend), for the attentions take no bias"
        )
    return attended


@plainly
def with_attention(
    model: GPT2LMHeadModel,
    attention: str,
    *,
    init: str = "gpt2",
    base_std: float = 0.02,
    qk_scale: float | str = 1.0,
    hidden: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> GPT2LMHeadModel:
    """Replace the attention of every block by a causal one, in place, and return the model.

    Projections are initialised like GPT-2's own (`slth.models.gpt2.recipes`), with the output scaled as a residual
    projection. Tensors that mix heads or features are initialised by the attention's `mixing_init`.

    `model.config.slth_attention` records the attention, so that :class:`GPT2WithAttention` can load what
    `save_pretrained` has written. A plain GPT2LMHeadModel would load it with its own attention at random values, and
    transformers would report keys that are MISSING and UNEXPECTED.

    Args:
        model: changed in place.
        attention: a name of ATTENTIONS, or the place of a class (`my_file.py:Tempered`).
        init: a name of `slth.models.gpt2.INITS`.
        base_std: standard deviation of unscaled projections.
        qk_scale: factor of query and key projections, or "theory".
        hidden: width of a head. None: d / heads.
        seed: seed of all new weights.
        options: further arguments of the attention. If it takes a length, the default is the model's positions.

    Raises ValueError for an unknown attention or init, a base_std or qk_scale that is not finite and > 0, a parameter
    without a role in the attention's facts, and for arguments that the attention refuses.
    """
    if not isinstance(model, GPT2LMHeadModel):
        raise ValueError(f"model of type {type(model).__name__}: must be a GPT2LMHeadModel, as slth.models.gpt2.build")
    kind = find(attention)
    described = {"attention": plugins.place_of(kind) or attention, "hidden": hidden, "options": options or {}}
    return _put(model, kind, described, init=init, base_std=base_std, qk_scale=qk_scale, seed=seed)


def _put(
    model: GPT2LMHeadModel,
    kind: type[Attention],
    described: Mapping[str, Any],
    *,
    init: str = "gpt2",
    base_std: float = 0.02,
    qk_scale: float | str = 1.0,
    seed: int = 0,
) -> GPT2LMHeadModel:
    """Do what :func:`with_attention` does, for a class; described is stored in the config: name, hidden and options."""
    if init not in INITS:
        raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}")
    base_std = as_float("base_std", base_std, "(0, inf)")
    config = model.config
    width = config.n_embd // config.n_head if described["hidden"] is None else described["hidden"]
    given = {name: plain(value) for name, value in described["options"].items()}
    if "length" in options_of(kind):
        given.setdefault("length", config.n_positions)
    theory = math.sqrt(math.sqrt(width))
    distribution, unit = INITS[init]
    stds = {
        "base": base_std,
        "qk": base_std * numeric_scale(qk_scale, theory) * (theory if init == "theory" else 1.0),
        "residual": base_std * residual_scale(init, config.n_layer),
    }
    made = [
        kind(config.n_embd, config.n_embd, config.n_head, width, seed=seed, prefix=f"h.{i}.attn.", causal=True, **given)
        for i in range(config.n_layer)
    ]
    for i, inner in enumerate(made):
        drawn = {
            name: Recipe((Draw(distribution, unit * stds[_STDS[role]], seed, f"h.{i}.attn.{name}"),))
            for name, role in inner.roles().items()
            if role in _STDS
        }
        fill(inner, drawn)
    for block, inner in zip(model.transformer.h, made, strict=True):
        block.attn = InGPT2(inner)
    config.use_cache = False  # each attention has its own cache
    config.slth_attention = {"attention": described["attention"], "hidden": width, "options": given}
    return model


class GPT2WithAttention(GPT2LMHeadModel):  # type: ignore[no-untyped-call]
    """A model of :func:`with_attention`, built from its config, so that `from_pretrained` can load its weights.

    Raises ValueError for a config without `slth_attention`, and for one with the place of a class that was not loaded
    before: reading a config must not execute another file.
    """

    def __init__(self, config: GPT2Config, *inputs: Any, **options: Any) -> None:
        said = getattr(config, "slth_attention", None)
        if said is None:
            raise ValueError("config without slth_attention: must be of a model that with_attention has made")
        kind = _known(str(said["attention"]))
        super().__init__(config, *inputs, **options)
        pad_vocabulary(self)
        make_no_mask(self.transformer)
        given = {name: _torch_dtype(one) if name == "dtype" else one for name, one in said["options"].items()}
        with torch.device("cpu"), usual():  # from_pretrained builds on the device meta, which cannot hold values
            _put(self, kind, said | {"options": given})
        saved = self.state_dict().keys()
        self._made = {
            name: one.clone()
            for name, one in self.named_buffers()
            if name not in saved and isinstance(self._holder(name), Attention)
        }

    def _holder(self, name: str) -> nn.Module:
        return self.get_submodule(name.rpartition(".")[0])

    @classmethod
    def from_pretrained(cls, *inputs: Any, **options: Any) -> Any:
        """Load a model as transformers does, and restore the buffers that are not stored in its files."""
        found = super().from_pretrained(*inputs, **options)
        model = found[0] if isinstance(found, tuple) else found  # a pair with output_loading_info
        for name, made in model._made.items():
            model.get_buffer(name).copy_(made)
        return found


def _known(attention: str) -> type[Attention]:
    """Return the class of a name of ATTENTIONS, or of a place that was loaded before. Raises ValueError for others."""
    kind = ATTENTIONS[attention] if attention in ATTENTIONS else plugins.loaded(attention, Attention)
    if kind is None:
        raise ValueError(
            f"attention={attention}: must be loaded first, by slth.attention.find({attention!r}) where you trust its "
            "code, or be one of " + ", ".join(ATTENTIONS)
        )
    return kind


def _torch_dtype(given: torch.dtype | str) -> torch.dtype:
    """Return a dtype, which may be given by its name, as in a config's file."""
    return getattr(torch, given) if isinstance(given, str) else given
