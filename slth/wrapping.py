"""Put masks on the weights of any module, train their scores, and take the masks off again.

    model = slth.wrap(net, keep=0.3, policy="layer", weights="signed_constant", seed=0)

freezes the module's parameters, gives each weight scores (float32, of its shape), and shows the module masked weights
wherever it reads a weight: its code stays as it is. The scores are the only parameters with a gradient. A mask is made
once in a forward pass of the wrapped module, whatever reads it how often, and dropped at the end of it.

Per weight there is one :class:`Masked`, a parametrization in torch's sense; for the whole there is one
:class:`Wrapped`, which knows the groups within which scores compete, and which `handle(model)` returns.
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
_AROUND = {  # what is put around a module, and the name of the module in there
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
}

#: How scores start, from the weight's fan-in. "kaiming_uniform": U[-1/sqrt(fan_in), 1/sqrt(fan_in)] (Ramanujan et al.
#: 2020); "magnitude": |weight|, so that the first mask keeps the largest; "constant": all equal, ties by index.
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
    """Mask the weights of a module, in place; :func:`unwrap` takes the masks off. Returns the module.

    Args:
        module: any module. All its parameters lose requires_grad (until they are unwrapped); scores are added.
        keep: the share of weights kept, in (0, 1]; or by shell pattern of parameter names, where the first match counts
            and every weight must match.
        policy: "layer": each weight keeps its own share (each of query, key and value where they are fused);
            "global": all weights compete; or groups by name, {"qk": ["*query*", "*key*"]}: what a pattern matches
            competes within its group, the rest by layer.
        parameters: shell patterns of the parameters to mask; None: all weights (see `slth.masking.parameters`), no
            biases and no normalisation. A pattern that matches weights takes these alone ("blocks.*.attn.*" takes no
            bias); one that matches none takes what it names ("*.bias").
        weights: None leaves the weights as they are. A name of `slth.weights.inits.INITS`, or names by pattern, draws
            them anew from `slth.weights.inits` by seed and parameter name, fan-scaled inits for the kept share of the
            fan; a ticket can store only these weights, and those of slth's models, as a seed.
        scores: how scores start, a key of SCORES.
        seed: of scores and weights, an int.
        kind: what a mask makes of a weight, of `slth.masking.kinds`: "prune" (or kept as it is), "signed" (kept with
            either sign), "nested" (kept several times), "blocks", "n_of_m"; as an object or a text with options, as
            "nested(levels=3)"; or by pattern, where what no pattern matches is plainly pruned.
        scale: None, or what has a learned factor (float32, 1 at first) beside its scores: "matrix", "head" (a head of
            attention; matrices that belong to none have one each) or "row" (an output unit).
        targets: the former name of `parameters`.

    The row of an embedding's padding_idx is 0 where weights are drawn, and pruned first where it is 0; it counts among
    the weights of which a share is kept. Embeddings have dense gradients while they are wrapped.

    Everything is checked before anything is changed. Raises ValueError for values outside the above, a module with
    nothing to mask, one that is wrapped already or has a wrapped part, NaN scores, a weight that cannot be masked: not
    a plain dense floating-point tensor, one that shares memory with another parameter, an embedding with max_norm.
    Source: straight-through scores by magnitude, Ramanujan et al. 2020 (arXiv 1911.13299).
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
        if param.path not in plan.recipes and param.tensor.amax().isnan():  # the largest is NaN where any is
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
    """Scores to start with, 0 for a row of padding that has its own: no gradient would ever reach it."""
    weight = param.tensor.detach()
    behind = kind.pooled(weight, param.axes)
    start = SCORES[scores](behind, param.fan(param.parts[0], 1.0).fan_in, seed, f"scores/{param.path}")
    for row in param.padding_rows if behind.shape == weight.shape else ():
        if not weight[row].any():
            start[row] = 0.0
    return start


def unwrap(module: nn.Module) -> nn.Module:
    """Take the masks off, in place: pruned weights are 0, kept ones what they were, all as plain parameters again.

    Ties, requires_grad and hooks are restored. What was put on a weight after wrap (spectral_norm, say) stays on it;
    masks go from every layer that is still in the module, whatever else was changed in it; a module outside that shares
    a weight keeps it unpruned, as it saw it. So do masks that came in with a copied layer, and a layer that was
    copied or taken out of its wrapped module can be given alone. Returns the module.

    Raises ValueError, with nothing changed, where there is no mask, where the module is a part of a wrapped one or has
    wrapped parts, and for scores that hold NaN, which make no mask: it says how these become numbers.
    """
    module = root(module)
    masks = _masks(module)
    if _HANDLE not in module.__dict__:
        has_parts = any(_HANDLE in inner.__dict__ for inner in module.modules())
        if has_parts or not masks or _of_a_whole(masks):
            handle(module)  # which says what must be given instead
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
    """Raise ValueError where masks are on any weight of the module, in words that say which module to unwrap."""
    if _HANDLE in root(module).__dict__:
        raise ValueError(f"{type(module).__name__} is wrapped already: unwrap it first")
    if nearby := wrapped_nearby(module, "must be unwrapped first"):
        raise ValueError(f"{_name(module)} {nearby}")


def handle(module: nn.Module) -> Wrapped:
    """The masks of a wrapped module, also where DDP or torch.compile stand around it.

    Raises ValueError where the module is not wrapped, and says which part of it or module around it is.
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

    The end of a sentence that begins with the module; `must`: what must be done with the other one. A module with masks
    of neither must be unwrapped.
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
    """The first mask that is in the module with its handle, None where all were copied or taken out. Takes a while."""
    if not masks:
        return None
    gc.collect()
    wholes = [m for m in gc.get_objects() if issubclass(type(m), nn.Module) and _HANDLE in m.__dict__]
    held = {id(masked) for m in wholes for masked in _masks(m) if masked.wrapped is m.__dict__[_HANDLE]}
    return next((masked for masked in masks if id(masked) in held), None)


def _name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


def root(module: nn.Module) -> nn.Module:
    """The module itself, without what data parallelism and torch.compile put around it."""
    check_module(module)
    while _HANDLE not in module.__dict__:
        inner = module._modules.get(_AROUND.get(type(module).__name__, ""))
        if inner is None:
            break
        module = inner
    return module


def random_weight(module: nn.Module, path: str) -> nn.Parameter:
    """The weight under a mask, by its parameter name at wrap: unpruned, as it was drawn.

    Raises ValueError where it is no longer in the module.
    """
    return place(root(module), handle(module), path).original


def check_in_place(module: nn.Module) -> None:
    """Raise ValueError, with its name and a way out, where a wrapped weight was replaced, moved or parametrized."""
    check(root(module), handle(module))


def check_there_still(module: nn.Module) -> None:
    """Raise ValueError where a wrapped weight, or a place that was tied to one, was replaced or removed.

    One that was moved is there still, and a module that is not wrapped has none.
    """
    wrapped = root(module).__dict__.get(_HANDLE)
    if wrapped is not None:
        check_there(root(module), wrapped)


def trained_densely(module: nn.Module) -> list[str]:
    """Names of the parameters that training changes beside the scores: a layer that was added after wrap, say."""
    return unmasked(root(module))


def effective(module: nn.Module) -> dict[str, torch.Tensor]:
    """The masked weights that evaluation sees, by parameter name, under the masks of the scores as they are."""
    value, weights = evaluation(module), handle(module).weights
    values = {path: value(path) for path in weights}
    settle(weights.values())
    return values


def evaluation(module: nn.Module) -> Callable[[str], torch.Tensor]:
    """A function from a parameter name to the masked weight that evaluation sees, for any thread.

    Each call makes the weight anew. Masks are cut once: scores must stay as they are meanwhile.
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
        masked.wrapped = wrapped  # once it is in place
    module.__dict__[_HANDLE] = wrapped
    huggingface.guard(module)
    wrapped.watch(module)
    saving.follow(module)


def _read_afresh(rnn: nn.RNNBase) -> None:
    """Let a recurrent layer look its weights up at each use, where it would keep those of the last forward pass."""
    rnn.__dict__.pop("_flat_weights", None)
    rnn.__dict__["_flat_weight_refs"] = [None] * len(rnn._flat_weights_names)
    pickling.read_afresh(rnn)
