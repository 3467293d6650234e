"""A network of two layers, and the same under masks."""

import torch
from torch import nn

import slth

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def net(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8, **options), nn.Tanh(), nn.Linear(8, 8, **options))


def wrapped(**options):
    return slth.wrap(net(), 0.3, **{"weights": "signed_constant"} | options)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 8), nn.Linear(8, 6, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.table(tokens))
