"""Put masks on the weights of any module, train their scores, and take the masks off again.

    model = slth.wrap(net, keep=0.3, policy="layer", weights="signed_constant", seed=0)

freezes the module's parameters, gives each weight scores (float32, of its shape), and shows the module masked weights
wherever it reads a weight: its code stays as it is. The scores are the only parameters with a gradient. A mask is made
once in a forward pass of the wrapped module, whatever reads it how often, and dropped at the end of it.

Per weight there is one :class:`Masked`, a parametrization in torch's sense; for the whole there is one
:class:`Wrapped`, which knows the groups within which scores compete, and which `handle(model)` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_post_hook

from slth import inits, masks, recipes, targets
from slth.freezing import Freezing
from slth.targets import Part, Target

_HANDLE = "_slth_wrapped"
_AROUND = {  # what is put around a module, and the name of the module in there
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
}

#: How scores start, from the weight's fan-in. "kaiming_uniform": U[-1/sqrt(fan_in), 1/sqrt(fan_in)] (Ramanujan et al.
#: 2020); "magnitude": |weight|, so that the first mask keeps the largest; "constant": all equal, ties by index.
SCORES: dict[str, Callable[[torch.Tensor, int, int, str], torch.Tensor]] = {
    "kaiming_uniform": lambda weight, fan_in, seed, name: inits.uniform(
        weight.shape, fan_in**-0.5, seed=seed, name=name, device=weight.device
    ),
    "magnitude": lambda weight, fan_in, seed, name: weight.detach().abs().float(),
    "constant": lambda weight, fan_in, seed, name: torch.full_like(weight, fan_in**-0.5, dtype=torch.float32),
}

# ---------------------------------------------------------------- when scores change

_steps = 0  # that any optimiser has taken


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _count_step(optimiser: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Notice a step: torch's fused optimisers change parameters without counting up their versions."""
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)

# ---------------------------------------------------------------- one weight


class _StraightThrough(Function):
    """The masked weight; backward as if the mask were |score|, to the scores alone (Ramanujan et al. 2020)."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, scores: torch.Tensor, pruned: torch.Tensor, free: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scores, free)
        return pruned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None, None]:
        weight, scores, free = ctx.saved_tensors
        slope = masks.score_gradient(grad, weight, scores)
        return None, slope if free is None else slope * free, None, None


def straight_through(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """The gate of edge-popup: weight where the mask keeps it, else 0; the score's gradient is g * weight * sign."""
    pruned = masked.pruned(weight.detach())
    out: torch.Tensor = _StraightThrough.apply(weight, masked.scores, pruned, masked.free)  # type: ignore[no-untyped-call]
    return out


def fixed(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """The gate of a mask that stays: gradients reach the kept weights, where these are trained, and no score."""
    return torch.where(masked.mask(), weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


#: What a weight is multiplied with: (masked, weight) -> effective weight, differentiable in the scores.
Gate = Callable[["Masked", torch.Tensor], torch.Tensor]


class Masked(nn.Module):
    """The mask of one weight, as a parametrization: scores in, masked weight out.

    `scores` float32 of the weight's shape. `gate` says how mask and weight meet; searches put in their own. `free`, if
    any, is bool of the weight's shape: scores elsewhere have no gradient; `freezing` says how it was drawn.
    `generation`, if any, is uint8 of the weight's shape: how often each weight was drawn anew. `keep` is float64: that
    of each part's group, so that a state_dict holds all that its masks follow from.
    """

    scores: nn.Parameter
    keep: torch.Tensor
    free: torch.Tensor | None
    generation: torch.Tensor | None
    threshold: torch.Tensor
    last_tie: torch.Tensor

    def __init__(self, scores: torch.Tensor, parts: Sequence[Part], path: str) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.parts, self.path = tuple(parts), path
        self.cuts: list[masks.Cut | masks.DeviceCut] = [masks.Cut(-1.0, -1)] * len(
            parts
        )  # of the groups that the parts belong to
        self.offsets = [0] * len(parts)  # of the parts within these
        self.gate: Gate = straight_through
        self.freezing: Freezing | None = None
        self.wrapped: Wrapped | None = None
        self._seen: dict[tuple[bool, bool], torch.Tensor] = {}  # what this forward pass has made
        self.register_buffer("free", None)
        self.register_buffer("generation", None)
        self.register_buffer("keep", torch.ones(len(parts), dtype=torch.float64, device=scores.device))
        # the cuts once more, as tensors, for graphs that must not be built anew when they move
        device = scores.device
        self.register_buffer("threshold", torch.full((len(parts),), -1.0, device=device), persistent=False)
        self.register_buffer("last_tie", torch.full((len(parts),), -1, device=device), persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Weight -> effective weight, of the same shape and dtype; made once where a forward pass is open."""
        if torch.compiler.is_compiling():
            return self.gate(self, weight)
        assert self.wrapped is not None
        if not self.wrapped.inside:
            self.wrapped.refresh()
            return self.gate(self, weight)
        key = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        made = self._seen.get(key)
        if made is None:
            made = self._seen[key] = self.gate(self, weight)
        return made

    def forget(self) -> None:
        """Drop what the last forward pass has made."""
        self._seen.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """What a search has added comes with a state_dict, and its keep holds from then on."""
        for name in ("free", "generation"):
            if getattr(self, name) is None and prefix + name in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[prefix + name], device=self.scores.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        for group in self.wrapped.groups if self.wrapped else ():
            for masked, i in group.members:
                if masked is self:
                    group.keep = group.current = float(self.keep[i])

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Masked:
        """Scores go with the module to another device, yet are float32 whatever the weights become."""

        def of_one_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(of_one_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    def set_cut(self, index: int, cut: masks.Cut | masks.DeviceCut, offset: int) -> None:
        """Where the group of a part is cut now, and the part's first index there."""
        self.cuts[index], self.offsets[index] = cut, offset
        self.threshold[index] = cut.threshold
        self.last_tie[index] = cut.last_tie - offset

    def mask(self) -> torch.Tensor:
        """The mask: bool, the weight's shape."""
        if torch.compiler.is_compiling():
            ones = torch.ones((), device=self.scores.device).expand(self.scores.shape)
            return self.pruned(ones) > 0
        kept = torch.empty(self.scores.shape, dtype=torch.bool, device=self.scores.device)
        for part, cut, offset in zip(self.parts, self.cuts, self.offsets, strict=True):
            part.of(kept).copy_(cut.mask(part.of(self.scores), offset))
        return kept

    def pruned(self, weight: torch.Tensor) -> torch.Tensor:
        """Weight where the mask keeps it, else exactly 0; without gradient."""
        if torch.compiler.is_compiling():
            return self._traced(weight)
        if len(self.parts) == 1:
            return masks.masked_weight(weight, self.scores, self.cuts[0], self.offsets[0])
        out = torch.empty_like(weight)
        for part, cut, offset in zip(self.parts, self.cuts, self.offsets, strict=True):
            masks.write_masked(part.of(weight), part.of(self.scores), cut, offset, part.of(out))
        return out

    def _traced(self, weight: torch.Tensor) -> torch.Tensor:
        made = [
            masks.traced_masked(part.of(weight), part.of(self.scores), self.threshold[i], self.last_tie[i])
            for i, part in enumerate(self.parts)
        ]
        return made[0] if len(made) == 1 else torch.cat(made, dim=self.parts[0].dim)


# ---------------------------------------------------------------- the whole


@dataclass
class Group:
    """Parts of weights whose scores compete: `keep` of them stay in the end, `current` of them now."""

    name: str
    keep: float
    members: list[tuple[Masked, int]] = field(default_factory=list)
    current: float = 0.0
    selector: masks.Selector = field(default_factory=masks.Selector)
    seen: tuple[object, ...] = ()
    held: list[nn.Parameter] = field(default_factory=list)  # the scores of `seen`: no others can have their ids

    def set_keep(self, keep: float) -> None:
        """Keep this share from now on."""
        self.keep = self.current = keep
        for masked, i in self.members:
            masked.keep[i] = keep

    def refresh(self) -> None:
        """Cut anew where scores or keep have changed. Raises ValueError for scores that hold NaN."""
        state = (self.current, _steps, *((id(m.scores), m.scores._version) for m, _ in self.members))
        if state == self.seen:
            return
        parts = [masked.parts[i].of(masked.scores.detach()) for masked, i in self.members]
        with self._naming():
            cut = self.selector.cut(parts, self.current)
        offset = 0
        for (masked, i), part in zip(self.members, parts, strict=True):
            masked.set_cut(i, cut, offset)
            offset += part.numel()
        self.seen, self.held = state, [masked.scores for masked, _ in self.members]

    def settle(self) -> None:
        """Wait until it is known whether the scores hold NaN. Raises ValueError where they do, as refresh does."""
        with self._naming():
            self.selector.settle()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors name the group, which is then cut anew the next time."""
        try:
            yield
        except ValueError as error:
            self.seen = ()
            raise ValueError(f"{self.name}: {error}") from error


class Wrapped:
    """The masks of one wrapped module: `weights` by parameter name (a tied one by its first), and their groups."""

    def __init__(self, module: nn.Module, found: Sequence[Target], weights: dict[str, Masked], groups: list[Group]):
        self.weights, self.groups = weights, groups
        self.paths = {target.path: target.paths for target in found}
        self.inside = False  # a forward pass of the whole
        self.trainable = {name: p.requires_grad for name, p in module.named_parameters(remove_duplicate=False)}
        self.hooks: list[Any] = []

    # a forward pass of the whole: cuts are looked at before it, masked weights dropped after it

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _open(self, module: nn.Module, args: object) -> None:
        self._forget()  # what a pass that was interrupted may have left
        self.refresh()
        self.inside = True

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _close(self, module: nn.Module, args: object, output: object) -> None:
        self.inside = False
        self._forget()

    def _forget(self) -> None:
        for masked in self.weights.values():
            masked.forget()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the masks up to date with the scores; cheap where nothing has changed."""
        for group in self.groups:
            group.refresh()

    def changed(self) -> None:
        """Say that scores were changed in a way that torch does not notice (through `.data`)."""
        for group in self.groups:
            group.seen = ()

    def set_progress(self, schedule: str, progress: float) -> None:
        """Move every group's keep along a schedule of `slth.masks.SCHEDULES`, from 1 at progress 0 to its own at 1."""
        for group in self.groups:
            group.current = masks.scheduled_keep(group.keep, schedule, progress)

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks by parameter name, bool. Raises ValueError for scores that hold NaN."""
        self.refresh()
        for group in self.groups:
            group.settle()
        return {path: masked.mask() for path, masked in self.weights.items()}

    @torch.no_grad()
    def set_masks(self, given: Mapping[str, torch.Tensor]) -> None:
        """Make these the masks, bool by parameter name: scores become 1 and 0, each group's keep what the masks keep.

        Raises ValueError for other names or shapes, and for a group in which nothing would be kept.
        """
        if given.keys() != self.weights.keys():
            odd = sorted(given.keys() ^ self.weights.keys())
            raise ValueError(f"masks: must be given for exactly the wrapped weights, differ in {', '.join(odd[:8])}")
        for path, mask in given.items():
            if mask.dtype != torch.bool or mask.shape != self.weights[path].scores.shape:
                shape = tuple(self.weights[path].scores.shape)
                raise ValueError(f"mask of {path}: {mask.dtype} {tuple(mask.shape)}, must be torch.bool {shape}")
        counts = [self._count(group, given) for group in self.groups]
        for group, (kept, _) in zip(self.groups, counts, strict=True):
            if kept == 0:
                raise ValueError(f"masks keep nothing in {group.name}: must keep at least one weight")
        for path, mask in given.items():
            self.weights[path].scores.copy_(mask)
        for group, (kept, total) in zip(self.groups, counts, strict=True):
            group.set_keep(kept / total)
        self.refresh()

    @staticmethod
    def _count(group: Group, given: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        parts = [masked.parts[i].of(given[masked.path]) for masked, i in group.members]
        return sum(int(part.sum()) for part in parts), sum(part.numel() for part in parts)

    def kept(self) -> int:
        """Weights that the masks keep now, over all groups."""
        return sum(masks.count_kept(self.size(group), group.current) for group in self.groups)

    @staticmethod
    def size(group: Group) -> int:
        """Weights of a group, kept or not."""
        return sum(masked.parts[i].of(masked.scores).numel() for masked, i in group.members)

    def scores(self) -> list[nn.Parameter]:
        """What a search trains, in the order of the weights."""
        return [masked.scores for masked in self.weights.values()]


def wrap(
    module: nn.Module,
    keep: float | Mapping[str, float] = 0.5,
    policy: str | Mapping[str, str | Sequence[str]] = "layer",
    targets: str | Sequence[str] | None = None,
    weights: str | Mapping[str, str] | None = None,
    scores: str = "kaiming_uniform",
    seed: int = 0,
) -> nn.Module:
    """Mask the weights of a module, in place; :func:`unwrap` takes the masks off. Returns the module.

    Args:
        module: any module. All its parameters lose requires_grad (until they are unwrapped); scores are added.
        keep: the share of weights kept, in (0, 1]; or by shell pattern of parameter names, where the first match counts
            and every weight must match.
        policy: "layer": each weight keeps its own share (each of query, key and value where they are fused);
            "global": all weights compete; or groups by name, {"qk": ["*query*", "*key*"]}: what a pattern matches
            competes within its group, the rest by layer.
        targets: shell patterns of the parameters to mask; None: all weights (see `slth.targets`), no biases and no
            normalisation.
        weights: None leaves the weights as they are. A name of `slth.inits.INITS`, or names by pattern, draws them anew
            from `slth.inits` by seed and parameter name, fan-scaled inits for the kept share of the fan; only such
            weights (and those of our own models) can be told by a seed in a ticket.
        scores: how scores start, a key of SCORES.
        seed: of scores and weights, an int.

    Everything is checked before anything is changed. Raises ValueError for values outside the above, a module with
    nothing to mask, one that is wrapped already, or NaN scores.
    Source: straight-through scores by magnitude, Ramanujan et al. 2020 (arXiv 1911.13299).
    """
    if any(isinstance(m, Masked) for m in module.modules()):
        raise ValueError(f"{type(module).__name__} is wrapped already: unwrap it first")
    if scores not in SCORES:
        raise ValueError(f"scores={scores!r}: must be one of {', '.join(SCORES)}")
    found = _find(module, targets)
    keeps = _keeps(found, keep)
    members = _grouped(found, keeps, policy)
    drawn = _recipes(found, keeps, weights, seed)
    for target in found:
        if target.path not in drawn and target.parameter.isnan().any():
            raise ValueError(f"{target.path} holds NaN: weights must be numbers, or be drawn anew by weights=...")

    recipes.fill(module, drawn)
    weights_of: dict[str, Masked] = {}
    for target in found:
        fan_in = target.fan(target.parts[0], 1.0).fan_in
        start = SCORES[scores](target.parameter.detach(), fan_in, seed, f"scores/{target.path}")
        weights_of[target.path] = Masked(start, target.parts, target.path)
    groups = [Group(name, share, [(weights_of[p], i) for p, i in parts]) for name, share, parts in members]
    for group in groups:
        group.set_keep(group.keep)
    wrapped = Wrapped(module, found, weights_of, groups)
    wrapped.refresh()
    _attach(module, found, wrapped)
    return module


def unwrap(module: nn.Module) -> nn.Module:
    """Take the masks off, in place: pruned weights are 0, kept ones what they were, all as plain parameters again.

    Ties, requires_grad and hooks are restored. Returns the module. Raises ValueError where it is not wrapped.
    """
    wrapped = handle(module)
    module = root(module)
    values = {path: weight.detach() for path, weight in effective(module).items()}
    for hook in wrapped.hooks:
        hook.remove()
    for path, places in wrapped.paths.items():
        for place in places:
            owner, name = _place(module, place)
            with torch.no_grad():
                owner.parametrizations[name].original.copy_(values[path])  # type: ignore[index, union-attr]
            _class_of_its_own(owner)
            parametrize.remove_parametrizations(owner, name, leave_parametrized=False)
            if isinstance(owner, nn.RNNBase) and not parametrize.is_parametrized(owner):
                owner._init_flat_weights()
    _as_before(module, wrapped.trainable)
    del module.__dict__[_HANDLE]
    return module


def _class_of_its_own(owner: nn.Module) -> None:
    """A class that no copy shares: the one that shows masked weights is handed on by deepcopy."""
    shared = type(owner)
    content = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    owner.__class__ = type(shared.__name__, shared.__bases__, content)


def _as_before(module: nn.Module, trainable: Mapping[str, bool]) -> None:
    """Parameters in the order they had, each with its requires_grad."""
    present = dict(module.named_parameters(remove_duplicate=False))
    for path in filter(present.__contains__, trainable):
        owner, name = _place(module, path)
        owner._parameters[name] = owner._parameters.pop(name)  # behind those that came before it
        present[path].requires_grad_(trainable[path])


def handle(module: nn.Module) -> Wrapped:
    """The masks of a wrapped module, also where DDP or torch.compile stand around it.

    Raises ValueError where the module is not wrapped.
    """
    wrapped = root(module).__dict__.get(_HANDLE)
    if wrapped is None:
        raise ValueError(f"{type(module).__name__} is not wrapped: must come from slth.wrap")
    assert isinstance(wrapped, Wrapped)
    return wrapped


def root(module: nn.Module) -> nn.Module:
    """The module itself, without what data parallelism and torch.compile put around it."""
    while _HANDLE not in module.__dict__:
        inner = module._modules.get(_AROUND.get(type(module).__name__, ""))
        if inner is None:
            break
        module = inner
    return module


def random_weight(module: nn.Module, path: str) -> nn.Parameter:
    """The weight under a mask, by its parameter name: unpruned, as it was drawn."""
    owner, name = _place(root(module), path)
    weight = owner.parametrizations[name].original  # type: ignore[index, union-attr]
    assert isinstance(weight, nn.Parameter)
    return weight


@torch.no_grad()
def effective(module: nn.Module) -> dict[str, torch.Tensor]:
    """The masked weights that evaluation sees, by parameter name."""
    wrapped = handle(module)
    wrapped.refresh()
    with _evaluating(wrapped):
        return {path: masked.gate(masked, random_weight(module, path)) for path, masked in wrapped.weights.items()}


@contextmanager
def _evaluating(wrapped: Wrapped) -> Iterator[None]:
    before = {path: masked.training for path, masked in wrapped.weights.items()}
    try:
        for masked in wrapped.weights.values():
            masked.eval()
        yield
    finally:
        for path, masked in wrapped.weights.items():
            masked.train(before[path])


# ---------------------------------------------------------------- what wrap is asked for


def _find(module: nn.Module, patterns: str | Sequence[str] | None) -> list[Target]:
    return targets.find(module, [patterns] if isinstance(patterns, str) else patterns)


def _keeps(found: Sequence[Target], keep: float | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(keep, Mapping):
        masks.check_keep(keep)
        return {target.path: keep for target in found}
    for value in keep.values():
        masks.check_keep(value)
    _all_used("keep", keep, found)
    matched = {target.path: targets.first_match(keep, target.paths) for target in found}
    for path, share in matched.items():
        if share is None:
            raise ValueError(f"keep: no pattern of {', '.join(keep)} matches {path}; one must")
    return {path: share for path, share in matched.items() if share is not None}


def _grouped(
    found: Sequence[Target], keeps: Mapping[str, float], policy: str | Mapping[str, str | Sequence[str]]
) -> list[tuple[str, float, list[tuple[str, int]]]]:
    """(name, keep, [(parameter name, index of its part)]) of each group."""
    if isinstance(policy, str) and policy not in ("layer", "global"):
        raise ValueError(f'policy={policy!r}: must be "layer", "global" or patterns by group name')
    named = {} if isinstance(policy, str) else _patterns(policy)
    _all_used("policy", named, found)
    groups: dict[str, list[tuple[str, int]]] = {}
    for target in found:
        group = targets.first_match(named, target.paths)
        for part in target.parts:
            alone = target.path + (f"[{part.role or part.index}]" if part.count > 1 else "")
            groups.setdefault("all weights" if policy == "global" else group or alone, []).append(
                (target.path, part.index)
            )
    result = []
    for name, parts in groups.items():
        shares = {keeps[path] for path, _ in parts}
        if len(shares) > 1:
            raise ValueError(f"keep={sorted(shares)} within the group {name!r}: must be one share for a group")
        result.append((name, shares.pop(), parts))
    return result


def _patterns(policy: Mapping[str, str | Sequence[str]]) -> dict[str, str]:
    """Pattern -> name of its group."""
    return {p: name for name, given in policy.items() for p in ([given] if isinstance(given, str) else given)}


def _recipes(
    found: Sequence[Target], keeps: Mapping[str, float], weights: str | Mapping[str, str] | None, seed: int
) -> dict[str, recipes.Recipe]:
    if weights is None:
        return {}
    table = {"*": weights} if isinstance(weights, str) else dict(weights)
    _all_used("weights", table, found)
    drawn = {}
    for target in found:
        init = targets.first_match(table, target.paths)
        if init is not None:
            drawn[target.path] = _recipe(target, init, keeps[target.path], seed)
    return drawn


def _recipe(target: Target, init: str, keep: float, seed: int) -> recipes.Recipe:
    draws = []
    for part in target.parts:
        name = target.path + (f".{part.role or part.index}" if part.count > 1 else "")
        draws.append(recipes.draw(init, target.fan(part, keep), seed=seed, name=name))
    return recipes.Recipe(tuple(draws), target.parts[0].dim)


def _all_used(what: str, table: Mapping[str, object], found: Sequence[Target]) -> None:
    for pattern in table:
        if not any(targets.first_match({pattern: True}, target.paths) for target in found):
            raise ValueError(f"{what}: the pattern {pattern!r} matches no weight that is masked")


# ---------------------------------------------------------------- what wrap changes


def _attach(module: nn.Module, found: Sequence[Target], wrapped: Wrapped) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for target in found:
        masked = wrapped.weights[target.path]
        masked.wrapped = wrapped
        masked.train(module.training)
        for owner, name in target.places:
            parametrize.register_parametrization(owner, name, masked, unsafe=True)
            if isinstance(owner, nn.RNNBase):
                _read_afresh(owner)
    module.__dict__[_HANDLE] = wrapped
    wrapped.hooks = [
        module.register_forward_pre_hook(wrapped._open, prepend=True),
        module.register_forward_hook(wrapped._close, always_call=True),
    ]


def _read_afresh(rnn: nn.RNNBase) -> None:
    """Let a recurrent layer look its weights up at each use, where it would keep those of the last forward pass."""
    rnn.__dict__.pop("_flat_weights", None)
    rnn.__dict__["_flat_weight_refs"] = [None] * len(rnn._flat_weights_names)
    type(rnn)._flat_weights = property(  # type: ignore[assignment] # parametrization has given it a class of its own
        lambda self: [getattr(self, name) for name in self._flat_weights_names], lambda self, weights: None
    )


def _place(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, name = path.rpartition(".")
    return module.get_submodule(prefix), name
