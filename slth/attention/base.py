"""The base class of attentions: sizes, weights from a seed, common options, and facts."""

from __future__ import annotations

from typing import Any, ClassVar, Never, TypedDict

import torch
from torch import nn

from slth.attention.arguments import check_facts, check_known, check_tokens
from slth.attention.cache import Cache
from slth.attention.facts import PROJECTIONS, Facts
from slth.attention.functional import causal_mask, check_mask, rms_norm
from slth.attention.positions import rope
from slth.building import Recorded
from slth.numbers import as_int
from slth.weights import antithetic, inits, recipes


class Options(TypedDict, total=False):
    """The options of every attention; see :class:`Attention`."""

    init: str
    seed: int
    prefix: str
    dtype: torch.dtype
    causal: bool
    rope: bool
    qk_norm: bool


def eye(rows: int, columns: int) -> torch.Tensor:
    """Return an identity matrix, float32 on the CPU, whatever torch's defaults are."""
    return torch.eye(rows, columns, dtype=torch.float32, device="cpu")


class Attention(Recorded):
    """An attention without biases on tokens (..., T, d_in) -> (..., T, d_out).

    A mechanism declares `facts` in the body of its own class, even if a parent has some, as these may not hold for it.
    It adds its parameters with :meth:`_add` and :meth:`_add_mixing`, and has a `forward` and, for its tests, a slow
    `reference`; also `start` and `step` if it can decode, and `_merged` if it can be merged.

    Args:
        d_in: width of the input tokens.
        d_out: width of the output tokens.
        heads: number of heads.
        hidden: key and value width of a head.
        init: a key of `slth.weights.inits.INITS`, or "antithetic" (`slth.weights.antithetic`).
        seed: of the weights, which are drawn in float32.
        prefix: weights are drawn under the names prefix + parameter name.
        dtype: torch.float32 or torch.float64.
        causal: whether token t attends only to tokens up to t.
        rope: whether queries and keys are rotated by their positions.
        qk_norm: whether queries and keys have RMS 1 before the rotation.

    Raises:
        ValueError: for a size below 1, a hidden that `facts.width_step` (with rope `facts.rope_step`) does not divide,
            another dtype, an unknown init, and an option that the mechanism does not have.
        TypeError: for a mechanism without facts.
    """

    output: nn.Parameter
    facts: ClassVar[Facts]
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
        check_facts(type(self))
        check_known(self, unknown)
        self.d_in, self.d_out, self.heads = (
            as_int("d_in", d_in, 1),
            as_int("d_out", d_out, 1),
            as_int("heads", heads, 1),
        )
        self.hidden, self.seed = as_int("hidden", hidden, 1), as_int("seed", seed)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: must be torch.float32 or torch.float64")
        if init != antithetic.INIT:
            inits.scaled(init, inits.Fan(1, 1))  # raises if it is unknown
        for option, value in (("causal", causal), ("rope", rope), ("qk_norm", qk_norm)):
            if value and not getattr(self.facts, option):
                raise ValueError(f"{option}={value}: {type(self).__name__} has no {option}, leave it False")
        step = self.facts.rope_step if rope else self.facts.width_step
        if self.hidden % step:
            raise ValueError(f"hidden={self.hidden}: must be divisible by {step}{' with rope' * bool(rope)}")
        self.init, self.prefix, self.dtype = init, prefix, dtype
        self.causal, self.rope, self.qk_norm = bool(causal), bool(rope), bool(qk_norm)

    # ------------------------------------------------------------ weights

    def _add(self, name: str, shape: tuple[int, ...]) -> None:
        """Add a random parameter (..., in, out), drawn by init for its role in `facts`."""
        role = self._role(name)
        role = role if role in PROJECTIONS else ""
        rows, columns = shape[-2:]
        width = rows if role == "output" else columns
        fan = inits.Fan(fan_in=rows, fan_out=columns, width=width, role=role)
        if self.init == antithetic.INIT:
            self._make(name, shape, antithetic.recipe(fan, len(shape), seed=self.seed, name=self.prefix + name))
        else:
            self._put(name, shape, recipes.draw(self.init, fan, seed=self.seed, name=self.prefix + name))

    def _add_mixing(
        self, name: str, start: torch.Tensor, mixing_init: str, natural: recipes.Draw | None = None
    ) -> None:
        """Add a parameter (..., in, out) initialised by one of MIXING_INITS; read it with :meth:`_mixing`.

        "natural" sets it to `start`, or draws it by `natural`. mixing_init is checked by :meth:`_check_mixing_init`.
        """
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
        """The mixing tensor: the parameter, plus its constant if there is one."""
        weight: torch.Tensor = getattr(self, name)
        start: torch.Tensor | None = getattr(self, f"{name}_start", None)
        return weight if start is None else start + weight

    def _put(self, name: str, shape: tuple[int, ...], draw: recipes.Draw) -> None:
        self._make(name, shape, recipes.Recipe((draw,)))

    def _make(self, name: str, shape: tuple[int, ...], recipe: recipes.Recipe) -> None:
        setattr(self, name, nn.Parameter(recipe.tensor(shape).to(self.dtype)))
        recipes.remember(self, name, recipe)

    def _check_mixing_init(self, mixing_init: str) -> None:
        """Raise ValueError for a mixing_init that the mechanism does not have."""
        if mixing_init not in self.facts.mixing_inits:
            raise ValueError(f"mixing_init={mixing_init!r}: must be one of {', '.join(self.facts.mixing_inits)}")

    # ------------------------------------------------------------ tokens

    def _check(self, x: torch.Tensor) -> None:
        check_tokens(self, x, self.d_in)

    def _check_decoding(self) -> None:
        if not self.causal:
            raise ValueError("causal=False: decoding token by token needs causal=True")

    def _mask(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """The checked mask of a forward pass, combined with the causal mask if `causal`."""
        length = x.shape[-2]
        if self.causal:
            return causal_mask(mask, length, length, x.device)
        return mask if mask is None else check_mask(mask, length, length)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise queries or keys (..., T, n) to RMS 1 if `qk_norm`."""
        return rms_norm(x) if self.qk_norm else x

    def _rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotate queries or keys (..., T, n) by positions (T,) if `rope`."""
        return rope(x, positions) if self.rope else x

    # ------------------------------------------------------------ to be overridden

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map tokens x (..., T, d_in) to (..., T, d_out); mask: bool broadcastable to (..., T, T), True = attend."""
        raise NotImplementedError

    def reference(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute forward directly from the formula: slow, as a reference for tests."""
        raise NotImplementedError

    def start(self) -> Cache:
        """Return an empty cache for :meth:`step`. Raises ValueError unless causal."""
        self._check_decoding()
        raise NotImplementedError

    def step(self, x: torch.Tensor, cache: Any) -> torch.Tensor:
        """Map the next token (..., 1, d_in) to its output (..., 1, d_out), and add it to the cache in place."""
        raise NotImplementedError

    # ------------------------------------------------------------ properties

    def obstacles(self) -> list[str]:
        """List the reasons why its pairs of factors cannot be merged; empty if they can."""
        switches = {"rope": "turns queries and keys by their positions", "qk_norm": "normalises queries and keys"}
        if self.facts.norm:
            switches[self.facts.norm] = "normalises each head before the output"
        return [f"{name} {what}" for name, what in switches.items() if getattr(self, name)]

    def roles(self) -> dict[str, str]:
        """Return parameter name -> role. Raises ValueError for a parameter without a role in its facts."""
        return {name: self._role(name) for name, _ in self.named_parameters()}

    def _role(self, name: str) -> str:
        if name not in self.facts.roles:
            known = ", ".join(self.facts.roles)
            raise ValueError(f"parameter {name!r} of {type(self).__name__}: its facts must say its role, as of {known}")
        return self.facts.roles[name]

    def merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (W_QK, W_VO): (heads, d_in, d_in), including the factor 1 / sqrt(n), and (heads, d_in, d_out).

        `slth.attention.merged_attention` with these is the forward pass without its causal mask. Raises ValueError if
        the factors cannot be merged (:meth:`obstacles`).
        """
        self._check_merging()
        return self._merged()

    def _check_merging(self) -> None:
        if obstacles := self.obstacles():
            raise ValueError(f"{type(self).__name__} cannot be merged: {'; '.join(obstacles)}")

    def _merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def options(self) -> Options:
        """Return the common options it was created with."""
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
        """Return sizes and options that are on, for print(module)."""
        sizes = f"d_in={self.d_in}, d_out={self.d_out}, heads={self.heads}, hidden={self.hidden}"
        return sizes + "".join(f", {name}=True" for name in ("causal", "rope", "qk_norm") if getattr(self, name))
