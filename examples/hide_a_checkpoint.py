"""Hide a trained checkpoint in random weights: bit for bit, and by codes of a few bits per weight.

    python examples/hide_a_checkpoint.py

`python experiments/hide_checkpoint.py with model=FOLDER` does this for checkpoints of transformers, with measurements.
"""

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

import slth
from slth import construct
from slth.weights import inits


def build() -> nn.Module:
    """Build a classifier."""
    return nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 4))


def train(file: str, steps: int) -> None:
    """Train a checkpoint on a task whose answer is the index of the largest of four sums, and save it."""
    net, x = build(), inits.normal((1024, 16), 1.0, seed=0, name="x")
    labels = (x @ inits.normal((16, 4), 1.0, seed=0, name="target")).argmax(-1)
    slth.fit(net, lambda step: (x, labels), lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), steps, lr=3e-3)
    safetensors.torch.save_model(net, file)


def main(folder: str = ".", steps: int = 200) -> dict[str, float]:
    """Hide the checkpoint in both ways; return the largest difference of outputs for each."""
    checkpoint, net, differences = str(Path(folder, "net.safetensors")), build(), {}
    train(checkpoint, steps)
    safetensors.torch.load_model(net, checkpoint)
    x = inits.normal((256, 16), 1.0, seed=1, name="x")
    ways = {"exact": {"exact": True}, "3 bits a weight": {"code": construct.Code(bits=3)}}
    for name, options in ways.items():
        file = str(Path(folder, "ticket.safetensors"))
        size = construct.module(net, **options).ticket().save(file)  # masks, seeds, and unchanged biases
        other = construct.merge(slth.Ticket.load(file), build())  # into another instance
        with torch.no_grad():
            differences[name] = (other(x) - net(x)).abs().max().item()
        print(f"{name}: {size:,} bytes, outputs within {differences[name]:.2g} of those of the checkpoint")
    return differences


if __name__ == "__main__":
    main()
