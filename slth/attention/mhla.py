"""Token-level multi-head linear attention (MHLA, arXiv 2601.07832): linear attention over blocks of tokens, mixed.

Tokens stand in blocks of `block` (the last may be shorter). A block b is summed up by S_b = sum_j phi(k_j) v_j^T and
z_b = sum_j phi(k_j), and a token of block i, with query q, sees these through row i of a matrix M_c = (m_ib):

    o = phi(q)^T (sum_b m_ib S_b) / phi(q)^T (sum_b m_ib z_b)

Causal, the sums run over earlier blocks, and of its own block a token sees what is not after it, times m_ii. That is
the paper's text; its published code departs from it (the normaliser, the matrix that it starts from).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Unpack

import torch
from torch import nn
from torch.nn.functional import elu, pad, relu
from torch.nn.utils import parametrize

from slth import kernels
from slth.attention.base import Attention, Options
from slth.attention.facts import MULTI_HEAD, Facts
from slth.numbers import as_float, as_int
from slth.weights import recipes

#: Feature maps, of positive values: that of the published code, and that of Katharopoulos et al. 2020
#: (arXiv 2006.16236).
PHI: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": lambda x: relu(x) + 1e-6,
    "elu1": lambda x: elu(x) + 1.0,
}
_NOT_LINEAR = "phi acts on queries and keys before they meet"
STARTS = ("natural", "random", "identity_plus_random", "uniform")


def locality(blocks: int, *, causal: bool = False, floor: float = 0.0) -> torch.Tensor:
    """The M_c that the paper starts from: m_ij in proportion to 1 - |i - j| / max_k |i - k| + floor.

    Rows sum to 1; where causal, row i is made of blocks j <= i alone, with 0 beyond. With floor = 0 the block that is
    farthest has exactly 0: a mask on it would prune what is pruned already. Returns (blocks, blocks), float64.
    """
    index = torch.arange(blocks, device="cpu")
    distance = (index[:, None] - index).abs().double()
    visible = torch.ones_like(distance).tril() if causal else torch.ones_like(distance)
    farthest = (distance * visible).amax(dim=1, keepdim=True).clamp_min(1.0)  # 1 for a block that sees itself alone
    near = (1.0 - distance / farthest + floor) * visible
    return near / near.sum(dim=1, keepdim=True)


@dataclass
class Stream:
    """What decoding keeps: a summary of each block so far, and one of the full blocks as the last one sees them.

    A summary is S_b, with z_b as another column where there is a normaliser: (..., heads, hidden, hidden [+ 1]).
    """

    length: int = 0  # tokens so far
    summaries: list[torch.Tensor] = field(default_factory=list)
    earlier: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32, device="cpu"))

    def add(self, token: torch.Tensor, row: torch.Tensor, block: int) -> torch.Tensor:
        """A token's own summary, its block's row of M_c, tokens of a block -> the summary that the token sees."""
        if self.length % block == 0:
            mixed = (m * full for m, full in zip(row, self.summaries, strict=False))
            self.earlier = sum(mixed, start=torch.zeros_like(token))
            self.summaries.append(torch.zeros_like(token))
        self.summaries[-1] = self.summaries[-1] + token
        self.length += 1
        return self.earlier + row[len(self.summaries) - 1] * self.summaries[-1]

    def bytes(self) -> int:
        """Bytes of all summaries: they grow from block to block, not from token to token."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.summaries, self.earlier))


class MultiHeadLinearAttention(Attention):
    """Linear attention whose blocks of tokens see each other through M_c, in O(T hidden^2) for (T / block)^2 <= T.

    Parameters `query`, `key`, `value` (heads, d_in, hidden), `output` (heads, hidden, d_out), and `mixing`, the M_c of
    all heads: (blocks, blocks), non-negative. See `slth.attention.base.Attention` for the options that all have.

    Args:
        length: most tokens of an input, which sets the number of blocks.
        block: tokens of a block.
        phi: feature map of queries and keys, a key of PHI.
        normalise: divide by the sum of what a token attends with; without it (the paper's language models) rope may
            turn what phi has made of queries and keys.
        mixing_init: "natural": :func:`locality`; "uniform": 1 everywhere, which is linear attention without blocks;
            "random": uniform on (0, 2 / blocks), at most on (0, 1); "identity_plus_random": locality stays as a
            constant, and random shares of its entries, of which `mixing` is uniform on (-1, 1), are added to them, so
            that M_c is non-negative and its diagonal positive whatever is masked.
        floor: see :func:`locality`.

    A token whose entries of M_c are all 0 gets zeros. Raises ValueError as the base class does, and for values other
    than these.
    """

    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    mixing: nn.Parameter
    facts = Facts(
        roles=MULTI_HEAD | {"mixing": "tokens"},
        constructible=_NOT_LINEAR,
        mask=False,
        qk_norm=False,
        mixing_inits=STARTS,
        matrix=True,
    )

    def __init__(
        self,
        d_in: int,
        d_out: int,
        heads: int,
        hidden: int,
        *,
        length: int = 1024,
        block: int = 32,
        phi: str = "relu",
        normalise: bool = True,
        mixing_init: str = "natural",
        floor: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(d_in, d_out, heads, hidden, **options)
        self.length, self.block = as_int("length", length, 1), as_int("block", block, 1)
        if phi not in PHI:
            raise ValueError(f"phi={phi!r}: must be one of {', '.join(PHI)}")
        self._check_mixing_init(mixing_init)
        floor = as_float("floor", floor, "[0, inf)")
        if self.rope and normalise:
            raise ValueError("rope=True: needs normalise=False, for a normaliser of turned queries and keys can be 0")
        self.phi, self.normalise = phi, bool(normalise)
        for role in ("query", "key", "value"):
            self._add(role, (self.heads, self.d_in, self.hidden))
        self._add("output", (self.heads, self.hidden, self.d_out))
        self._add_block_mixing(mixing_init, floor)

    def _add_block_mixing(self, mixing_init: str, floor: float) -> None:
        blocks = -(-self.length // self.block)
        start = locality(blocks, causal=self.causal, floor=floor).to(self.dtype)
        if mixing_init == "natural":
            self.mixing = nn.Parameter(start)
        elif mixing_init == "uniform":
            self.mixing = nn.Parameter(torch.ones_like(start))
        elif mixing_init == "identity_plus_random":
            self._put("mixing", (blocks, blocks), recipes.Draw("uniform", 1.0, self.seed, self.prefix + "mixing"))
            self.register_buffer("mixing_start", start, persistent=False)
        else:
            scale = min(1.0, 2.0 / blocks)  # rows sum to about 1
            self._put("mixing", (blocks, blocks), recipes.Draw("positive", scale, self.seed, self.prefix + "mixing"))

    def mixing_matrix(self) -> torch.Tensor:
        """M_c (blocks, blocks), of which a causal attention uses the lower triangle."""
        start: torch.Tensor | None = getattr(self, "mixing_start", None)
        return self.mixing if start is None else start * (1.0 + self.mixing)

    @torch.no_grad()
    def clip_mixing_(self, least: float = 1e-5) -> None:
        """Bring the entries of `mixing` into [least, 1], as the paper does, in (0, 1], after every update.

        Raises ValueError where `mixing` is masked, for then it has no updates, and where it is no M_c but a part of it.
        """
        if parametrize.is_parametrized(self, "mixing"):
            raise ValueError("mixing is masked: its weights are frozen, there is no update to clip after")
        if hasattr(self, "mixing_start"):
            raise ValueError("mixing_init='identity_plus_random': must be another for M_c to be clipped")
        self.mixing.clamp_(least, 1.0)

    # ------------------------------------------------------------ forward

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """X (..., T, d_in), T <= length -> (..., T, d_out).

        Raises ValueError for inputs of another width, longer ones, and a mask, for which sums over blocks have no room.
        """
        self._check_input(x, mask)
        q, k = self._features(x, self.query), self._features(x, self.key)
        v = x.unsqueeze(-3) @ self.value
        sums = kernels.mhla(
            q, k, v, self.mixing_matrix(), block=self.block, causal=self.causal, normalise=self.normalise
        )
        return (sums @ self.output).sum(dim=-3)

    def _check_input(self, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        self._check(x)
        if mask is not None:
            raise ValueError(f"mask: {type(self).__name__} has none but causal=True, must be None")
        self._check_length(x.shape[-2])

    def _check_length(self, tokens: int) -> None:
        if tokens > self.length:
            raise ValueError(f"{tokens} tokens: must be at most length={self.length}, for which mixing was made")

    def _features(self, x: torch.Tensor, weight: torch.Tensor, first: int = 0) -> torch.Tensor:
        """X (..., T, d_in) from position `first` on, weight (heads, d_in, hidden) -> phi, (..., heads, T, hidden)."""
        features = PHI[self.phi](x.unsqueeze(-3) @ weight)
        return self._rotated(features, torch.arange(first, first + x.shape[-2], device=x.device))

    def _values(self, x: torch.Tensor) -> torch.Tensor:
        """X (..., T, d_in) -> (..., heads, T, hidden), with a column of ones where sums are to be normalised."""
        v = x.unsqueeze(-3) @ self.value
        return pad(v, (0, 1), value=1.0) if self.normalise else v

    def _output(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums over what is attended to, (..., heads, T, width) -> (..., T, d_out)."""
        if self.normalise:
            sums = _divided(sums[..., :-1], sums[..., -1:])
        return (sums @ self.output).sum(dim=-3)

    # ------------------------------------------------------------ as a matrix

    def effective_matrix(self, x: torch.Tensor) -> torch.Tensor:
        """What tokens attend with: X (..., T, d_in) -> A (..., heads, T, T), the heads being A x W_V.

        A = (M_c kron 1) . (Q~ K~^T), with rows that sum to 1 where they are normalised, and lower triangular
        where causal; if not, its rank is at most hidden * rank(M_c). Raises ValueError as forward does. O(T^2).
        """
        self._check_input(x, None)
        q, k = self._features(x, self.query), self._features(x, self.key)
        of_block = torch.arange(x.shape[-2], device=x.device) // self.block
        matrix = self.mixing_matrix()[of_block][:, of_block] * (q @ k.mT)  # (..., heads, T, T)
        matrix = matrix.tril() if self.causal else matrix
        return _divided(matrix, matrix.sum(dim=-1, keepdim=True)) if self.normalise else matrix

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The same as forward by way of :meth:`effective_matrix`."""
        self._check_input(x, mask)
        heads = zip(self.effective_matrix(x).unbind(-3), self.value, self.output, strict=True)
        return sum((matrix @ (x @ value) @ output for matrix, value, output in heads), start=x.new_zeros(()))

    def obstacles(self) -> list[str]:
        """What keeps query and key from being merged."""
        return [_NOT_LINEAR, *super().obstacles()]

    # ------------------------------------------------------------ token by token

    def start(self) -> Stream:
        """An empty state for :meth:`step`. Raises ValueError unless causal."""
        self._check_decoding()
        return Stream()

    def step(self, x: torch.Tensor, cache: Stream) -> torch.Tensor:
        """The next tokens (..., t, d_in), one or more -> (..., t, d_out), as forward has them after those in cache.

        They are added to cache in place; each takes O(hidden^2), and the first of block i takes i times as much.
        Raises ValueError for inputs of another width or batch, and for more than `length` tokens in all.
        """
        self._check_input(x, None)
        self._check_length(cache.length + x.shape[-2])
        batch = {tuple(summary.shape[:-3]) for summary in cache.summaries[:1]}
        if batch - {tuple(x.shape[:-2])}:
            raise ValueError(f"tokens of batch {tuple(x.shape[:-2])}: must be {batch.pop()} as before")
        q, k = (self._features(x, weight, cache.length) for weight in (self.query, self.key))
        v = self._values(x)
        sums = []
        for t in range(x.shape[-2]):
            q_t, k_t, v_t = (tokens[..., t : t + 1, :] for tokens in (q, k, v))  # (..., heads, 1, width)
            row = self.mixing_matrix()[cache.length // self.block]
            sums.append(q_t @ cache.add(k_t.mT @ v_t, row, self.block))
        return self._output(torch.cat(sums, dim=-2) if sums else v)  # without tokens there is none of either


def _divided(sums: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sums over weights, 0 where the weights are 0: there nothing was summed."""
    return sums / torch.where(weights == 0, 1.0, weights)
