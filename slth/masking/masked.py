"""The mask of one weight: a parametrization that computes the masked weight from scores, by a gate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from slth import kernels
from slth.fields import require_dataclass
from slth.kernels import Cut
from slth.masking import masks, passes, state, traits, writing
from slth.masking.cutting import traced_cut
from slth.masking.forms import Form, kept, through, times
from slth.masking.parameters import Part
from slth.watched import exporting, followed, traced, watched
from slth.weights.recipes import Recipe

if TYPE_CHECKING:
    from slth.masking.groups import Group, Wrapped

# ---------------------------------------------------------------- gates


@state.named(state.PLAIN)
def straight_through(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """Multiply a weight by multiplier and scale, with a straight-through gradient for scores: the gate of edge-popup.

    For plain masks the value is the weight where it is kept, else 0, and the gradient of a score is gradient * weight
    * sign(score). Other kinds of masks define their own (`Kind.slope`). A model exported by `torch.export` is for
    evaluation: it has no gradient.
    """
    pruned = masked.pruned(weight.detach())
    if exporting() or not followed(weight, *masked.trained):
        return masked.scaled(pruned)
    if masked.form.prunes:
        return masked.scaled(kernels.straight_through(weight, masked.scores, pruned, masked.free))
    return masked.scaled(through(masked.form, weight, masked.scores, pruned))


@state.named(state.PLAIN)
def fixed(masked: Masked, weight: torch.Tensor) -> torch.Tensor:
    """Apply a mask that does not change: only kept weights have gradients (if they are trained), scores have none."""
    return masked.scaled(masked.multiplied(weight))


#: The keys of an entry other than traits.
_OF_AN_ENTRY = {"version", "gate", "kind", "mask", "scale", "recipe", "parts", "groups", "current", "buffers"}

#: (masked, weight) -> effective weight, differentiable in the scores.
Gate = Callable[["Masked", torch.Tensor], torch.Tensor]


class Masked(nn.Module):
    """The mask of one weight, a parametrization that maps the weight to the masked weight.

    Attributes:
        form: the kind and scale of the mask.
        scores: float32, of the shape that the kind requires (the weight's, except for blocks).
        factors: the learned scale, float32; None without one.
        gate: how the mask is applied; searches set their own.
        free: bool of the weight's shape, or None; scores have no gradient where it is False.
        keep: float64, the keep of each part's group, so that a state_dict determines its masks.
        traits: what a ticket must store of the search, by key.

    Further state of a search is stored in buffers of its own (:meth:`put`).
    """

    scores: nn.Parameter
    factors: nn.Parameter | None
    keep: torch.Tensor
    free: torch.Tensor | None
    search = ""  # the class of the last search that was begun here; not part of a state_dict

    def __init__(
        self,
        scores: torch.Tensor,
        parts: Sequence[Part],
        path: str,
        form: Form | None = None,
    ) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.parts, self.path = tuple(parts), path
        self.form = form or Form(tuple(scores.shape))
        self.register_parameter("factors", self.form.factors(scores.device))
        self.groups: dict[int, Group] = {}  # index of a part -> its group
        self.gate: Gate = straight_through
        self.traits: dict[str, traits.Trait] = {}  # by key
        self.recipe: Recipe | None = None  # of the weight, as it was last saved or loaded
        self.wrapped: Wrapped | None = None
        self.register_buffer("free", None)
        self.register_buffer(
            "keep", _moved(torch.ones(len(parts), dtype=torch.float64, device="cpu"), lambda t: t.to(scores.device))
        )

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the effective weight, of the same shape and dtype; computed once per forward pass.

        Raises ValueError in torch.jit.trace and torch.fx.symbolic_trace, which would record the mask as a constant.
        """
        if watched():
            return self.gate(self, weight)
        if traced():
            raise ValueError(f"{self.path} is masked, its mask would be traced as a constant: slth.unwrap it first")
        return (self.span() or self._own_pass()).masked_weight(self, weight)

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        """Raise ValueError on assignment to the weight; NotImplementedError while torch registers the mask."""
        if self.wrapped is not None:
            writing.refuse(self.path)
        raise NotImplementedError

    def __prepare_scriptable__(self) -> None:
        """Raise ValueError in torch.jit.script, which calls this on every module."""
        raise ValueError(f"{self.path} is masked, which torch.jit.script cannot compile: slth.unwrap it first")

    def span(self) -> passes.Pass | None:
        """Return the pass in which this mask is read now; None outside of all passes."""
        return passes.running(self) or passes.recomputed(self, self._own_pass)

    def _own_pass(self) -> passes.Pass:
        """Make a pass for a read outside of all passes. Recomputations in one backward pass share their cuts."""
        if self.wrapped is None:
            return passes.Pass({self.path: self})
        weights = self.wrapped.weights
        if weights.get(self.path) is self:
            return self.wrapped.own_pass(weights)
        return passes.Pass({**weights, self.path: self})  # a replica

    @torch.no_grad()
    def evaluated(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the effective weight of eval mode, without changing the mode."""
        span = passes.running(self) or self._own_pass()
        still = copy.copy(self)  # shares all state, but the mode of the original does not change
        still.training = False
        with passes.within(passes.Pass({**span.weights, self.path: still}, span.cuts)):
            return still.gate(still, weight)

    # what searches add

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Add a search's buffer; it is saved, loaded, copied and moved with the scores.

        Raises ValueError if the name is already used for another attribute.
        """
        self._check_name(name)
        keep = self._buffers.pop("keep")
        self.register_buffer(name, tensor)
        self.register_buffer("keep", keep)  # must stay the last entry in a state_dict

    def _check_name(self, name: str) -> None:
        if not name.isidentifier() or name == "keep" or (name not in self._buffers and hasattr(self, name)):
            raise ValueError(f"has the buffer {name!r}: must be a name that a mask has for nothing else")

    def buffer(self, name: str) -> torch.Tensor | None:
        """Return a search's buffer by name, None if there is none."""
        return self._buffers.get(name)

    def add(self, trait: traits.Trait) -> None:
        """Add a trait, which a ticket stores. Raises ValueError if its class is not a dataclass."""
        require_dataclass(type(trait))
        self.traits = self.traits | {trait.key: trait}

    def begin(self, search: str) -> None:
        """Remove the gate, traits and buffers of an earlier search, so that one of class `search` can begin.

        Traits that record how the random weight was drawn (those with a tensor in a ticket), and their buffers, are
        kept. So are the buffers of a search of the same class; if the earlier class is unknown, buffers that belong to
        no trait are kept.
        """
        known = traits.known().values()
        for trait in known:
            trait.leave(self)
        lasting = [trait for trait in known if trait.tensor]
        if search != self.search:
            unknown = [] if self.search else traits.unclaimed(self._added)
            for name in set(self._added) - {trait.buffer for trait in lasting} - set(unknown):
                self._buffers[name] = None
        self.traits = {trait.key: self.traits[trait.key] for trait in lasting if trait.key in self.traits}
        self.gate, self.search = straight_through, search

    @property
    def _added(self) -> list[str]:
        """The names of buffers added by searches."""
        return [name for name, tensor in self._buffers.items() if name != "keep" and tensor is not None]

    # the entry of a state_dict

    @property
    def made_by(self) -> str:
        """The name of the search that set gate and buffers: "edge-popup" (also without a search), "biprop", ..."""
        gate = state.describe(self.gate)
        kinds = [str(gate.get("name", gate.get("own"))), *map(traits.kind_of, self._added)]
        return " and ".join(kinds[1:] if kinds[0] == state.PLAIN and kinds[1:] else kinds)

    def get_extra_state(self) -> torch.Tensor:
        """Encode gate, traits, recipe, parts, groups and their present keep (`slth.masking.state`) for a state_dict."""
        return state.encode(self._entry())

    def _entry(self) -> dict[str, Any]:
        standing = self.wrapped.standing(self) if self.wrapped else []
        return {
            "gate": state.describe(self.gate),
            "kind": self.made_by,
            **self.form.entry(),
            **traits.entry(self),
            "recipe": self.recipe and self.recipe.to_json(),
            "parts": [list(astuple(part)) for part in self.parts],
            "groups": [[group.name if len(group.members) > 1 else "", offset] for group, offset in standing],
            "current": [group.current for group, _ in standing],
            **({"buffers": own} if (own := traits.unclaimed(self._added)) else {}),
        }

    def set_extra_state(self, encoded: torch.Tensor) -> None:
        """Restore the result of :meth:`get_extra_state`. Raises ValueError if it cannot be decoded."""
        entry = state.decode(encoded)
        self.gate = state.revive(entry["gate"], self.gate)
        self.traits = traits.from_entry(entry, _OF_AN_ENTRY)
        self.recipe = entry["recipe"] and Recipe.of(entry["recipe"])
        self._keep(entry["current"])

    def check(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Raise ValueError, with the weight's name, for a state_dict that this mask cannot load."""
        with state.refusing(self.path):
            scores = state_dict.get(prefix + "scores")
            if isinstance(scores, torch.Tensor) and scores.shape != self.scores.shape:
                raise ValueError(f"has shape {tuple(scores.shape)}, must be {tuple(self.scores.shape)}")
            if prefix + state.KEY not in state_dict:
                return  # saved before there were entries
            entry, own = state.decode(state_dict[prefix + state.KEY]), self._entry()
            self.form.check_entry(entry)
            if entry["parts"] != own["parts"]:
                raise ValueError(f"has parts {state.roles(entry['parts'])}, must have {state.roles(own['parts'])}")
            if entry["groups"] != own["groups"]:
                there, here = state.policies(entry["groups"]), state.policies(own["groups"])
                raise ValueError(f"competes {there}, here {here}: wrap this model with the policy of the saved one")
            if self.made_by not in (state.PLAIN, entry["kind"]):
                raise ValueError(
                    f"is of {entry['kind']}, the model of {self.made_by}: load it into a freshly wrapped one"
                )
            traits.from_entry(entry, _OF_AN_ENTRY)
            state.revive(entry["gate"], self.gate)
            for name in entry.get("buffers", ()):
                self._check_name(name)
            _ = entry["recipe"] and Recipe.of(entry["recipe"])
            for current in entry["current"]:
                masks.as_keep(current)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load a state_dict, including buffers added by a search, and its keep."""
        for name in self._buffers_of(state_dict, prefix):
            if self.buffer(name) is None and prefix + name in state_dict:
                self.put(name, torch.zeros_like(state_dict[prefix + name], device=self.scores.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        key = prefix + state.KEY
        if key not in state_dict and prefix + "keep" in state_dict:  # saved before there were entries
            missing: list[str] = rest[2]
            missing.remove(key)
            self._keep(self.keep.tolist())

    def _buffers_of(self, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
        """Names of buffers that a state_dict may hold: those of traits, and those that its entry lists."""
        key = prefix + state.KEY
        return [*traits.buffers(), *(state.decode(state_dict[key]).get("buffers", ()) if key in state_dict else ())]

    def _keep(self, current: Sequence[float]) -> None:
        """Set the groups' final keep from the buffer, and their present keep to `current`."""
        standing = self.wrapped.standing(self) if self.wrapped else []
        for (group, _), keep, now in zip(standing, self.keep.tolist(), current, strict=True):
            group.keep, group.current = keep, now

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Masked:
        """Move scores and buffers to another device with the module, but keep their dtypes when it changes its own."""
        super()._apply(lambda tensor: _moved(tensor, fn), recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def trained(self) -> list[torch.Tensor]:
        """The tensors that a search trains: the scores, and the factors of a scale if there is one."""
        return [self.scores] if self.factors is None else [self.scores, self.factors]

    @property
    def cuts(self) -> list[Cut]:
        """The cut of each part's group: that of the open forward pass, else computed from the present scores."""
        return self._cuts_at(1.0)

    def _cuts_at(self, share: float) -> list[Cut]:
        """The cuts at a share of the number kept."""
        groups = [self.groups[i] for i in range(len(self.parts))]
        if watched():
            return [traced_cut(group.scores({self.path: self}), group.share * share) for group in groups]
        span = passes.running(self) or self._own_pass()
        return [span.cut(group, self, share) for group in groups]

    def mask(self) -> torch.Tensor:
        """Compute the mask: bool, the weight's shape."""
        if not self.form.prunes:
            return kept(self.multiplier())
        parts = [cut.mask(part.of(self.scores), offset) for part, cut, offset in self._cut_parts()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.parts[0].dim)

    def multiplier(self) -> torch.Tensor:
        """Compute the multiplier of each weight: int8, the weight's shape."""
        cuts = [self._cuts_at(share) for share in self.form.kind.shares]
        offsets = [self.groups[i].offsets[self.path, i] for i in range(len(self.parts))]
        tensors = [
            self.form.multiplier(part.of(self.scores.detach()), [at[i] for at in cuts], offset)
            for i, (part, offset) in enumerate(zip(self.parts, offsets, strict=True))
        ]
        return (tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=self.parts[0].dim)).expand(self.form.shape)

    def multiplied(self, weight: torch.Tensor) -> torch.Tensor:
        """Return weight * multiplier, exactly 0 where it is pruned."""
        return times(weight, self.mask() if self.form.prunes else self.multiplier())

    def scaled(self, value: torch.Tensor) -> torch.Tensor:
        """Multiply the masked weight by its learned scale, if there is one."""
        return self.form.scaled(value, self.factors)

    def pruned(self, weight: torch.Tensor) -> torch.Tensor:
        """Return weight * multiplier, without a gradient: exactly 0 where pruned; for plain masks else the weight."""
        if not self.form.prunes:
            return self.multiplied(weight.detach())
        parts = self._cut_parts()
        if len(parts) == 1:
            part, cut, offset = parts[0]
            return kernels.pruned_weight(weight, (self.scores, cut.after(offset)))
        if watched():  # compilers and transforms do not support writing into a part
            tensors = [
                kernels.pruned_weight(part.of(weight), (part.of(self.scores), cut.after(offset)))
                for part, cut, offset in parts
            ]
            return torch.cat(tensors, dim=self.parts[0].dim)
        out = torch.empty_like(weight)
        for part, cut, offset in parts:
            kernels.pruned_weight(part.of(weight), (part.of(self.scores), cut.after(offset)), out=part.of(out))
        return out

    def _cut_parts(self) -> list[tuple[Part, Cut, int]]:
        """(part, cut of its group, index of its first score in the group) for each part."""
        offsets = [self.groups[i].offsets[self.path, i] for i in range(len(self.parts))]
        return list(zip(self.parts, self.cuts, offsets, strict=True))


def _moved(tensor: torch.Tensor, fn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply fn, which moves a tensor, but keep the dtype; float64 is not moved to a device without it (MPS)."""
    try:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
    except TypeError:
        if tensor.dtype != torch.float64:
            raise
        return tensor
