"""Put masks on the weights of any module, train their scores, and take the masks off again.

    model = slth.wrap(net, keep=0.3, policy="layer", weights="signed_constant", seed=0)

freezes the module's parameters, adds scores to each weight (float32, same shape), and masks the weight wherever the
module reads it; the module's code does not change. The scores are the only parameters with requires_grad. Each mask is
computed once per forward pass of the wrapped module, however often it is read, and then freed.

Each weight has one :class:`Masked`, a torch parametrization. The module has one :class:`Wrapped`, which holds the
groups within which scores compete; `handle(model)` returns it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import nn
from torch.nn.utils import parametrize

from slth import storage
from slth.masking import Group, Masked, Wrapped, choices, huggingface, passes, pickling, saving, writing
from slth.masking.forms import Form
from slth.masking.kinds import PRUNE, Kind
from slth.masking.parameters import MaskedParameter, find
from slth.masking.places import check, check_there, freeze, place, settle, take_off, unmasked
from slth.masking.scales import check_scale, scale_of
from slth.modules import check_module
from slth.numbers import as_int
from slth.weights import inits, recipes

_HANDLE = "_slth_wrapped"
_AROUND = {  # class of a container around a module -> its attribute that holds the module
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
}

#: Initial scores, from the weight and its fan-in. "kaiming_uniform": U[-1/sqrt(fan_in), 1/sqrt(fan_in)] (Ramanujan et
#: al. 2020); "magnitude": |weight|, so that the first mask keeps the largest; "constant": all equal, ties by index.
SCORES: dict[str, Callable[[torch.Tensor, float, int, str], torch.Tensor]] = {
    "kaiming_uniform": lambda weight, fan_in, seed, name: inits.uniform(
        weight.shape, fan_in**-0.5, seed=seed, name=name, device=weight.device
    ),
    "magnitude": lambda weight, fan_in, seed, name: weight.detach().abs().float(),
    "constant": lambda weight, fan_in, seed, name: torch.full_like(weight, fan_in**-0.5, dtype=torch.float32),
}


def wrap(
    module: nn.Module,
    keep: float | Mapping[str, float] = 0.5,
    policy: str | Mapping[str, str | Sequence[str]] = "layer",
    parameters: str | Sequence[str] | None = None,
    weights: str | Mapping[str, str] | None = None,
    scores: str = "kaiming_uniform",
    seed: int = 0,
    *,
    kind: Kind | str | Mapping[str, Kind | str] = PRUNE,
    scale: str | None = None,
    targets: str | Sequence[str] | None = None,
) -> nn.Module:
    """Mask the weights of a module, in place; :func:`unwrap` removes the masks. Returns the module.

    Args:
        module: any module. All its parameters lose requires_grad (until they are unwrapped); scores are added.
        keep: the share of weights kept, in (0, 1]; or shares by shell pattern of parameter names, where the first
            match counts and every weight must match.
        policy: "layer": each weight keeps its own share (query, key and value separately if they are fused);
            "global": all weights compete; or groups by name, {"qk": ["*query*", "*key*"]}: weights that match a
            pattern compete within its group, the others per layer.
        parameters: shell patterns of the parameters to mask; None: all weights (see `slth.masking.parameters`), but
            no biases and no normalisation. A pattern that matches weights selects only these ("blocks.*.attn.*"
            selects no bias); one that matches none selects the parameters it names ("*.bias").
        weights: None leaves the weights as they are. A key of `slth.weights.inits.INITS`, or keys by pattern, redraws
            them by seed and parameter name, with fan-scaled inits for the kept share of the fan. A ticket can store
            only these weights, and those of slth's models, as a seed.
        scores: the initial scores, a key of SCORES.
        seed: of scores and weights, an int.
        kind: the kind of mask, of `slth.masking.kinds`: "prune" (weights are kept or pruned), "signed" (kept with
            either sign), "nested" (kept several times), "blocks", "n_of_m"; an object, or text with options, as
            "nested(levels=3)"; or kinds by pattern, with "prune" for weights that match none.
        scale: None, or the unit that has a learned factor (float32, initially 1) besides its scores: "matrix", "head"
            (an attention head; matrices without heads have one factor each) or "row" (an output unit).
        targets: the former name of `parameters`.

    The row of an embedding's padding_idx is set to 0 if weights are redrawn, and a row of zeros is pruned first; it
    counts among the weights of which a share is kept. Embeddings have dense gradients while they are wrapped.

    Everything is checked before anything is changed. Source: straight-through scores by magnitude, Ramanujan et al.
    2020 (arXiv 1911.13299).

    Raises:
        ValueError: for values outside the above, a module with nothing to mask, one that is already wrapped or has a
            wrapped part, NaN scores, and weights that cannot be masked: no plain dense floating-point tensor, memory
            shared with another parameter, or an embedding with max_norm.
    """
    check_module(module)
    check_plain(module)
    if targets is not None:
        if parameters is not None:
            raise ValueError(f"targets={targets!r}: must be left out, it is the former name of parameters")
        parameters = targets
    choices.check_types(keep, policy, parameters, weights)
    check_scale(scale)
    if not isinstance(scores, str) or scores not in SCORES:
        raise ValueError(f"scores={scores!r}: must be one of {', '.join(SCORES)}")
    seed = as_int("seed", seed)
    with torch.inference_mode(False), torch.no_grad():
        params = _find(module, parameters)
        plan = choices.plan(params, keep, policy, weights, kind, seed)
        return _wrapped(module, params, plan, scale, scores, seed)


def _wrapped(
    module: nn.Module, params: list[MaskedParameter], plan: choices.Plan, scale: str | None, scores: str, seed: int
) -> nn.Module:
    for param in params:
        if param.path not in plan.recipes and param.tensor.amax().isnan():  # amax is NaN if any entry is
            raise ValueError(f"{param.path} holds NaN: weights must be numbers, or be drawn anew by weights=...")
    storage.check(module, [param.path for param in params])

    recipes.fill(module, plan.recipes)
    weights_of = {}
    for param in params:
        kind = plan.kinds[param.path]
        form = Form(tuple(param.tensor.shape), kind, param.axes, scale_of(param, scale))
        weights_of[param.path] = Masked(_scores(param, kind, scores, seed), param.parts, param.path, form)
    groups = [Group(name, share, [(weights_of[p], i) for p, i in parts]) for name, share, parts in plan.groups]
    for group in groups:
        group.set_keep(group.keep)
    wrapped = Wrapped(params, weights_of, groups)
    wrapped.check()
    _attach(module, params, wrapped)
    return module


def _find(module: nn.Module, patterns: str | Sequence[str] | None) -> list[MaskedParameter]:
    return find(module, [patterns] if isinstance(patterns, str) else patterns)


def _scores(param: MaskedParameter, kind: Kind, scores: str, seed: int) -> torch.Tensor:
    """Initial scores; 0 in a padding row of zeros if it has scores of its own, as no gradient ever reaches these."""
    weight = param.tensor.detach()
    behind = kind.pooled(weight, param.axes)
    start = SCORES[scores](behind, param.fan(param.parts[0], 1.0).fan_in, seed, f"scores/{param.path}")
    for row in param.padding_rows if behind.shape == weight.shape else ():
        if not weight[row].any():
            start[row] = 0.0
    return start


def unwrap(module: nn.Module) -> nn.Module:
    """Remove the masks, in place, so that the masked weights are plain parameters. Returns the module.

    Pruned weights are 0, kept ones have the value that they had under the mask. Ties, requires_grad and hooks are
    restored. Parametrizations added after wrap (spectral_norm, say) remain. Masks are removed from every layer that is
    still in the module, whatever else was changed in it, and also from layers copied into it. A layer that was copied
    or taken out of its wrapped module can be unwrapped by itself. A module outside that shares a weight keeps it
    unpruned, as it saw it before.

    Raises ValueError, with nothing changed, if there is no mask, if the module is part of a wrapped one or has wrapped
    parts, and if scores hold NaN; the message then says how to replace them.
    """
    module = root(module)
    masks = _masks(module)
    if _HANDLE not in module.__dict__:
        has_parts = any(_HANDLE in inner.__dict__ for inner in module.modules())
        if has_parts or not masks or _of_a_whole(masks):
            handle(module)  # raises an error that says which module to pass instead
    handles = [inner.__dict__[_HANDLE] for inner in module.modules() if _HANDLE in inner.__dict__]
    handles = list(dict.fromkeys([*handles, *(masked.wrapped for masked in masks)]))
    with ExitStack() as stack, torch.inference_mode(False), torch.no_grad():
        for wrapped in handles:
            stack.enter_context(passes.within(passes.Pass(wrapped.weights)))
        try:
            take_off(module)
        except ValueError as error:
            raise ValueError(
                f"{error}; a mask can come off once its scores are numbers, as slth.search.controls.random_mask(model, "
                "seed) makes them, or handle(model).set_masks(...), or scores.data.nan_to_num_()"
            ) from error
    for wrapped in handles:
        wrapped.unwatch(module)
    saving.unfollow(module)
    huggingface.release(module)
    for inner in module.modules():
        inner.__dict__.pop(_HANDLE, None)
    return module


def check_plain(module: nn.Module) -> None:
    """Raise ValueError if any weight of the module is masked; the message says which module to unwrap."""
    if _HANDLE in root(module).__dict__:
        raise ValueError(f"{type(module).__name__} is wrapped already: unwrap it first")
    if nearby := wrapped_nearby(module, "must be unwrapped first"):
        raise ValueError(f"{_name(module)} {nearby}")


def handle(module: nn.Module) -> Wrapped:
    """Return the masks of a wrapped module, which may be inside DDP or torch.compile.

    Raises ValueError if the module is not wrapped; the message names a part or parent of it that is.
    """
    wrapped = root(module).__dict__.get(_HANDLE)
    if wrapped is None:
        nearby = wrapped_nearby(module, "must be given instead")
        hint = f" but {nearby}" if nearby else ": must come from slth.wrap"
        raise ValueError(f"{_name(module)} is not wrapped{hint}")
    assert isinstance(wrapped, Wrapped)
    return wrapped


def wrapped_nearby(module: nn.Module, must: str) -> str:
    """Describe the wrapped part or parent of an unwrapped module, or return ''.

    Returns the end of a sentence whose subject is the module. `must` says what to do with the part or parent. If the
    module has masks but neither is there, it must itself be unwrapped.
    """
    parts = [path for path, each in module.named_modules() if _HANDLE in each.__dict__]
    if len(parts) > 1:
        some = ", ".join(map(repr, parts[:8])) + (", ..." if len(parts) > 8 else "")
        return f"has wrapped parts, {some}: each of them (model.get_submodule({parts[0]!r})) {must}"
    if parts:
        return f"has a wrapped part, {parts[0]!r}: that part (model.get_submodule({parts[0]!r})) {must}"
    masks = _masks(module)
    if inside := _of_a_whole(masks):
        return f"is a part of a wrapped module, as the holder of {inside.path}: that module {must}"
    return f"holds the mask of {masks[0].path} of a module that it was copied or taken from: unwrap it" if masks else ""


def _masks(module: nn.Module) -> list[Masked]:
    return [each for each in module.modules() if isinstance(each, Masked)]


def _of_a_whole(masks: Sequence[Masked]) -> Masked | None:
    """The first mask that its wrapped module still holds, None if all were copied or taken out. Scans all objects."""
    if not masks:
        return None
    gc.collect()
    wholes = [m for m in gc.get_objects() if issubclass(type(m), nn.Module) and _HANDLE in m.__dict__]
    held = {id(masked) for m in wholes for masked in _masks(m) if masked.wrapped is m.__dict__[_HANDLE]}
    return next((masked for masked in masks if id(masked) in held), None)


def _name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


def root(module: nn.Module) -> nn.Module:
    """Return the module inside the containers that data parallelism and torch.compile put around it."""
    check_module(module)
    while _HANDLE not in module.__dict__:
        inner = module._modules.get(_AROUND.get(type(module).__name__, ""))
        if inner is None:
            break
        module = inner
    return module


def random_weight(module: nn.Module, path: str) -> nn.Parameter:
    """Return the unpruned weight under a mask, by its parameter name at wrap.

    Raises ValueError if it is no longer in the module.
    """
    return place(root(module), handle(module), path).original


def check_in_place(module: nn.Module) -> None:
    """Raise ValueError, with its name and a remedy, if a wrapped weight was replaced, moved or parametrized."""
    check(root(module), handle(module))


def check_there_still(module: nn.Module) -> None:
    """Raise ValueError if a wrapped weight, or one of the places tied to it, was replaced or removed.

    A weight that was moved is accepted, and so is a module that is not wrapped.
    """
    wrapped = root(module).__dict__.get(_HANDLE)
    if wrapped is not None:
        check_there(root(module), wrapped)


def trained_densely(module: nn.Module) -> list[str]:
    """Return the names of trainable parameters other than the scores: of a layer added after wrap, say."""
    return unmasked(root(module))


def effective(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the masked weights of eval mode, by parameter name, for the present scores."""
    value, weights = evaluation(module), handle(module).weights
    values = {path: value(path) for path in weights}
    settle(weights.values())
    return values


def evaluation(module: nn.Module) -> Callable[[str], torch.Tensor]:
    """Return a function from a parameter name to its masked weight in eval mode; any thread may call it.

    Each call computes the weight again, but the thresholds of the masks only once: scores must not change meanwhile.
    """
    weights, cuts = handle(module).weights, passes.Cuts()

    @torch.no_grad()
    def value(path: str) -> torch.Tensor:
        with passes.within(passes.Pass(weights, cuts)):
            return weights[path].evaluated(random_weight(module, path))

    return value


# ---------------------------------------------------------------- what wrap changes


def _attach(module: nn.Module, params: Sequence[MaskedParameter], wrapped: Wrapped) -> None:
    freeze(module)
    for param in params:
        masked = wrapped.weights[param.path]
        masked.train(module.training)
        for owner, name in param.places:
            parametrize.register_parametrization(owner, name, masked, unsafe=True)
            pickling.allow(owner)
            writing.guard(owner)
            if isinstance(owner, nn.RNNBase):
                _read_afresh(owner)
        masked.wrapped = wrapped  # only after registration
    module.__dict__[_HANDLE] = wrapped
    huggingface.guard(module)
    wrapped.watch(module)
    saving.follow(module)


def _read_afresh(rnn: nn.RNNBase) -> None:
    """Make a recurrent layer look up its weights at each use instead of caching those of the last forward pass."""
    rnn.__dict__.pop("_flat_weights", None)
    rnn.__dict__["_flat_weight_refs"] = [None] * len(rnn._flat_weights_names)
    pickling.read_afresh(rnn)
