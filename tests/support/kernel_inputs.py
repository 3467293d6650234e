"""What the kernels are called with."""

import torch

from slth import kernels
from slth.weights import inits


def numbers(name, *shape, dtype=torch.float32):
    return inits.normal(shape, 1.0, seed=1, name=name).to(dtype)


def bits(*shape):
    return kernels.pack_mask(numbers("mask", *shape) > 0)


def qkv(*shape):
    return [numbers(name, *shape) for name in "qkv"]
