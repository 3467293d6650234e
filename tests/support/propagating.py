"""Targets and sources block by block, and a search for inputs at which they are far apart."""

from types import SimpleNamespace

import torch

from slth.construct import certify
from slth.construct.propagation import BlockErrors
from slth.models.transformer import Transformer


def target_of(d, blocks, heads, layers=1, *, norm=False, gain=1.0, seed=0):
    """A float64 target whose factors have spectral norm `gain`."""
    target = Transformer(d, blocks, heads, 4, (d,) * (layers - 1), norm=norm, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        for weight in target.parameters():
            weight *= gain / torch.linalg.matrix_norm(weight, ord=2, keepdim=True)
    return target


def source_of(d, blocks, heads, hidden, layers=1, *, norm=False, seed=100):
    widths = [width for _ in range(layers) for width in (hidden, d)][:-1]
    return Transformer(d, blocks, heads, hidden, widths, norm=norm, seed=seed)


def after_blocks(model, x, mask=None):
    states = []
    for block in model.blocks:
        x = block(x, mask)
        states.append(x)
    return states


def on_sphere(x, radius):
    return radius * x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-300)


def errors(target, twin, x, moved, mask=None):
    """After each block the largest distance (samples,) of twin on moved inputs from target."""
    pairs = zip(after_blocks(twin, moved, mask), after_blocks(target, x, mask), strict=True)
    return torch.stack([torch.linalg.vector_norm(a - b, dim=-1).amax(-1) for a, b in pairs])


def attack(target, twin, x, mask=None, *, drift=0.0, block=-1, steps=40):
    """Gradient ascent on tokens x of one norm, and on a drift of the source's inputs of the given length.

    Returns the inputs, the moved inputs, and the errors after each block, at their worst for `block`.
    """
    radius = torch.linalg.vector_norm(x[0, 0])
    offset = drift * on_sphere(torch.sin(37.0 * x + 1.0), 1.0)
    best = (x, x + offset, errors(target, twin, x, x + offset, mask).detach())
    for step in range(steps):
        x, offset = x.detach().requires_grad_(), offset.detach().requires_grad_()
        found = errors(target, twin, x, x + offset, mask)
        if found[block].max() > best[2][block].max():
            best = (x.detach(), (x + offset).detach(), found.detach())
        rate = 0.5 * (1 - step / steps)
        up_x, up_offset = torch.autograd.grad(found[block].sum(), (x, offset))
        x = on_sphere(x + rate * radius * on_sphere(up_x, 1.0), radius)
        offset = drift * on_sphere(offset + rate * drift * on_sphere(up_offset, 1.0), 1.0)
    return best


def bounds_of(target, ticket, x, mask=None):
    return torch.tensor(certify(target, ticket, x, mask).blocks)


def perfect(target):
    """What of a construction is certified, without errors: the source is the target."""
    zeros = [[torch.zeros(2 * len(w), w.shape[1]).double() for w in b.feed_forward.layers] for b in target.blocks]
    return SimpleNamespace(
        blocks=[
            BlockErrors(merged_of(block), layers, [0.0] * len(layers))
            for block, layers in zip(target.blocks, zeros, strict=True)
        ]
    )


def merged_of(block):
    return tuple(matrix.detach() for matrix in block.attention.merged())
