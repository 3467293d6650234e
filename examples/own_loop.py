"""Train a wrapped classifier in your own training loop, with the settings that slth.fit uses, and the reasons for them.

A mask depends only on the order of scores. Weight decay, which shrinks all scores, does not change the order, and
neither do small steps. So the learning rate is higher than for weights; it first rises, and finally falls to nearly 0,
so that the mask settles. Gradients are clipped, since a single large one would reorder a layer.

    python examples/own_loop.py
"""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import slth
from slth.weights import inits

STEPS, LR, WARMUP, CLIP = 300, 0.03, 0.1, 1.0


def examples(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw points (count, 20) and their classes (count,), one of four by the signs of two coordinates."""
    x = inits.normal((count, 20), 1.0, seed=0, name=split)
    return x, 2 * (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def factor(step: int) -> float:
    """Return the share of the peak learning rate: a linear warm-up, then a cosine down to a hundredth."""
    rising = WARMUP * STEPS
    falling = max(0.0, (step + 1 - rising) / (STEPS - rising))
    return min((step + 1) / rising, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))


def main() -> float:
    """Train scores; print and return the accuracy of the ticket on new points."""
    net = nn.Sequential(nn.Linear(20, 256, bias=False), nn.ReLU(), nn.Linear(256, 4, bias=False))
    model = slth.wrap(net, keep=0.3, weights="signed_constant", seed=0)
    scores = [p for p in model.parameters() if p.requires_grad]  # only scores: weights have no gradient
    optimiser = torch.optim.AdamW(scores, lr=LR, weight_decay=0.0)  # AdamW decays by default
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    x, y = examples("training", 2048)
    for step in range(STEPS):
        rows = slice(step * 64 % 2048, step * 64 % 2048 + 64)
        optimiser.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        nn.utils.clip_grad_norm_(scores, CLIP)
        optimiser.step()
        schedule.step()
    inputs, classes = examples("test", 1000)
    accuracy = (model.eval()(inputs).argmax(-1) == classes).double().mean().item()
    print(f"accuracy {accuracy:.3f} with {slth.handle(model).kept():,} random weights; chance has 0.25")
    return accuracy


if __name__ == "__main__":
    main()
