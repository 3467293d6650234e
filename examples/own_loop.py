"""A wrapped classifier in a training loop of your own: what slth.fit sets, and why it matters.

Scores are no weights. A mask follows their order alone, so decay, which shrinks all, and small or late steps, which
change no place, teach it nothing: the learning rate is higher than that of weights, rises first and falls to nearly
nothing, so that the mask comes to rest; gradients are clipped, as one large one would reorder a layer.

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
    """Points (count, 20), and the one of four classes (count,) that two of their coordinates' signs say."""
    x = inits.normal((count, 20), 1.0, seed=0, name=split)
    return x, 2 * (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def factor(step: int) -> float:
    """The share of the highest learning rate: a linear warm-up, then a cosine down to a hundredth."""
    rising = WARMUP * STEPS
    falling = max(0.0, (step + 1 - rising) / (STEPS - rising))
    return min((step + 1) / rising, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))


def main() -> float:
    """Train scores, print the accuracy of the ticket on new points, and return it."""
    net = nn.Sequential(nn.Linear(20, 256, bias=False), nn.ReLU(), nn.Linear(256, 4, bias=False))
    model = slth.wrap(net, keep=0.3, weights="signed_constant", seed=0)
    scores = [p for p in model.parameters() if p.requires_grad]  # weights have no gradient
    optimiser = torch.optim.AdamW(scores, lr=LR, weight_decay=0.0)  # AdamW's own default would decay them
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
