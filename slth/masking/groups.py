"""The masks of a whole module: groups within which scores compete, cut anew when scores have changed."""

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
    """Parts of weights whose scores compete: `keep` of them stay in the end, `current` of them now.

    members: (the mask of a weight, the index of its part) in the order in which ties are resolved.
    """

    def __init__(self, name: str, keep: float, members: Sequence[tuple[Masked, int]]) -> None:
        self.name, self.keep, self.current = name, keep, keep
        self.members = list(members)
        self.offsets: dict[tuple[str, int], int] = {}  # of a part's first score, by parameter name and index
        self.size = 0  # scores, of what is kept and what is not
        for masked, i in self.members:
            masked.groups[i] = self
            self.offsets[masked.path, i] = self.size
            self.size += masked.parts[i].of(masked.scores).numel()
        # those that no thread cuts with at the moment, by the share that they cut at
        self._idle: dict[tuple[torch.device, float], list[Selector]] = {}

    @property
    def current(self) -> float:
        """The share that the masks keep now."""
        return self._current

    @current.setter
    def current(self, keep: float) -> None:
        if keep != getattr(self, "_current", None):
            self._current = keep
            # as a graph is told; with an axis, as torch.compile takes one without for a number of Python's
            self.share = torch.tensor([keep], dtype=torch.float64, device="cpu")

    def set_keep(self, keep: float) -> None:
        """Keep this share from now on."""
        self.keep = self.current = keep
        for masked, i in self.members:
            masked.keep[i] = keep

    def held(self, weights: Mapping[str, Masked]) -> Iterator[tuple[str, torch.Tensor]]:
        """(parameter name, the scores of the whole weight) of the members, those named in `weights` as there."""
        return ((masked.path, weights.get(masked.path, masked).scores) for masked, _ in self.members)

    def scores(self, weights: Mapping[str, Masked]) -> list[torch.Tensor]:
        """The scores of the members, those named in `weights` as they are there."""
        found = [(weights.get(masked.path, masked), i) for masked, i in self.members]
        return [masked.parts[i].of(masked.scores) for masked, i in found]

    @torch.no_grad()
    def cut(self, weights: Mapping[str, Masked], share: float = 1.0) -> Cut:
        """The cut of the scores as they are, at a share of what is kept. Raises ValueError for those that hold NaN."""
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
        """Wait until it is known whether the scores hold NaN. Raises ValueError where they do, as cut does."""
        with self._naming():
            for selector in [one for idle in self._idle.values() for one in idle]:
                selector.settle()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors name the group."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


class Wrapped:
    """The masks of one wrapped module: `weights` by parameter name (a tied one by its first), and their groups."""

    leaves: passes.Pass | None = None  # what is read in place of masked weights, while a step of training runs

    def __init__(self, found: Sequence[MaskedParameter], weights: dict[str, Masked], groups: list[Group]):
        self.weights, self.groups = weights, groups
        self.paths = {param.path: param.paths for param in found}

    # forward passes

    def watch(self, module: nn.Module) -> None:
        """Let each call of the whole be a pass, and of what is inside, where a weight may be read several times."""
        plain = _without_hooks(module)
        for inner in module.modules():
            opens = self._open if inner is module else self._join if inner not in plain and _reads(inner) else None
            if opens:
                inner.register_forward_pre_hook(opens, prepend=True)
                inner.register_forward_hook(self._close, always_call=True)

    def unwatch(self, module: nn.Module) -> None:
        """Undo :meth:`watch` in what is in the module now."""
        for inner in module.modules():
            for hooks in (inner._forward_pre_hooks, inner._forward_hooks):
                for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                    del hooks[key]
                    inner._forward_hooks_always_called.pop(key, None)

    def _open(self, module: nn.Module, args: object) -> None:
        """A pass of its own, also within another one."""
        if not torch.compiler.is_compiling():
            passes.enter(self.leaves or passes.Pass(self._weights(module)), module, sys._getframe(1))

    def _join(self, module: nn.Module, args: object) -> None:
        """A part of the open pass, or a pass of its own."""
        if not torch.compiler.is_compiling():
            weights = self._weights(module)
            own = weights if weights is self.weights else _masked(module)
            span = next(iter(own.values())).span()
            passes.join(span or self.own_pass(weights), module, sys._getframe(1))

    def own_pass(self, weights: Mapping[str, Masked]) -> passes.Pass:
        """A pass of a part alone; those of one backward pass, which recompute layers, share their cuts."""
        if self.leaves and weights is self.weights:
            return self.leaves
        return passes.Pass(weights, self.cuts_in_backward() if weights is self.weights else None)

    def _close(self, module: nn.Module, args: object, output: object) -> None:
        if not torch.compiler.is_compiling():
            passes.leave(module)

    def _weights(self, module: nn.Module) -> Mapping[str, Masked]:
        """The masks that a call of the module meets: a replica holds its own."""
        if not getattr(module, "_is_replica", False):
            return self.weights
        return self.weights | _masked(module)

    def cuts_in_backward(self) -> passes.Cuts:
        """Cuts that the backward pass of this moment shares, or nobody's: scores rest while it runs."""
        return passes.cuts_of_backward(id(self))

    def check(self) -> None:
        """Raise ValueError for scores that hold NaN."""
        for group in self.groups:
            group.cut(self.weights)

    def set_progress(self, schedule: str, progress: float) -> None:
        """Move every group's keep along a schedule of `slth.masking.masks.SCHEDULES`, from 1 at progress 0 to its own
        at 1.
        """
        for group in self.groups:
            group.current = masks.scheduled_keep(group.keep, schedule, progress)

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks by parameter name, bool. Raises ValueError for scores that hold NaN."""
        return {path: kept(multiplier) for path, multiplier in self.multipliers().items()}

    def multipliers(self) -> dict[str, torch.Tensor]:
        """What weights are multiplied by, by parameter name: bool where masks prune and no more, else int8.

        Raises ValueError for scores that hold NaN.
        """
        with passes.within(passes.Pass(self.weights)) as span:
            for group in self.groups:
                span.cut(group)
                group.settle()
            return {path: m.mask() if m.form.prunes else m.multiplier() for path, m in self.weights.items()}

    @torch.no_grad()
    def set_masks(self, given: Mapping[str, torch.Tensor]) -> None:
        """Make these the masks, by parameter name: bool, or int8 multipliers where masks do more than prune.

        Scores become multipliers, and each group's keep what the masks keep. Raises ValueError, with nothing changed,
        for other names, shapes or dtypes, for a group in which nothing would be kept, and for multipliers that no
        scores of the kind give.
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
        unsure = [path for path, masked in self.weights.items() if not masked.form.prunes]  # scores give any bool mask
        former = {path: masked.scores.clone() for path, masked in self.weights.items() if unsure}
        before = [(group.keep, group.current) for group in self.groups]
        self._take(scores, shares)
        made = self.multipliers() if unsure else {}
        if odd := [path for path in unsure if not torch.equal(made[path], given[path].to(made[path].device))]:
            self._take(former, [keep for keep, _ in before])
            for group, (_, current) in zip(self.groups, before, strict=True):
                group.current = current
            raise ValueError(f"mask of {odd[0]}: must be one that scores of {self.weights[odd[0]].form.kind} give")

    def _take(self, scores: Mapping[str, torch.Tensor], shares: Sequence[float]) -> None:
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
        """Weights that the masks keep now, over all groups."""
        return sum(masks.count_kept(group.size, group.current) for group in self.groups)

    def standing(self, masked: Masked) -> list[tuple[Group, int]]:
        """The group of each part of a weight, and the part's first index there."""
        return [(group, group.offsets[masked.path, i]) for i, group in sorted(masked.groups.items())]

    def scores(self) -> list[nn.Parameter]:
        """What a search trains, in the order of the weights."""
        return [masked.scores for masked in self.weights.values()]


def _reads(module: nn.Module) -> bool:
    """Whether masked weights are below the module, which is no parametrization itself."""
    return not isinstance(module, Masked | ParametrizationList) and any(isinstance(m, Masked) for m in module.modules())


def _without_hooks(module: nn.Module) -> set[nn.Module]:
    """What is inside that torch has a fast path for, which it does not take where there are hooks."""
    layers = (m for m in module.modules() if isinstance(m, nn.TransformerEncoderLayer) and m is not module)
    return {inner for layer in layers for inner in layer.modules()}


def _masked(module: nn.Module) -> dict[str, Masked]:
    return {m.path: m for m in module.modules() if isinstance(m, Masked)}
