"""Time a training step of GPT-2 blocks with masked weights against dense training and masks by sorting."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import Function
from torch.nn.utils import parametrize
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

import slth
from slth.kernels.timing import Row, compare, interleave
from slth.models import gpt2
from slth.weights import inits, recipes

WHAT = "training_step"
KEEP = 0.5


class Shape(NamedTuple):
    """Blocks of GPT-2 of width d (a multiple of 64, the width of a head), and the batch and length of tokens."""

    blocks: int
    d: int
    batch: int
    length: int


class Blocks(nn.Module):
    """The blocks of a random GPT-2, without embeddings and head; attention: a name of transformers' implementations."""

    def __init__(self, shape: Shape, seed: int, attention: str = "sdpa") -> None:
        super().__init__()
        config = GPT2Config(n_layer=shape.blocks, n_embd=shape.d, n_head=shape.d // 64, n_positions=shape.length)
        block: Any = GPT2Block  # not typed in transformers
        config._attn_implementation = attention
        config.resid_pdrop = config.attn_pdrop = 0.0
        self.h = nn.ModuleList(block(config, layer_idx=i) for i in range(shape.blocks))
        made = gpt2.recipes(config, base_std=0.05, seed=seed)
        inside = {path.removeprefix("transformer."): r for path, r in made.items() if ".h." in path}
        recipes.fill(self, inside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (batch, length, d) to the same shape."""
        for block in self.h:
            out = block(x)
            x = out[0] if isinstance(out, tuple) else out
        return x


def rows(shape: Shape, *, rounds: int, seed: int) -> list[Row]:
    """Return one row per peer: seconds of forward, backward and SGD with momentum, on the same inputs.

    Errors are the largest difference of outputs to those of our masked blocks, before the first step, over their
    standard deviation; the dense blocks compute another function and have none. A peer may keep a different one of
    several equal scores, or one too many, which changes single outputs slightly. Raises RuntimeError if they change by
    0.2 or more.
    """
    x = inits.normal((shape.batch, shape.length, shape.d), 1.0, seed=seed, name="speed/tokens")
    aim = inits.normal((shape.batch, shape.length, shape.d), 1.0, seed=seed, name="speed/aim")
    ours = slth.wrap(Blocks(shape, seed), KEEP, seed=seed)
    models = {"ours": ours, "dense": Blocks(shape, seed)} | {
        name: masked_by(select, Blocks(shape, seed), ours) for name, select in SELECTIONS.items()
    }
    with torch.no_grad():
        outputs = {name: model(x) for name, model in models.items()}
    errors = {name: float((out - outputs["ours"]).abs().max() / outputs["ours"].std()) for name, out in outputs.items()}
    errors["dense"] = float("nan")
    for name, error in errors.items():
        if error >= 0.2:
            raise RuntimeError(
                f"{name} computes something else than ours (off by {error:.3g}): no time is worth telling"
            )
    timed = interleave({name: _step(model, x, aim) for name, model in models.items()}, rounds, warmups=2)
    own = timed.pop("ours")
    size = f"{shape.blocks} x d={shape.d}, {shape.batch} x {shape.length} tokens"
    conditions = {"rounds": rounds, "threads": torch.get_num_threads()}
    return [compare(WHAT, size, own, peer, theirs, 0.0, errors[peer]) | conditions for peer, theirs in timed.items()]


def _step(model: nn.Module, x: torch.Tensor, aim: torch.Tensor) -> Any:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2, momentum=0.9)

    def step(_: int) -> None:
        optimiser.zero_grad(set_to_none=True)
        (model(x) - aim).square().mean().backward()
        optimiser.step()

    return step


# ---------------------------------------------------------------- peers


class _Sorted(Function):
    """A mask by sorting all scores (as hidden-networks, Ramanujan et al. 2020, does)."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        flat = scores.flatten()
        mask = torch.zeros_like(flat)
        _, order = flat.sort()
        mask[order[flat.numel() - round(KEEP * flat.numel()) :]] = 1.0
        return mask.view_as(scores)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class _Compared(Function):
    """A mask by comparing with the k-th value."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        least = scores.flatten().kthvalue(scores.numel() - round(KEEP * scores.numel()) + 1).values
        return (scores >= least).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


SELECTIONS = {"full sort": _Sorted, "kthvalue": _Compared}


class Peer(nn.Module):
    """weight * mask(|scores|), with the mask of a peer's function for each part along the last axis."""

    def __init__(self, scores: torch.Tensor, select: type[Function], parts: int) -> None:
        super().__init__()
        self.scores, self.select, self.parts = nn.Parameter(scores.clone()), select, parts

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the masked weight."""
        magnitudes = self.scores.abs().chunk(self.parts, dim=-1)
        mask = [self.select.apply(part) for part in magnitudes]
        return weight * (mask[0] if self.parts == 1 else torch.cat(mask, dim=-1))


def masked_by(select: type[Function], model: nn.Module, ours: nn.Module) -> nn.Module:
    """Mask the blocks by a peer's selection, with the same scores as ours."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for path, masked in slth.handle(ours).weights.items():
        prefix, _, name = path.rpartition(".")
        peer = Peer(masked.scores.detach(), select, len(masked.parts))
        parametrize.register_parametrization(model.get_submodule(prefix), name, peer, unsafe=True)
    return model
