"""What the attentions share: sizes, weights from a seed, positions, norms, masks, and the cache of a decoder.

An attention is a subclass of :class:`Attention`; one that ends in softmax(q k^T) v is a subclass of
:class:`SoftmaxAttention`, which has the forward pass, decoding and the merged matrices from a few small methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Never, Protocol, TypedDict

import torch
from torch import nn
from torch.nn.functional import rms_norm as _rms_norm

from slth.attention.given import check_known, check_tokens
from slth.attention.mha import attend, causal_mask, check_mask, merged_attention
from slth.kernels.reference import masked_softmax
from slth.numbers import as_int
from slth.weights import inits, recipes

ROPE_BASE = 10000.0
NORM_EPS = 1e-5

#: How tensors that mix heads or features start. "natural": as their paper says (identity, zeros, ...); "random": normal
#: with standard deviation 1 / sqrt(fan_in), a ticket's source like any other weight; "identity_plus_random": what
#: "natural" says stays in place as a constant, and a random tensor is added to it, which alone is a parameter and may
#: be masked, so that an empty mask leaves the paper's start; "theory": uniform on (-1, 1), as the theory draws factors,
#: so that entries on a diagonal, which constructions keep, do not fade with fan_in.
MIXING_INITS = ("natural", "random", "identity_plus_random", "theory")


class Options(TypedDict, total=False):
    """The keywords that every attention takes, as :class:`Attention` explains them."""

    init: str
    seed: int
    prefix: str
    dtype: torch.dtype
    causal: bool
    rope: bool
    qk_norm: bool


@dataclass(frozen=True)
class Support:
    """What a mechanism can do.

    mask, causal, rope, qk_norm: whether the option is there. cache: what decoding keeps. construct: when
    `slth.construct.variant` finds tickets in it by solving; "" never, and its error says why.
    """

    mask: bool = True
    causal: bool = True
    rope: bool = True
    qk_norm: bool = True
    cache: str = "keys and values"
    construct: str = "without rope and qk_norm"


# ---------------------------------------------------------------- functions


def check_groups(heads: int, kv_heads: int | None) -> int:
    """The number of key and value heads, heads where None. Raises ValueError unless it divides heads."""
    if kv_heads is None:
        return heads
    kv_heads = as_int("kv_heads", kv_heads, 1)
    if heads % kv_heads:
        raise ValueError(f"kv_heads={kv_heads}: must divide heads={heads}")
    return kv_heads


def check_mixing_init(mixing_init: str) -> None:
    """Raise ValueError for a name that is not in MIXING_INITS."""
    if mixing_init not in MIXING_INITS:
        raise ValueError(f"mixing_init={mixing_init!r}: must be one of {', '.join(MIXING_INITS)}")


def rope(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, eq. 34) -> tensor of x's shape and dtype.

    x (..., T, n), positions (T,) int. Neighbours 2i and 2i + 1 of the last axis are a pair, turned by the angle
    position * 10000^(-2i / n), so that a product of two vectors depends on the difference of their positions. (Some
    libraries pair i and i + n/2 instead: the same up to an order of the columns.) Raises ValueError for an odd n.
    """
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"rope of width {width}: must be even, positions turn pairs")
    pair = torch.arange(0, width, 2, dtype=torch.float64, device=x.device)
    angle = positions.to(torch.float64)[:, None] * ROPE_BASE ** (-pair / width)  # (T, n/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2)


def eye(rows: int, columns: int) -> torch.Tensor:
    """Ones on the diagonal, float32, on the CPU, whatever torch's defaults are."""
    return torch.eye(rows, columns, dtype=torch.float32, device="cpu")


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """X / sqrt(mean(x^2) + 1e-5) over the last axis, nothing learned."""
    return _rms_norm(x, x.shape[-1:], eps=NORM_EPS)


def repeat_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Key or value heads (..., g, T, n), each for heads / g queries side by side -> (..., heads or 1, T, n).

    A single one is left to be broadcast.
    """
    groups = x.shape[-3]
    return x if groups in (1, heads) else x.repeat_interleave(heads // groups, dim=-3)


def softmax_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax(q k^T; mask) v of one head, the scale already in q, step by step as the formula has it.

    q, k (..., T, n), v (..., T, m), mask bool broadcastable to (..., T, T) -> (..., T, m). For `reference` methods.
    """
    logits = q @ k.mT  # (..., T, T)
    return (logits.softmax(-1) if mask is None else masked_softmax(logits, mask)) @ v


# ---------------------------------------------------------------- the cache of a decoder


class Cache(Protocol):
    """What decoding keeps, of whatever mechanism."""

    def bytes(self) -> int:
        """Bytes of memory held."""
        ...


class KVCache:
    """What a decoder keeps of the tokens so far: tensors (..., T, width) that grow along T."""

    def __init__(self) -> None:
        self.tensors: tuple[torch.Tensor, ...] = ()

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self.tensors[0].shape[-2] if self.tensors else 0

    def append(self, new: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Add new tokens, (..., t, width) each, and return all there are. Raises ValueError for another batch."""
        if not self.tensors:
            self.tensors = new
            return new
        for old, more in zip(self.tensors, new, strict=True):
            if old.shape[:-2] != more.shape[:-2]:
                raise ValueError(f"tokens of batch {tuple(more.shape[:-3])}: must be {tuple(old.shape[:-3])} as before")
        self.tensors = tuple(torch.cat(both, dim=-2) for both in zip(self.tensors, new, strict=True))
        return self.tensors

    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


# ---------------------------------------------------------------- attentions


class Attention(nn.Module):
    """An attention without biases on tokens (..., T, d_in) -> (..., T, d_out).

    hidden: key and value width of a head. init, a name of `slth.weights.inits.INITS`, draws the weights in float32
    under the names prefix + parameter name from seed; they are widened where dtype is float64. causal: token t attends
    to tokens up to t. rope: queries and keys are turned by their positions. qk_norm: they have RMS 1 before that.
    Raises ValueError for a size below 1, another dtype than float32 and float64, and an option the mechanism does not
    have.
    """

    output: nn.Parameter
    support: ClassVar[Support] = Support()
    inputs_first = True  # weights are (..., in, out)

    def __init__(
        self,
        d_in: int,
        d_out: int,
        heads: int,
        hidden: int,
        *,
        init: str = "theory",
        seed: int = 0,
        prefix: str = "",
        dtype: torch.dtype = torch.float32,
        causal: bool = False,
        rope: bool = False,
        qk_norm: bool = False,
        **unknown: Never,
    ) -> None:
        super().__init__()
        check_known(self, unknown)
        self.d_in, self.d_out, self.heads = (
            as_int("d_in", d_in, 1),
            as_int("d_out", d_out, 1),
            as_int("heads", heads, 1),
        )
        self.hidden, self.seed = as_int("hidden", hidden, 1), as_int("seed", seed)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: must be torch.float32 or torch.float64")
        inits.scaled(init, inits.Fan(1, 1))  # raises where it is unknown
        for option, wanted in (("causal", causal), ("rope", rope), ("qk_norm", qk_norm)):
            if wanted and not getattr(self.support, option):
                raise ValueError(f"{option}={wanted}: {type(self).__name__} has no {option}, leave it False")
        if rope and self.hidden % 2:
            raise ValueError(f"hidden={self.hidden}: must be even with rope, which turns pairs")
        self.init, self.prefix, self.dtype = init, prefix, dtype
        self.causal, self.rope, self.qk_norm = bool(causal), bool(rope), bool(qk_norm)

    # ------------------------------------------------------------ weights

    def _add(self, name: str, shape: tuple[int, ...], role: str = "") -> None:
        """A random parameter (..., in, out); role as in `slth.weights.inits.Fan`, the name itself where that is one."""
        role = role or (name if name in ("query", "key", "value", "output") else "")
        rows, columns = shape[-2:]
        width = rows if role == "output" else columns
        fan = inits.Fan(fan_in=rows, fan_out=columns, width=width, role=role)
        self._put(name, shape, recipes.draw(self.init, fan, seed=self.seed, name=self.prefix + name))

    def _add_mixing(
        self, name: str, start: torch.Tensor, mixing_init: str, natural: recipes.Draw | None = None
    ) -> None:
        """A parameter (..., in, out) by one of MIXING_INITS, whose paper starts it at `start`, or draws it `natural`.

        It is read with :meth:`_mixing`.
        """
        check_mixing_init(mixing_init)
        if mixing_init == "natural" and natural is None:
            setattr(self, name, nn.Parameter(start.to(self.dtype)))
            return
        if mixing_init == "natural" and natural is not None:
            draw = natural
        elif mixing_init == "theory":
            draw = recipes.Draw("uniform", 1.0, self.seed, self.prefix + name)
        else:
            draw = recipes.Draw("normal", start.shape[-2] ** -0.5, self.seed, self.prefix + name)
        self._put(name, tuple(start.shape), draw)
        if mixing_init == "identity_plus_random":
            self.register_buffer(f"{name}_start", start.to(self.dtype), persistent=False)

    def _mixing(self, name: str) -> torch.Tensor:
        """The tensor that mixes: the parameter, and the constant it is added to where there is one."""
        weight: torch.Tensor = getattr(self, name)
        start: torch.Tensor | None = getattr(self, f"{name}_start", None)
        return weight if start is None else start + weight

    def _put(self, name: str, shape: tuple[int, ...], draw: recipes.Draw) -> None:
        recipe = recipes.Recipe((draw,))
        setattr(self, name, nn.Parameter(recipe.tensor(shape).to(self.dtype)))
        recipes.remember(self, name, recipe)

    # ------------------------------------------------------------ tokens

    def _check(self, x: torch.Tensor) -> None:
        check_tokens(self, x, self.d_in)

    def _check_decoding(self) -> None:
        if not self.causal:
            raise ValueError("causal=False: decoding token by token needs causal=True")

    def _mask(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """The mask of a forward pass, with the causal one where that is wanted, checked."""
        length = x.shape[-2]
        if self.causal:
            return causal_mask(mask, length, length, x.device)
        return mask if mask is None else check_mask(mask, length, length)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        """Queries or keys (..., T, n), with RMS 1 where qk_norm says so."""
        return rms_norm(x) if self.qk_norm else x

    def _rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Queries or keys (..., T, n), turned by positions (T,) where rope says so."""
        return rope(x, positions) if self.rope else x

    # ------------------------------------------------------------ what each has

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """X (..., T, d_in), mask bool broadcastable to (..., T, T), True = attend -> (..., T, d_out)."""
        raise NotImplementedError

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """What forward computes, written as the formula has it: slow, and the oracle of its tests."""
        raise NotImplementedError

    def start(self) -> Cache:
        """An empty cache for :meth:`step`. Raises ValueError unless causal."""
        raise NotImplementedError

    def step(self, x: torch.Tensor, cache: Any) -> torch.Tensor:
        """The next token (..., 1, d_in) -> (..., 1, d_out), as forward has it; it is added to cache in place."""
        raise NotImplementedError

    # ------------------------------------------------------------ what it is

    def obstacles(self) -> list[str]:
        """What keeps its two pairs of factors from being merged, in words; empty where nothing does."""
        found = [("rope", "turns queries and keys by their positions"), ("qk_norm", "normalises queries and keys")]
        return [f"{name} {what}" for name, what in found if getattr(self, name)]

    def merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(W_QK, W_VO) per head: (heads, d_in, d_in) with 1 / sqrt(n) in it, and (heads, d_in, d_out).

        `slth.attention.merged_attention` of them is the forward pass without its causal mask. Raises ValueError where
        something stands between the factors (:meth:`obstacles`).
        """
        self._check_merging()
        return self._merged()

    def _check_merging(self) -> None:
        in_the_way = self.obstacles()
        if in_the_way:
            raise ValueError(f"{type(self).__name__} cannot be merged: {'; '.join(in_the_way)}")

    def _merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def options(self) -> Options:
        """The common options it was made with."""
        return Options(
            init=self.init,
            seed=self.seed,
            prefix=self.prefix,
            dtype=self.output.dtype,
            causal=self.causal,
            rope=self.rope,
            qk_norm=self.qk_norm,
        )

    def extra_repr(self) -> str:
        """Sizes and what is switched on, for print(module)."""
        sizes = f"d_in={self.d_in}, d_out={self.d_out}, heads={self.heads}, hidden={self.hidden}"
        return sizes + "".join(f", {name}=True" for name in ("causal", "rope", "qk_norm") if getattr(self, name))


class SoftmaxAttention(Attention):
    """An attention that ends in softmax(q k^T; mask) v for heads side by side.

    A subclass has parameters `query` (heads, d_in, n) and `output` (heads, m, d_out), and says what of the tokens is
    kept for decoding (:meth:`_stored`) and how that becomes keys and values (:meth:`_keys_values`).
    """

    def _weight(self, role: str) -> torch.Tensor:
        """The matrices (some heads, d_in, n) of a projection."""
        weight: torch.Tensor = getattr(self, role)
        return weight

    def _project(self, x: torch.Tensor, role: str) -> torch.Tensor:
        """X (..., 1, T, d_in) -> (..., some heads, T, n), before norms and positions."""
        return x @ self._weight(role)

    def _queries(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """X (..., 1, T, d_in), positions (T,) -> queries (..., heads, T, n), the scale 1 / sqrt(n) in them."""
        return self._rotated(self._normed(self._project(x, "query")), positions) / math.sqrt(self.hidden)

    def _stored(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """X (..., 1, T, d_in), positions (T,) -> what decoding keeps: tensors (..., some heads, T, width)."""
        raise NotImplementedError

    def _keys_values(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is kept -> keys (..., heads or 1, T, n), values (..., heads or 1, T, m)."""
        k, v = (repeat_heads(tensor, self.heads) for tensor in stored)
        return k, v

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool = False
    ) -> torch.Tensor:
        """Queries, keys, values -> (..., heads, T, m); causal: queries are the last of the keys."""
        return attend(q, k, v, mask, causal)

    def _output(self, heads: torch.Tensor) -> torch.Tensor:
        """Heads (..., heads, T, m) -> (..., T, d_out)."""
        return (heads @ self.output).sum(dim=-3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """X (..., T, d_in), mask bool broadcastable to (..., T, T), True = attend -> (..., T, d_out).

        Factors wider than d_in are merged first where nothing stands between them: the same function for less work.
        Raises ValueError for a mask row with no True (after the causal mask) that is not padding, or inputs of another
        width or dtype.
        """
        self._check(x)
        if self.hidden > self.d_in and not self.obstacles():
            return merged_attention(x, *self.merged(), mask, self.causal)
        x = x.unsqueeze(-3)  # (..., 1, T, d_in), shared by the heads
        positions = torch.arange(x.shape[-2], device=x.device)
        k, v = self._keys_values(self._stored(x, positions))
        q = self._queries(x, positions)
        return self._output(self._attend(q, k, v, mask, self.causal))

    def start(self) -> KVCache:
        """An empty cache for :meth:`step`. Raises ValueError unless causal."""
        self._check_decoding()
        return KVCache()

    def step(self, x: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """The next tokens (..., t, d_in), one or more -> (..., t, d_out), as forward has them after those in cache.

        They are added to cache in place. Raises ValueError for inputs of another width or batch.
        """
        self._check(x)
        x = x.unsqueeze(-3)
        new, past = x.shape[-2], cache.length
        positions = torch.arange(past, past + new, device=x.device)
        k, v = self._keys_values(cache.append(self._stored(x, positions)))
        q = self._queries(x, positions)
        return self._output(self._attend(q, k, v, None, causal=new > 1))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(W_Q, W_K, W_V, W_O) of each head, of which :meth:`merged` has the products W_Q W_K^T and W_V W_O.

        W_Q (heads, d_in, n) with 1 / sqrt(n) in it, W_K (heads or 1, d_in, n), W_V (heads or 1, d_in, m), W_O (heads,
        m, d_out): 1 where all heads share one. Where logits or weights of several heads are mixed, the heads are those
        before that. Raises ValueError as merged does.
        """
        self._check_merging()
        x = torch.eye(self.d_in, dtype=self.output.dtype, device=self.output.device)[None]  # all maps are linear in x
        positions = torch.zeros(self.d_in, dtype=torch.long, device=x.device)
        key, value = self._keys_values(self._stored(x, positions))
        return self._queries(x, positions), key, value, self.output

    def _merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value, output = self.factors()
        return query @ key.mT, value @ output
