"""The masks of a whole module, and the groups within which scores compete."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from slth.kernels import Cut, Selector
from slth.masking import masks, passes
from slth.masking.forms import kept
from slth.masking.masked import Masked
from slth.masking.parameters import MaskedParameter


class Group:
    """Parts of weights whose scores compete.

    keep: the final share kept; current: the share kept now. members: (the mask of a weight, the index of its part), in
    the order in which ties are resolved.
    """

    def __init__(self, name: str, keep: float, members: Sequence[tuple[Masked, int]]) -> None:
        self.name, self.keep, self.current = name, keep, keep
        self.members = list(members)
        self.offsets: dict[tuple[str, int], int] = {}  # (parameter name, part) -> index of its first score
        self.size = 0  # number of scores
        for masked, i in self.members:
            masked.groups[i] = self
            self.offsets[masked.path, i] = self.size
            self.size += masked.parts[i].of(masked.scores).numel()
        # selectors that no thread uses now, by device and share
        self._idle: dict[tuple[torch.device, float], list[Selector]] = {}

    @property
    def current(self) -> float:
        """The share kept now."""
        return self._current

    @current.setter
    def current(self, keep: float) -> None:
        if keep != getattr(self, "_current", None):
            self._current = keep
            # read by compiled graphs; has an axis, as torch.compile treats a scalar CPU tensor as a Python number
            self.share = torch.tensor([keep], dtype=torch.float64, device="cpu")

    def set_keep(self, keep: float) -> None:
        """Set both the final and the present share kept."""
        self.keep = self.current = keep
        for masked, i in self.members:
            masked.keep[i] = keep

    def held(self, weights: Mapping[str, Masked]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (parameter name, scores of the whole weight) for the members; masks in `weights` take precedence."""
        return ((masked.path, weights.get(masked.path, masked).scores) for masked, _ in self.members)

    def scores(self, weights: Mapping[str, Masked]) -> list[torch.Tensor]:
        """Return the scores of the members' parts; masks in `weights` take precedence over the members' own."""
        members = [(weights.get(masked.path, masked), i) for masked, i in self.members]
        return [masked.parts[i].of(masked.scores) for masked, i in members]

    @torch.no_grad()
    def cut(self, weights: Mapping[str, Masked], share: float = 1.0) -> Cut:
        """Cut the present scores so that `share` of the kept number remains. Raises ValueError if scores hold NaN."""
        scores = self.scores(weights)
        idle = self._idle.setdefault((scores[0].device, share), [])
        try:
            selector = idle.pop()
        except IndexError:  # all are in use
            selector = Selector()
        try:
            with self._naming():
                return selector.cut(scores, masks.count_kept(self.size, self.current * share))
        finally:
            idle.append(selector)

    def settle(self) -> None:
        """Wait for the check of the scores for NaN. Raises ValueError as :meth:`cut` does."""
        with self._naming():
            for selector in [one for idle in self._idle.values() for one in idle]:
                selector.settle()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Prefix errors with the name of the group."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


class Wrapped:
    """The masks of one wrapped module: `weights` by parameter name (a tied one by its first), and their groups."""

    leaves: passes.Pass | None = None  # is read instead of masked weights, while a training step runs

    def __init__(self, params: Sequence[MaskedParameter], weights: dict[str, Masked], groups: list[Group]):
        self.weights, self.groups = weights, groups
        self.paths = {param.path: param.paths for param in params}

    # forward passes

    def watch(self, module: nn.Module) -> None:
        """Open a pass for each call of the module, and of inner modules that may read a weight several times."""
        plain = _without_hooks(module)
        for inner in module.modules():
            opens = self._open if inner is module else self._join if inner not in plain and _reads(inner) else None
            if opens:
                inner.register_forward_pre_hook(opens, prepend=True)
                inner.register_forward_hook(self._close, always_call=True)

    def unwatch(self, module: nn.Module) -> None:
        """Remove the hooks of :meth:`watch` from the module as it is now."""
        for inner in module.modules():
            for hooks in (inner._forward_pre_hooks, inner._forward_hooks):
                for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                    del hooks[key]
                    inner._forward_hooks_always_called.pop(key, None)

    def _open(self, module: nn.Module, args: object) -> None:
        """Open a new pass, even within another one."""
        if not torch.compiler.is_compiling():
            passes.enter(self.leaves or passes.Pass(self._weights(module)), module, sys._getframe(1))

    def _join(self, module: nn.Module, args: object) -> None:
        """Join the open pass, or open a new one."""
        if not torch.compiler.is_compiling():
            weights = self._weights(module)
            own = weights if weights is self.weights else _masked(module)
            span = next(iter(own.values())).span()
            passes.join(span or self.own_pass(weights), module, sys._getframe(1))

    def own_pass(self, weights: Mapping[str, Masked]) -> passes.Pass:
        """Return a pass for a part of the module; passes that recompute layers in one backward pass share cuts."""
        if self.leaves and weights is self.weights:
            return self.leaves
        return passes.Pass(weights, self.cuts_in_backward() if weights is self.weights else None)

    def _close(self, module: nn.Module, args: object, output: object) -> None:
        if not torch.compiler.is_compiling():
            passes.leave(module)

    def _weights(self, module: nn.Module) -> Mapping[str, Masked]:
        """The masks that a call of the module reads; a replica has its own."""
        if not getattr(module, "_is_replica", False):
            return self.weights
        return self.weights | _masked(module)

    def cuts_in_backward(self) -> passes.Cuts:
        """Return the cuts shared within the present backward pass, as scores do not change in it; {} outside of one."""
        return passes.cuts_of_backward(id(self))

    def check(self) -> None:
        """Raise ValueError if scores hold NaN."""
        for group in self.groups:
            group.cut(self.weights)

    def set_progress(self, schedule: str, progress: float) -> None:
        """Move every group's keep along a schedule of SCHEDULES, from 1 at progress 0 to its final value at 1."""
        for group in self.groups:
            group.current = masks.scheduled_keep(group.keep, schedule, progress)

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the masks (bool) by parameter name. Raises ValueError if scores hold NaN."""
        return {path: kept(multiplier) for path, multiplier in self.multipliers().items()}

    def multipliers(self) -> dict[str, torch.Tensor]:
        """Return the multipliers of the weights by parameter name: bool if the mask only prunes, else int8.

        Raises ValueError if scores hold NaN.
        """
        with passes.within(passes.Pass(self.weights)) as span:
            for group in self.groups:
                span.cut(group)
                group.settle()
            return {path: m.mask() if m.form.prunes else m.multiplier() for path, m in self.weights.items()}

    @torch.no_grad()
    def set_masks(self, given: Mapping[str, torch.Tensor]) -> None:
        """Set the masks by parameter name: bool, or int8 multipliers for masks that do more than prune.

        Scores are set to the multipliers, and each group's keep to the share that the masks keep. Raises ValueError,
        with nothing changed, for other names, shapes or dtypes, for a group in which nothing would be kept, and for
        multipliers that no scores of the kind produce.
        """
        if given.keys() != self.weights.keys():
            odd = sorted(given.keys() ^ self.weights.keys())
            raise ValueError(f"masks: must be given for exactly the wrapped weights, differ in {', '.join(odd[:8])}")
        for path, mask in given.items():
            form = self.weights[path].form
            dtype = torch.bool if form.prunes else torch.int8
            if mask.dtype != dtype or mask.shape != form.shape:
                raise ValueError(f"mask of {path}: {mask.dtype} {tuple(mask.shape)}, must be {dtype} {form.shape}")
        scores = {path: self.weights[path].form.scores(mask) for path, mask in given.items()}
        shares = [self._share(group, scores) for group in self.groups]
        for group, share in zip(self.groups, shares, strict=True):
            if share == 0:
                raise ValueError(f"masks keep nothing in {group.name}: must keep at least one weight")
        # scores can produce any bool mask, but not all multipliers
        unsure = [path for path, masked in self.weights.items() if not masked.form.prunes]
        former = {path: masked.scores.clone() for path, masked in self.weights.items() if unsure}
        before = [(group.keep, group.current) for group in self.groups]
        self._set(scores, shares)
        result = self.multipliers() if unsure else {}
        if odd := [path for path in unsure if not torch.equal(result[path], given[path].to(result[path].device))]:
            self._set(former, [keep for keep, _ in before])
            for group, (_, current) in zip(self.groups, before, strict=True):
                group.current = current
            raise ValueError(f"mask of {odd[0]}: must be one that scores of {self.weights[odd[0]].form.kind} give")

    def _set(self, scores: Mapping[str, torch.Tensor], shares: Sequence[float]) -> None:
        for path, values in scores.items():
            self.weights[path].scores.copy_(values)
        for group, share in zip(self.groups, shares, strict=True):
            group.set_keep(share)

    @staticmethod
    def _share(group: Group, scores: Mapping[str, torch.Tensor]) -> float:
        """The share of a group's scores that are not 0."""
        parts = [masked.parts[i].of(scores[masked.path]) for masked, i in group.members]
        return sum(int(part.count_nonzero()) for part in parts) / sum(part.numel() for part in parts)

    def kept(self) -> int:
        """Return the number of weights kept now, over all groups."""
        return sum(masks.count_kept(group.size, group.current) for group in self.groups)

    def standing(self, masked: Masked) -> list[tuple[Group, int]]:
        """Return (group, index of the part's first score in it) for each part of a weight."""
        return [(group, group.offsets[masked.path, i]) for i, group in sorted(masked.groups.items())]

    def scores(self) -> list[nn.Parameter]:
        """Return the scores, in the order of the weights."""
        return [masked.scores for masked in self.weights.values()]


def _reads(module: nn.Module) -> bool:
    """Whether a module, itself no parametrization, contains masked weights."""
    return not isinstance(module, Masked | ParametrizationList) and any(isinstance(m, Masked) for m in module.modules())


def _without_hooks(module: nn.Module) -> set[nn.Module]:
    """Inner modules for which torch has a fast path; it is not taken if they have hooks."""
    layers = (m for m in module.modules() if isinstance(m, nn.TransformerEncoderLayer) and m is not module)
    return {inner for layer in layers for inner in layer.modules()}


def _masked(module: nn.Module) -> dict[str, Masked]:
    return {m.path: m for m in module.modules() if isinstance(m, Masked)}
