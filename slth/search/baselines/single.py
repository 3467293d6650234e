"""Saliencies that are computed once: random, magnitude, SNIP and GraSP."""

from __future__ import annotations

import torch

from slth.search.baselines.problem import Problem, gradients, shown
from slth.weights import inits


def random(problem: Problem) -> dict[str, torch.Tensor]:
    """Return magnitudes of uniform random numbers; the mask is that of `slth.search.controls.random_mask`."""
    return {
        path: inits.uniform(
            weight.shape, 1.0, seed=problem.seed, name=f"random_mask/{path}", device=weight.device
        ).abs()
        for path, weight in problem.weights().items()
    }


def magnitude(problem: Problem) -> dict[str, torch.Tensor]:
    """Return |w|."""
    return {path: weight.abs() for path, weight in problem.weights().items()}


def snip(problem: Problem) -> dict[str, torch.Tensor]:
    """Return |g w|, g the gradient of a batch's loss: how much the loss depends on each entry of a mask of ones.

    Source: Lee et al. 2019 (arXiv 1810.02340).
    """
    weights, batch = _leaves(problem), problem.batch()
    with shown(problem.model, weights):
        slopes = gradients(problem.loss_of(batch), weights)
    return {path: (slopes[path] * weight.detach()).abs() for path, weight in weights.items()}


def grasp(problem: Problem) -> dict[str, torch.Tensor]:
    """Return w * (H g), signed, with H the Hessian and g the gradient of a batch's loss.

    To first order, removing a weight changes |g|^2 by -2 w (H g). Wang et al. define the score -w (H g) and remove the
    weights with the highest score, without which g is larger; so the weights with the highest w (H g) are kept. Their
    code divides logits by a temperature of 200; here the loss is unchanged.

    Source: Wang et al. 2020 (arXiv 2002.07376), equation 8 and algorithm 1.
    """
    weights, batch = _leaves(problem), problem.batch()
    with shown(problem.model, weights):
        slopes = gradients(problem.loss_of(batch), weights, again=True)
        square = torch.stack([slope.square().sum() for slope in slopes.values()]).sum() / 2
        products = gradients(square, weights)  # H g
    return {path: weight.detach() * products[path] for path, weight in weights.items()}


def _leaves(problem: Problem) -> dict[str, torch.Tensor]:
    """The weights, each with requires_grad."""
    return {path: weight.requires_grad_() for path, weight in problem.weights().items()}
