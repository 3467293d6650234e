"""Compare the tickets of two attentions in random GPT-2s, by paired seeds.

    python examples/compare_attentions.py

`python experiments/mixing.py` is the full comparison, with equal parameters, more seeds, dense training, and
corrections for multiple comparisons.
"""

import math

import scipy.stats
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import slth
from slth.models import gpt2
from slth.models.gpt2_attention import with_attention
from slth.tasks import text

LENGTH = 32


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Compute the loss of windows (count, LENGTH), in nats per byte."""
    return cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def ticket_loss(attention: str, seed: int, steps: int, train: torch.Tensor, held_out: torch.Tensor) -> float:
    """Return the validation loss of a ticket at keep 0.5; both attentions have the same batches for a seed."""
    net = gpt2.build(gpt2.config("tiny", width=0.5, length=LENGTH, n_layer=2), seed=seed)
    model = slth.wrap(with_attention(net, attention, seed=seed), keep=0.5, weights="signed_constant", seed=seed)
    batches = lambda step: text.batch(train, 8, LENGTH, seed=seed, step=step, name="batches")  # noqa: E731
    slth.fit(model, batches, loss_of, steps, lr=0.015)
    with torch.no_grad():
        return loss_of(model.eval(), held_out).item()


def main(one: str = "mha", other: str = "talking_heads", seeds: int = 3, steps: int = 100) -> tuple[float, float]:
    """Print the mean difference of losses, other minus one, with Student's 95 % interval; return (mean, half width)."""
    train, validation = text.split(text.Bytes().encode(text.corpus("stdlib").data))
    held_out = text.windows(validation, LENGTH, 64)
    losses = [[ticket_loss(name, s, steps, train, held_out) for name in (one, other)] for s in range(seeds)]
    differences = torch.tensor([b - a for a, b in losses], dtype=torch.float64)
    half = float(scipy.stats.t.ppf(0.975, seeds - 1)) * differences.std().item() / math.sqrt(seeds)
    mean = differences.mean().item()
    verdict = "cannot tell" if abs(mean) <= half else other if mean < 0 else one
    print(f"{other} minus {one}: {mean:+.3f} nat, 95 %: {mean - half:+.3f} to {mean + half:+.3f}; better: {verdict}")
    return mean, half


if __name__ == "__main__":
    main()
