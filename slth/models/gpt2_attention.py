"""GPT-2 with another attention in its blocks: any of `slth.attention.ATTENTIONS` in the place of its own.

    model = with_attention(gpt2.build(config, seed=0), "kha_linear", seed=0)

The blocks' attentions lose their biases and gain what the mechanism has; everything else of the model stays.

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

#: Which of GPT-2's standard deviations a projection has, by role; what has another role starts as the attention says.
_STDS = {"query": "qk", "key": "qk", "value": "base", "output": "residual"}


class InGPT2(nn.Module):
    """An attention where GPT-2's blocks expect theirs: (hidden states, ...) -> (output, None)."""

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
        """X (batch, T, d) -> ((batch, T, d), None); attention_mask (batch, 1, T, T), bool or 0 and -inf for logits.

        Raises ValueError for a cache, for a mask where the attention has none, and for one that adds to logits anything
        but 0 and -inf (or the least number of its dtype).
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
    """A mask as bool, True = attend. Raises ValueError unless it is, or is a float with 0 there and -inf elsewhere."""
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
    """Put an attention, causal, into every block, in place; returns the model.

    attention: a name of ATTENTIONS, or the place of a class (`my_file.py:Tempered`). Its projections, which its facts
    name, start like GPT-2's own (`slth.models.gpt2.recipes`: init, base_std, qk_scale for queries and keys, the output
    scaled as a residual projection), what mixes heads or features as its `mixing_init` says.
    hidden: width of a head, d / heads where None. options: further arguments of the mechanism; length defaults to the
    model's positions where it takes one. Raises ValueError for an unknown attention or init, a base_std or qk_scale
    that is not finite and > 0, a parameter whose role the attention's facts do not say, and what the mechanism refuses.

    `model.config.slth_attention` says which attention it is, so that :class:`GPT2WithAttention` loads what
    `save_pretrained` has written. A plain GPT2LMHeadModel loads it with its own attention, at random, and transformers
    reports keys that are MISSING and UNEXPECTED.
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
    """As :func:`with_attention`, for a class; described: its name or place, hidden and options, for the config."""
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
    config.use_cache = False  # which the attentions keep themselves, each in its own way
    config.slth_attention = {"attention": described["attention"], "hidden": width, "options": given}
    return model


class GPT2WithAttention(GPT2LMHeadModel):  # type: ignore[no-untyped-call]
    """What :func:`with_attention` has made, from its config: for `from_pretrained`, which fills in the weights.

    Raises ValueError for a config without `slth_attention`, and for one that names a place which nothing was loaded
    from: a config's file is no reason to execute another one.
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
        with torch.device("cpu"), usual():  # from_pretrained makes models without values, which cannot be drawn
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
        """As transformers has it, whose loading leaves buffers that no file holds without values: they are put back."""
        found = super().from_pretrained(*inputs, **options)
        model = found[0] if isinstance(found, tuple) else found  # a pair with output_loading_info
        for name, made in model._made.items():
            model.get_buffer(name).copy_(made)
        return found


def _known(attention: str) -> type[Attention]:
    """The class of a name of ATTENTIONS, or one that was loaded from a place before. Raises ValueError for others."""
    kind = ATTENTIONS[attention] if attention in ATTENTIONS else plugins.loaded(attention, Attention)
    if kind is None:
        raise ValueError(
            f"attention={attention}: must be loaded first, by slth.attention.find({attention!r}) where you trust its "
            "code, or be one of " + ", ".join(ATTENTIONS)
        )
    return kind


def _torch_dtype(given: torch.dtype | str) -> torch.dtype:
    """A dtype, which a config's file has by name."""
    return getattr(torch, given) if isinstance(given, str) else given
