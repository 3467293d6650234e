"""Token-level multi-head linear attention (MHLA, arXiv 2601.07832): linear attention over blocks of tokens, mixed.

Tokens are divided into blocks of length `block` (the last may be shorter). A block b is summarised by
S_b = sum_j phi(k_j) v_j^T and z_b = sum_j phi(k_j). The output of a token in block i with query q mixes these summaries
by row i of a matrix M_c = (m_ib):

    o = phi(q)^T (sum_b m_ib S_b) / phi(q)^T (sum_b m_ib z_b)

If causal, the sums run over earlier blocks, and over the tokens of block i up to the present one with factor m_ii. This
follows the paper's text; the published code differs in the normaliser and the initial matrix.
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

#: Feature maps with positive values: "relu" of the published code, and "elu1" of Katharopoulos et al. 2020 (arXiv
#: 2006.16236).
PHI: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": lambda x: relu(x) + 1e-6,
    "elu1": lambda x: elu(x) + 1.0,
}
_NOT_LINEAR = "phi acts on queries and keys before they meet"
STARTS = ("natural", "random", "identity_plus_random", "uniform")


def locality(blocks: int, *, causal: bool = False, floor: float = 0.0) -> torch.Tensor:
    """Return the paper's initial M_c, (blocks, blocks), float64.

    m_ij is proportional to 1 - |i - j| / max_k |i - k| + floor, and rows sum to 1. If causal, row i has only the blocks
    j <= i, and 0 elsewhere. With floor = 0 the farthest block has exactly 0, so that a mask on it has no effect.
    """
    index = torch.arange(blocks, device="cpu")
    distance = (index[:, None] - index).abs().double()
    visible = torch.ones_like(distance).tril() if causal else torch.ones_like(distance)
    farthest = (distance * visible).amax(dim=1, keepdim=True).clamp_min(1.0)  # 1 for a block that sees only itself
    near = (1.0 - distance / farthest + floor) * visible
    return near / near.sum(dim=1, keepdim=True)


@dataclass
class Stream:
    """The cache for decoding: a summary of each block so far, and the mixture of the full blocks for the last block.

    A summary is S_b, with z_b as an additional column if there is a normaliser: (..., heads, hidden, hidden [+ 1]).
    """

    length: int = 0  # number of tokens so far
    summaries: list[torch.Tensor] = field(default_factory=list)
    earlier: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32, device="cpu"))

    def add(self, token: torch.Tensor, row: torch.Tensor, block: int) -> torch.Tensor:
        """Add a token's summary. Returns the mixture that the token sees, by the row of M_c of its block."""
        if self.length % block == 0:
            mixed = (m * full for m, full in zip(row, self.summaries, strict=False))
            self.earlier = sum(mixed, start=torch.zeros_like(token))
            self.summaries.append(torch.zeros_like(token))
        self.summaries[-1] = self.summaries[-1] + token
        self.length += 1
        return self.earlier + row[len(self.summaries) - 1] * self.summaries[-1]

    def bytes(self) -> int:
        """Return the memory of all summaries in bytes; it grows with the blocks, not with the tokens."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.summaries, self.earlier))


class MultiHeadLinearAttention(Attention):
    """Linear attention between blocks of tokens, mixed by M_c, in O(T hidden^2) time for (T / block)^2 <= T.

    The parameters are `query`, `key`, `value` (heads, d_in, hidden), `output` (heads, hidden, d_out), and `mixing`, the
    M_c (blocks, blocks) of all heads, non-negative. See `slth.attention.base.Attention` for the common options. The
    output of a token whose entries of M_c are all 0 is 0.

    Args:
        length: the largest number of tokens of an input, which sets the number of blocks.
        block: number of tokens in a block.
        phi: feature map of queries and keys, a key of PHI.
        normalise: whether to divide by the sum of a token's weights. Without it (as in the paper's language models)
            rope can rotate the features of queries and keys.
        mixing_init: "natural": :func:`locality`; "uniform": 1 everywhere, which is linear attention without blocks;
            "random": uniform on (0, min(1, 2 / blocks)); "identity_plus_random": locality * (1 + mixing) with a
            constant locality and `mixing` uniform on (-1, 1), so that M_c is non-negative and its diagonal positive
            under any mask.
        floor: see :func:`locality`.

    Raises:
        ValueError: as the base class, and for values outside the above.
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
        """Return M_c (blocks, blocks); a causal attention uses its lower triangle."""
        start: torch.Tensor | None = getattr(self, "mixing_start", None)
        return self.mixing if start is None else start * (1.0 + self.mixing)

    @torch.no_grad()
    def clip_mixing_(self, least: float = 1e-5) -> None:
        """Clip the entries of `mixing` to [least, 1], as the paper does, to (0, 1], after every update.

        Raises ValueError if `mixing` is masked, as it then has no updates, and if it is only a part of M_c.
        """
        if parametrize.is_parametrized(self, "mixing"):
            raise ValueError("mixing is masked: its weights are frozen, there is no update to clip after")
        if hasattr(self, "mixing_start"):
            raise ValueError("mixing_init='identity_plus_random': must be another for M_c to be clipped")
        self.mixing.clamp_(least, 1.0)

    # ------------------------------------------------------------ forward

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map tokens x (..., T, d_in), T <= length, to (..., T, d_out).

        Raises ValueError for inputs of another width or dtype, longer inputs, and a mask, which block sums cannot have.
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
        """phi(x W), (..., heads, T, hidden), for x (..., T, d_in) from position `first` on, W (heads, d_in, hidden)."""
        features = PHI[self.phi](x.unsqueeze(-3) @ weight)
        return self._rotated(features, torch.arange(first, first + x.shape[-2], device=x.device))

    def _values(self, x: torch.Tensor) -> torch.Tensor:
        """Values of x (..., T, d_in): (..., heads, T, hidden), with an additional column of ones if `normalise`."""
        v = x.unsqueeze(-3) @ self.value
        return pad(v, (0, 1), value=1.0) if self.normalise else v

    def _output(self, sums: torch.Tensor) -> torch.Tensor:
        """Map the weighted sums of values (..., heads, T, width) to (..., T, d_out)."""
        if self.normalise:
            sums = _divided(sums[..., :-1], sums[..., -1:])
        return (sums @ self.output).sum(dim=-3)

    # ------------------------------------------------------------ as a matrix

    def effective_matrix(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the attention matrix A (..., heads, T, T) of x (..., T, d_in); each head's output is A x W_V.

        A = (M_c kron 1) . (Q~ K~^T), elementwise. Its rows sum to 1 if `normalise`. It is lower triangular if causal;
        if not, its rank is at most hidden * rank(M_c). Needs O(T^2) memory. Raises ValueError as forward does.
        """
        self._check_input(x, None)
        q, k = self._features(x, self.query), self._features(x, self.key)
        of_block = torch.arange(x.shape[-2], device=x.device) // self.block
        matrix = self.mixing_matrix()[of_block][:, of_block] * (q @ k.mT)  # (..., heads, T, T)
        matrix = matrix.tril() if self.causal else matrix
        return _divided(matrix, matrix.sum(dim=-1, keepdim=True)) if self.normalise else matrix

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute forward from :meth:`effective_matrix`."""
        self._check_input(x, mask)
        heads = zip(self.effective_matrix(x).unbind(-3), self.value, self.output, strict=True)
        return sum((matrix @ (x @ value) @ output for matrix, value, output in heads), start=x.new_zeros(()))

    def obstacles(self) -> list[str]:
        """List the reasons why query and key cannot be merged."""
        return [_NOT_LINEAR, *super().obstacles()]

    # ------------------------------------------------------------ token by token

    def start(self) -> Stream:
        """Return an empty cache for :meth:`step`. Raises ValueError unless causal."""
        self._check_decoding()
        return Stream()

    def step(self, x: torch.Tensor, cache: Stream) -> torch.Tensor:
        """Map the next t tokens (..., t, d_in) to their outputs (..., t, d_out), and add them to the cache in place.

        Each token takes O(hidden^2) time; the first token of block i takes i times as much. Raises ValueError for
        inputs of another width or batch shape, and for more than `length` tokens in total.
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
        return self._output(torch.cat(sums, dim=-2) if sums else v)  # v is empty if there are no tokens


def _divided(sums: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sums / weights, 0 where weights are 0, as nothing was summed there."""
    return sums / torch.where(weights == 0, 1.0, weights)
