"""The transformer of arXiv 2511.04217, section 5, and a language model around it.

A block is y = Attn(x) + x, out = F(y) + y with a ReLU network F and no biases. The paper has no normalisation; with
norm=True the inputs of Attn and of F are normalised (mean 0, variance 1 over the coordinates, no learned parameters),
in both source and target.

Targets and sources are of the same classes, with different widths. A source's random factors are multiplied by recorded
scales (powers of two, 1 unless a construction sets them), which are the only floats of its ticket.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import layer_norm, relu

from slth.attention import MultiHeadAttention
from slth.building import Recorded
from slth.numbers import as_int, plain
from slth.weights import inits, recipes


def normalise(x: torch.Tensor, norm: bool) -> torch.Tensor:
    """Apply layer normalisation over the last axis, without affine part (eps 1e-5), if norm is set; else return x."""
    return layer_norm(x, x.shape[-1:]) if norm else x


class FeedForward(Recorded):
    """x W_1 -> ReLU -> ... -> W_L without biases; layer l is (widths[l-1], widths[l]), uniform on (-1, 1).

    `scales` (L,) multiply the layers' outputs. init is a name of `slth.weights.inits`; random streams are named
    prefix + "layers.0" and so on. Raises ValueError for fewer than two widths, and widths < 1.
    """

    scales: torch.Tensor

    def __init__(
        self,
        widths: Sequence[int],
        *,
        init: str = "theory",
        seed: int = 0,
        prefix: str = "",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        widths = [plain(width) for width in widths]
        if len(widths) < 2 or any(type(width) is not int or width < 1 for width in widths):
            raise ValueError(f"widths={widths}: must be at least two ints >= 1, those of one layer or more")
        self.layers = nn.ParameterList(torch.empty(n, m, dtype=dtype, device="cpu") for n, m in pairwise(widths))
        draws = {
            f"layers.{i}": recipes.draw(init, inits.Fan(fan_in=n, fan_out=m), seed=seed, name=f"{prefix}layers.{i}")
            for i, (n, m) in enumerate(pairwise(widths))
        }
        recipes.fill(self, {name: recipes.Recipe((draw,)) for name, draw in draws.items()})
        self.register_buffer("scales", torch.ones(len(self.layers), dtype=dtype, device="cpu"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., widths[0]) -> (..., widths[-1])."""
        for i, weight in enumerate(self.layers):
            x = (relu(x) if i else x) @ weight * self.scales[i]
        return x


class Block(nn.Module):
    """y = Attn(x) + x, out = F(y) + y; with norm, Attn and F have normalised inputs."""

    def __init__(self, attention: MultiHeadAttention, feed_forward: FeedForward, norm: bool) -> None:
        super().__init__()
        self.attention, self.feed_forward, self.norm = attention, feed_forward, norm

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map x (..., T, d) -> (..., T, d); mask as in :class:`slth.attention.MultiHeadAttention`."""
        y: torch.Tensor = self.attention(normalise(x, self.norm), mask) + x
        out: torch.Tensor = self.feed_forward(normalise(y, self.norm)) + y
        return out


class Transformer(Recorded):
    """A stack of blocks on vectors of width d.

    ff_widths: hidden widths of the feed-forward network, one int for each of its layers but the last: () is a linear
    map, (d,) two layers with a ReLU between them. A target of L layers has L - 1 of them, its source 2L - 1.
    Raises ValueError for blocks < 1 and for arguments that its parts refuse.
    """

    def __init__(
        self,
        d: int,
        blocks: int,
        heads: int,
        hidden: int,
        ff_widths: Sequence[int],
        *,
        norm: bool = False,
        init: str = "theory",
        seed: int = 0,
        prefix: str = "",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        blocks = as_int("blocks", blocks, 1)
        self.d, self.norm = as_int("d", d, 1), bool(norm)
        self.blocks = nn.ModuleList()
        for b in range(blocks):
            inside = f"{prefix}blocks.{b}."
            attention = MultiHeadAttention(
                d, d, heads, hidden, init=init, seed=seed, prefix=f"{inside}attention.", dtype=dtype
            )
            network = FeedForward(
                (d, *ff_widths, d), init=init, seed=seed, prefix=f"{inside}feed_forward.", dtype=dtype
            )
            self.blocks.append(Block(attention, network, norm))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map x (..., T, d) -> (..., T, d); mask as in :class:`Block`."""
        for block in self.blocks:
            x = block(x, mask)
        return x


class Table(Recorded):
    """A matrix (rows, columns) as a parameter, such as an embedding or a head."""

    def __init__(self, rows: int, columns: int, *, std: float, seed: int, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype, device="cpu"))
        recipes.fill(self, {"weight": recipes.Recipe((recipes.Draw("normal", std, seed, name),))})

    def matrix(self) -> torch.Tensor:
        """Return the matrix (rows, columns)."""
        return self.weight


class Product(Recorded):
    """A matrix (rows, columns), the product of two random matrices with inner width hidden, times a recorded scale."""

    scale: torch.Tensor

    def __init__(self, rows: int, columns: int, hidden: int, *, seed: int, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        for which, shape in (("first", (rows, hidden)), ("second", (hidden, columns))):
            setattr(self, which, nn.Parameter(torch.empty(shape, dtype=dtype, device="cpu")))
            recipes.fill(self, {which: recipes.Recipe((recipes.Draw("uniform", 1.0, seed, f"{name}.{which}"),))})
        self.register_buffer("scale", torch.ones((), dtype=dtype, device="cpu"))

    first: nn.Parameter
    second: nn.Parameter

    def matrix(self) -> torch.Tensor:
        """Return the matrix (rows, columns)."""
        return self.first @ self.second * self.scale


class LanguageModel(Recorded):
    """Next-token prediction: embedding + position -> causal transformer -> head.

    embedding (vocabulary, d), positions (length, d) and head (d, vocabulary) are :class:`Table` or :class:`Product`.
    With the transformer's norm, the inputs of the head are normalised as well.
    """

    causal: torch.Tensor

    def __init__(
        self,
        embedding: Table | Product,
        positions: Table | Product,
        transformer: Transformer,
        head: Table | Product,
    ) -> None:
        super().__init__()
        self.embedding, self.positions, self.transformer, self.head = embedding, positions, transformer, head
        length, device = len(positions.matrix()), positions.matrix().device
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        self.register_buffer("causal", causal, persistent=False)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed tokens (..., T) int64 as vectors (..., T, d). Raises ValueError if there are fewer positions than T."""
        length = tokens.shape[-1]
        if length > len(self.causal):
            raise ValueError(f"{length} tokens: must be at most {len(self.causal)}, the positions of the model")
        return self.embedding.matrix()[tokens] + self.positions.matrix()[:length]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute logits (..., T, vocabulary) of each next token from tokens (..., T) int64."""
        length = tokens.shape[-1]
        x = self.transformer(self.embed(tokens), self.causal[:length, :length])
        return normalise(x, self.transformer.norm) @ self.head.matrix()
