"""Find and store a ticket, and rebuild the network elsewhere from its file and the module's code.

python examples/ship_a_ticket.py
"""

import torch
from torch import nn

import slth
from slth.building import built_of
from slth.weights import inits


def build() -> nn.Module:
    """Build the module, with code that both sides have. Its weights do not matter: the ticket's seeds generate them."""
    return nn.Sequential(nn.Linear(16, 256, bias=False), nn.ReLU(), nn.Linear(256, 4, bias=False))


def find(file: str, steps: int = 300) -> torch.Tensor:
    """On your side, train scores and store the ticket; return the outputs that your colleague must get."""
    x = inits.normal((512, 16), 1.0, seed=0, name="x")
    y = x @ inits.normal((16, 4), 0.3, seed=0, name="target")
    model = slth.wrap(build(), keep=0.5, weights="signed_constant", seed=0)
    slth.fit(model, lambda step: (x, y), lambda m, batch: (m(batch[0]) - batch[1]).square().mean(), steps, lr=1e-3)
    print(slth.Ticket.of(model, built=built_of(model)).save(file), "bytes")
    with torch.no_grad():
        return model(inits.normal((8, 16), 1.0, seed=1, name="x"))


@torch.no_grad()
def rebuild(file: str) -> tuple[torch.Tensor, torch.Tensor]:
    """On your colleague's side, load the ticket, apply it and serve it; return the outputs of both."""
    ticket = slth.Ticket.load(file)  # executes no code; a damaged file raises an error
    print(ticket.describe())
    x = inits.normal((8, 16), 1.0, seed=1, name="x")
    net = ticket.apply(build())  # a dense module, with zeros for pruned weights
    served = slth.serve(ticket, build())  # one bit per weight; weights are generated where they are used
    return net(x), served(x)


def main(file: str = "t.safetensors") -> tuple[bool, float]:
    """Return whether the applied network's outputs are equal bit for bit, and the difference of the served one's."""
    expected, (applied, served) = find(file), rebuild(file)
    same, distance = torch.equal(applied, expected), (served - expected).abs().max().item()
    print(f"applied: {'the same bits' if same else 'other bits'}; served: {distance:.1e} off")
    return same, distance


if __name__ == "__main__":
    main()
