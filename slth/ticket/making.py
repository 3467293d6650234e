"""Make the records of a ticket from a model, and the digest of a network."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from slth.masking import Masked, Wrapped, traits
from slth.masking.forms import kept, times
from slth.masking.parameters import Part
from slth.masking.places import places
from slth.masking.traits import Trait
from slth.ticket.comparing import is_pruned, same_kept
from slth.ticket.record import Plain, TicketError, Weight
from slth.weights.recipes import Recipe, recipe_of
from slth.wrapping import check_plain, random_weight


def weight_of(
    module: nn.Module,
    path: str,
    masked: Masked,
    multiplier: torch.Tensor,
    pieces: Sequence[torch.Tensor],
    value: torch.Tensor,
) -> Weight:
    """Make the record of a masked weight: by its recipe, or over a base if no recipe gives it.

    Args:
        module: the wrapped module.
        path: the weight's name.
        masked: its mask.
        multiplier: bool if the mask only prunes, else int8.
        pieces: the encoding of an int8 multiplier.
        value: the weight under the mask.

    Raises:
        TicketError: if neither recipe nor base gives the value under the mask.
    """
    mask, form = kept(multiplier), masked.form
    own = [trait for kind in traits.known().values() if (trait := kind.of(masked, mask))]
    recipe, weight = recipe_of(module, path), random_weight(module, path).detach()
    if recipe and not same_kept(traits.random_weight(recipe, own, dict(masked.named_buffers()), value), weight, mask):
        recipe = None
    if recipe is None:
        own = [trait for trait in own if not trait.tensor]  # these describe how a recipe was drawn
    return Weight(
        path=path,
        shape=tuple(value.shape),
        dtype=name_of(value.dtype),
        kept=int(mask.count_nonzero()),
        recipe=recipe,
        parts=masked.parts,
        traits=_traits_of(masked, own, multiplier, weight, value),
        base=base_of(weight, mask) if recipe is None else None,
        kind=form.kind,
        axes=form.axes,
        scale=form.scale,
        pieces=tuple(piece.numel() for piece in pieces),
    )


def _traits_of(
    masked: Masked, own: Sequence[Trait], multiplier: torch.Tensor, weight: torch.Tensor, value: torch.Tensor
) -> tuple[Trait, ...]:
    """The traits that turn the weight into the value under the mask: the mask's own, or recognised by the value.

    Traits left by an earlier search may no longer be valid. Raises TicketError if no traits give the value.
    """
    parts = masked.parts
    idle = [trait for trait in own if trait.shown(weight, parts) is weight]
    seen = (t for kind in traits.known().values() if (t := kind.detected(value, weight, parts)))
    for candidate in itertools.chain([own, idle], ([*idle, trait] for trait in seen)):
        if _is_masked(value, traits.shown(weight, candidate, parts), masked, multiplier):
            return tuple(candidate)
    words = " nor ".join(["its weights", *(kind.words for kind in traits.known().values() if kind.words)])
    raise TicketError(f"{masked.path}: what evaluation sees is neither {words} under a mask")


def _is_masked(value: torch.Tensor, weight: torch.Tensor, masked: Masked, multiplier: torch.Tensor) -> bool:
    """Whether a value is the weight under a mask."""
    if masked.form.is_plain:
        return is_pruned(value, weight, multiplier)
    return torch.equal(value, masked.scaled(times(weight, multiplier)))


def weight_under(module: nn.Module, path: str, mask: torch.Tensor) -> Weight:
    """Make the record of a plain module's weight under a mask: by its recipe, or over a base if no recipe gives it."""
    weight = module.get_parameter(path).detach()
    recipe = recipe_of(module, path)
    if recipe and not same_kept(recipe.tensor(weight.shape, weight.device).to(weight.dtype), weight, mask):
        recipe = None
    return Weight(
        path=path,
        shape=tuple(weight.shape),
        dtype=name_of(weight.dtype),
        kept=int(mask.count_nonzero()),
        recipe=recipe,
        parts=(Part(),),
        base=base_of(weight, mask) if recipe is None else None,
        one_of_pair=recipe is not None and _keeps_one_of_each(recipe, mask),
    )


def _keeps_one_of_each(recipe: Recipe, mask: torch.Tensor) -> bool:
    """Whether a mask keeps exactly one entry of each pair of a recipe."""
    if recipe.pairs is None or mask.shape[recipe.pairs[0]] % 2:
        return False
    first, second = mask.unflatten(recipe.pairs[0], (-1, 2)).unbind(recipe.pairs[0] + 1)
    return bool((first ^ second).all())


def base_of(weight: torch.Tensor, mask: torch.Tensor) -> str:
    """Compute the SHA-256 that identifies a base: of the entries of its weight that a mask keeps."""
    return digest_of({"": weight[mask]})


def plain_of(module: nn.Module, path: str, tensor: torch.Tensor) -> Plain:
    """Make the record of any other tensor. Raises TicketError for one that is not dense, or without values."""
    check_dense(path, tensor)
    shape, dtype = tuple(tensor.shape), name_of(tensor.dtype)
    flat = tensor.detach().flatten()
    if flat.numel() and _is_constant(flat):
        return Plain(path, shape, dtype, value=flat[0].item())
    recipe = recipe_of(module, path) if tensor.is_floating_point() else None
    if recipe is not None and torch.equal(recipe.tensor(shape, tensor.device).to(tensor.dtype), tensor.detach()):
        return Plain(path, shape, dtype, recipe=recipe)
    return Plain(path, shape, dtype)


def check_dense(path: str, tensor: torch.Tensor) -> None:
    """Raise TicketError unless a ticket can store the tensor and write to it."""
    if tensor.is_meta or tensor.layout != torch.strided or is_traceable_wrapper_subclass(tensor):
        kind = "on meta" if tensor.is_meta else f"{type(tensor).__name__}, {tensor.layout}"
        raise TicketError(
            f"{path} is {kind}: a ticket holds plain dense tensors with values; make it one, or a buffer with "
            "persistent=False, which a ticket leaves out"
        )
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise TicketError(f"{path} is an expanded view, whose entries share memory: must be its clone()")


def _is_constant(flat: torch.Tensor) -> bool:
    """Whether all entries are one finite number that JSON can store exactly; -0.0 differs from 0.0."""
    if flat.is_floating_point() and flat.itemsize == 1:
        return False  # torch cannot compare 8-bit floats
    first = flat[0]
    if first.dtype.is_complex or not math.isfinite(first.item()) or (first == 0 and math.copysign(1, first.item()) < 0):
        return False
    same = bool((flat == first).all())
    return same and not (first.is_floating_point() and bool(torch.signbit(flat).ne(torch.signbit(first)).any()))


def others(module: nn.Module, wrapped: Wrapped) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and persistent buffers that are not masked, with their names."""
    masked = tuple(f"{each.stack_path}." for each in places(module, wrapped))
    return ((path, tensor) for path, tensor in named_tensors(module) if not path.startswith(masked))


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and persistent buffers of a plain module, by name. Raises ValueError if it is wrapped."""
    try:
        check_plain(module)
    except ValueError as error:
        raise ValueError(f"a ticket is applied to a plain module: {error}") from error
    return {path: tensor.detach() for path, tensor in named_tensors(module)}


def check_masks(module: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless there are masks, and they are bool with the shapes of the module's parameters."""
    shapes = {path: tuple(parameter.shape) for path, parameter in module.named_parameters()}
    if not masks:
        raise ValueError("masks: must be of one parameter or more")
    for path, mask in masks.items():
        if path not in shapes:
            raise ValueError(f"masks of {path!r}: must be of the module's parameters ({', '.join(list(shapes)[:8])})")
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shapes[path]:
            kind = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise ValueError(f"masks of {path!r}: {kind}, must be torch.bool {shapes[path]}")


def named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) for parameters, tied ones by their first name, then for persistent buffers."""
    yield from module.named_parameters()
    kept = module.state_dict(keep_vars=True).keys()
    yield from ((path, buffer) for path, buffer in module.named_buffers() if path in kept)


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute the SHA-256 of tensors: names, dtypes, shapes and bytes, sorted by name."""
    return digest_by_name(tensors, tensors.__getitem__)


def digest_by_name(paths: Iterable[str], tensor_of: Callable[[str], torch.Tensor]) -> str:
    """Compute the same as :func:`digest_of` for tensors that are computed one by one."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        tensor = tensor_of(path).detach().cpu().contiguous()
        digest.update(f"{path} {name_of(tensor.dtype)} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype in a ticket, such as "float32"."""
    return str(dtype).removeprefix("torch.")
