"""Networks of every kind under masks, and the same with zeros in place made by hand."""

import numpy as np
import torch
from cases import CASES, WIDTH, Case
from torch import nn

from slth.masking.masks import count_kept
from slth.wrapping import handle, wrap

KEEP = 0.3
CASE = {case.name: case for case in CASES}


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 20), nn.Tanh(), nn.Linear(20, 5))


MLP = Case("mlp", mlp, CASE["slth feed-forward"].inputs)


def wrapped(case, **options):
    return wrap(case.build(), **{"keep": KEEP} | options)


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def by_hand(case, masks):
    """The case's network with zeros where the masks prune."""
    module = case.build()
    with torch.no_grad():
        for path, mask in masks.items():
            module.get_parameter(path).masked_fill_(~mask, 0.0)
    return module


def sorted_masks(model):
    """The masks of a model whose groups are single weights, by a stable sort of the scores as they are now."""
    masks = {}
    for path, masked in handle(model).weights.items():
        order = np.argsort(-np.abs(masked.scores.detach().numpy()), axis=None, kind="stable")
        masks[path] = torch.zeros(masked.scores.shape, dtype=torch.bool)
        masks[path].view(-1)[order[: count_kept(order.size, KEEP)]] = True
    return masks


@torch.no_grad()
def move(model):
    """Give every score to another weight, by which all masks change."""
    for scores in handle(model).scores():
        scores.copy_(scores.flatten().flip(0).reshape(scores.shape))


def read(model):
    """Masked weights as the modules that hold them see them, by every name."""
    found = {}
    for places in handle(model).paths.values():
        for place in places:
            prefix, _, name = place.rpartition(".")
            found[place] = getattr(model.get_submodule(prefix), name)
    return found


def shares(case, path, mask):
    """Names and masks of the groups of one weight: one, or those of what is fused in it along its longest axis."""
    roles = case.parts.get(path)
    if roles is None:
        return {path: mask}
    pieces = mask.chunk(len(roles), dim=int(np.argmax(mask.shape)))
    return {f"{path}[{role}]": piece for role, piece in zip(roles, pieces, strict=True)}


OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=10.0, foreach=False),
    "sgd, foreach": lambda p: torch.optim.SGD(p, lr=10.0, momentum=0.9, foreach=True),
    "sgd, fused": lambda p: torch.optim.SGD(p, lr=10.0, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1.0, foreach=False),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=1.0, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=1.0, fused=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=1.0, fused=True),
    "adagrad, fused": lambda p: torch.optim.Adagrad(p, lr=1.0, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1.0),
}


def described(module):
    return {
        "classes": [(name, type(m), m.training) for name, m in module.named_modules()],
        "parameters": [(n, id(p), p.requires_grad) for n, p in module.named_parameters(remove_duplicate=False)],
        "attributes": [vars(m).keys() for m in module.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "state": list(module.state_dict()),
    }
