"""One table of small networks of many kinds, for checks that must hold on any module.

@every_case
def test_something(case):
    model = slth.wrap(case.build(), keep=0.3)
    case.loss(model).backward()
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slth.attention import MultiHeadAttention
from slth.models import FeedForward, LanguageModel, Product, Table, Transformer

WIDTH, HEADS, VOCABULARY, LENGTH = 16, 2, 24, 7


@dataclass(frozen=True)
class Case:
    """A network without dropout, what goes in, and what comes out of it.

    make: a new network with random weights of its library's own. inputs: tensors for its forward; options: named values
    for it. training: the mode that build leaves it in. tied: {parameter name: the others of the same tensor}; parts:
    {parameter name: roles of what is fused in it}.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    training: bool = False
    tied: dict[str, list[str]] = field(default_factory=dict)
    parts: dict[str, list[str]] = field(default_factory=dict)

    def build(self, seed: int = 0) -> nn.Module:
        """A new network, the same one for the same seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.make().train(self.training)

    def run(self, module: nn.Module) -> torch.Tensor:
        """The output, its main tensor where there are several."""
        out = module(*self.inputs(), **self.options)
        for name in ("logits", "last_hidden_state"):
            out = getattr(out, name, out)
        return out[0] if isinstance(out, tuple) else out

    def loss(self, module: nn.Module) -> torch.Tensor:
        """A number to which each entry of the output adds with a weight of its own."""
        out = self.run(module)
        return (out * torch.arange(out.numel(), device=out.device).cos().reshape(out.shape).to(out.dtype)).sum()


def numbers(*shape, dtype=torch.float32):
    return torch.from_numpy(np.random.default_rng(1).normal(size=shape)).to(dtype)


def tokens():
    return torch.from_numpy(np.random.default_rng(2).integers(0, VOCABULARY, size=(2, LENGTH)))


def vectors():
    return (numbers(2, LENGTH, WIDTH),)


def images():
    return (numbers(2, 3, 8, 8),)


# ---------------------------------------------------------------- Hugging Face


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=2,
            n_embd=WIDTH,
            n_head=HEADS,
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            initializer_range=0.2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    )


def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        **_sizes(),
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **_sizes(heads=4), num_key_value_heads=2, vocab_size=VOCABULARY, use_cache=False, tie_word_embeddings=False
    )
    return LlamaForCausalLM(config)


def vit():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        **_sizes(), image_size=8, patch_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return ViTModel(config, add_pooling_layer=False)


def _sizes(heads=HEADS):
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "intermediate_size": 2 * WIDTH,
        "initializer_range": 0.2,
    }


# ---------------------------------------------------------------- torch


def encoder():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def separate_attention():
    return nn.MultiheadAttention(WIDTH, HEADS, kdim=6, vdim=5, batch_first=True)


def separate_inputs():
    return numbers(2, LENGTH, WIDTH), numbers(2, 4, 6), numbers(2, 4, 5)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 5),
    )


class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = nn.RNN(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens))[0])


class Twice(nn.Module):
    """One matrix under two names of the same module."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.second = self.first

    def forward(self, x):
        return (x @ self.first).tanh() @ self.second


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Bilinear(WIDTH, 5, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x, y):
        return self.norm(self.both(x, y))


class Experts(nn.Module):
    """Two matrices an expert, held as one stack each, as transformers holds them; every token goes to one expert."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.up = nn.Parameter(torch.randn(3, 20, WIDTH))
        self.down = nn.Parameter(torch.randn(3, WIDTH, 20))

    def forward(self, x):
        shares = self.router(x).softmax(-1)
        each = torch.einsum("eoi,bti->beto", self.up, x).relu()
        return torch.einsum("eoi,beti,bte->bto", self.down, each, shares)


def weight_normed(norm):
    """Layers under one of torch's two forms of weight_norm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the older form
        return nn.Sequential(norm(nn.Linear(WIDTH, 8)), nn.Tanh(), norm(nn.Conv1d(LENGTH, 4, 3)))


def embedded(layer):
    """A layer that is looked up, with a network behind it."""
    return nn.Sequential(layer, nn.Linear(WIDTH, 5))


def with_padding():
    tokens_ = tokens()
    tokens_[:, -2:] = 3
    return (tokens_,)


# ---------------------------------------------------------------- slth


def attention(dtype=torch.float32):
    return MultiHeadAttention(WIDTH, WIDTH, HEADS, 8, init="xavier_uniform", dtype=dtype)


def language_model():
    sizes = {"std": 1.0, "seed": 0, "dtype": torch.float32}
    return LanguageModel(
        Table(VOCABULARY, WIDTH, name="embedding", **sizes),
        Table(LENGTH, WIDTH, name="positions", **sizes),
        Transformer(WIDTH, 2, HEADS, 2 * WIDTH, (WIDTH,), norm=True),
        Product(WIDTH, VOCABULARY, 2 * WIDTH, seed=0, name="head", dtype=torch.float32),
    )


CASES = [
    Case(
        "gpt2",
        gpt2,
        lambda: (tokens(),),
        tied={"transformer.wte.weight": ["lm_head.weight"]},
        parts={f"transformer.h.{i}.attn.c_attn.weight": ["query", "key", "value"] for i in range(2)},
    ),
    Case("bert", bert, lambda: (tokens(),)),
    Case("llama", llama, lambda: (tokens(),)),
    Case("vit", vit, images),
    *(
        Case(
            f"torch encoder, {'training' if training else 'evaluation'}",
            encoder,
            vectors,
            training=training,
            parts={f"layers.{i}.self_attn.in_proj_weight": ["query", "key", "value"] for i in range(2)},
        )
        for training in (False, True)
    ),
    Case(
        "torch attention, packed",
        lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        lambda: 3 * vectors(),
        options={"need_weights": False},
        parts={"in_proj_weight": ["query", "key", "value"]},
    ),
    Case("torch attention, separate", separate_attention, separate_inputs),
    Case(
        "torch attention, bias_k",
        lambda: nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True),
        lambda: 3 * vectors(),
        parts={"in_proj_weight": ["query", "key", "value"]},
    ),
    Case("lstm", lambda: nn.LSTM(WIDTH, 8, num_layers=2), vectors, training=True),
    Case("lstm, bidirectional", lambda: nn.LSTM(WIDTH, 8, bidirectional=True), vectors),
    Case("gru", lambda: nn.GRU(WIDTH, 8, batch_first=True), vectors),
    Case("convolutions, evaluation", convolutions, images),
    Case("convolutions, training", convolutions, images, training=True),
    Case("convolutions, channels last", lambda: convolutions().to(memory_format=torch.channels_last), images),
    Case("transposed convolution", lambda: nn.ConvTranspose1d(LENGTH, 4, 3, stride=2), vectors),
    Case(
        "depthwise transposed convolution",
        lambda: nn.ConvTranspose1d(LENGTH, 2 * LENGTH, 4, stride=2, groups=LENGTH),
        vectors,
    ),
    Case("mixture of experts", Experts, vectors),
    Case("weight_norm", lambda: weight_normed(nn.utils.parametrizations.weight_norm), vectors),
    Case("weight_norm, older", lambda: weight_normed(nn.utils.weight_norm), vectors),
    *(
        Case(
            f"embedding, {name}",
            lambda options=options: embedded(nn.Embedding(VOCABULARY, WIDTH, **options)),
            looked_up,
        )
        for name, options, looked_up in (
            ("padding_idx", {"padding_idx": 3}, with_padding),
            ("sparse", {"sparse": True}, lambda: (tokens(),)),
            ("scale_grad_by_freq", {"scale_grad_by_freq": True}, lambda: (tokens(),)),
        )
    ),
    *(
        Case(
            f"embedding bag, {name}",
            lambda options=options: embedded(nn.EmbeddingBag(VOCABULARY, WIDTH, **options)),
            with_padding,
        )
        for name, options in (("padding_idx", {"padding_idx": 3}), ("sparse", {"sparse": True, "mode": "sum"}))
    ),
    Case("bilinear", Pair, lambda: (numbers(2, WIDTH), numbers(2, 5))),
    Case("tied", TiedLanguageModel, lambda: (tokens(),), tied={"embedding.weight": ["head.weight"]}),
    Case("two names", Twice, vectors, tied={"first": ["second"]}),
    Case("bfloat16", lambda: nn.Linear(WIDTH, 5).bfloat16(), lambda: (numbers(3, WIDTH, dtype=torch.bfloat16),)),
    Case("slth attention", attention, vectors),
    Case("slth attention, float64", lambda: attention(torch.float64), lambda: (vectors()[0].double(),)),
    Case("slth language model", language_model, lambda: (tokens(),)),
    Case("slth feed-forward", lambda: FeedForward((WIDTH, 20, 5)), vectors),
]

#: Runs a test with each case as its argument `case`.
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
