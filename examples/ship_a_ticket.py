"""A ticket as one finds it, and as a colleague rebuilds the network who has the file and the code of the module alone.

python examples/ship_a_ticket.py
"""

import torch
from torch import nn

import slth
from slth.building import built_of
from slth.weights import inits


def build() -> nn.Module:
    """The code that both have. No weight matters: the ticket's seeds make them."""
    return nn.Sequential(nn.Linear(16, 256, bias=False), nn.ReLU(), nn.Linear(256, 4, bias=False))


def find(file: str, steps: int = 300) -> torch.Tensor:
    """You: train scores, store the ticket. Returns the outputs that the colleague must see."""
    x = inits.normal((512, 16), 1.0, seed=0, name="x")
    y = x @ inits.normal((16, 4), 0.3, seed=0, name="target")
    model = slth.wrap(build(), keep=0.5, weights="signed_constant", seed=0)
    slth.fit(model, lambda step: (x, y), lambda m, batch: (m(batch[0]) - batch[1]).square().mean(), steps, lr=1e-3)
    print(slth.Ticket.of(model, built=built_of(model)).save(file), "bytes")
    with torch.no_grad():
        return model(inits.normal((8, 16), 1.0, seed=1, name="x"))


@torch.no_grad()
def rebuild(file: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Your colleague: read what it is, apply it, serve it. Returns the outputs of both."""
    ticket = slth.Ticket.load(file)  # executes nothing; a damaged file is refused
    print(ticket.describe())
    x = inits.normal((8, 16), 1.0, seed=1, name="x")
    net = ticket.apply(build())  # dense, with zeros in place
    served = slth.serve(ticket, build())  # one bit a weight, weights drawn where they are used
    return net(x), served(x)


def main(file: str = "t.safetensors") -> tuple[bool, float]:
    """Returns whether the applied network is the same to the last bit, and how far the served one is."""
    expected, (applied, served) = find(file), rebuild(file)
    same, distance = torch.equal(applied, expected), (served - expected).abs().max().item()
    print(f"applied: {'the same bits' if same else 'other bits'}; served: {distance:.1e} off")
    return same, distance


if __name__ == "__main__":
    main()
