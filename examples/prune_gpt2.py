"""Find a ticket in a random GPT-2 on your own text: scores are trained, and weights stay random.

python examples/prune_gpt2.py my_text.txt
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import slth
from slth.models import gpt2
from slth.tasks import text


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Compute the loss of windows (count, length), in nats per byte."""
    return cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def main(file: str, steps: int = 200, length: int = 64, keep: float = 0.5) -> dict[str, float]:
    """Train a ticket on a text file, store it as gpt2.safetensors, and return validation losses in nats per byte."""
    tokens = text.Bytes().encode(Path(file).read_text(encoding="utf-8"))
    train, validation = text.split(tokens)
    held_out = text.windows(validation, length, 32)
    config = gpt2.config("tiny", length=length)
    # Signed constants all have one size: a mask could not enlarge smaller weights.
    net = gpt2.build(config, init="signed", base_std=0.07, embedding_std=0.15, position_std=0.12, seed=0)
    model = slth.wrap(net, keep, seed=0)
    fit = slth.fit(
        model,
        lambda step: text.batch(train, 16, length, seed=0, step=step, name="batches"),
        loss_of,
        steps,
        lr=0.015,
        evaluate=lambda model: {"validation_loss": loss_of(model, held_out).item()},
        every=max(1, steps // 4),
    )
    for row in fit.rows:
        print({name: round(value, 3) for name, value in row.items()})
    print(slth.Ticket.of(model).save("gpt2.safetensors"), "bytes")
    losses = {"unigram": text.unigram_loss(train, held_out, 256), "bigram": text.bigram_loss(train, held_out, 256)}
    losses["ticket"] = fit.last["validation_loss"]
    print({name: round(loss, 3) for name, loss in losses.items()})
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:2])
