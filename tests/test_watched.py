"""What goes on around a forward pass is known."""

import pytest
import torch
from helpers import compiles
from torch import nn

from slth.watched import exporting


class Doubled(nn.Module):
    """Twice its input, three times where it is exported."""

    def forward(self, x):
        return x * (3 if exporting() else 2)


@compiles
def test_what_is_compiled_is_not_exported():
    module, x = Doubled(), torch.ones(2)
    assert module(x).tolist() == torch.compile(module, backend="eager", fullgraph=True)(x).tolist() == [2, 2]


@compiles
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_exported_is(strict):
    module, x = Doubled(), torch.ones(2)
    assert torch.export.export(module, (x,), strict=strict).module()(x).tolist() == [3, 3]
    assert module(x).tolist() == [2, 2]
