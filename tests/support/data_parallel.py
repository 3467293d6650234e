"""What each of two processes does in tests/masking/test_compiled.py, which must be able to import it."""

import copy

import torch
import torch.distributed as dist
from masked_cases import CASE, KEEP
from torch import nn

from slth import handle, wrap

TIED = CASE["tied"]


def train(rank, folder):
    """Two steps of one of two processes that start from other weights and see other data."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = wrap(TIED.build(seed=rank), KEEP, seed=rank)
    handle(model).masks()
    parallel = nn.parallel.DistributedDataParallel(model)
    assert handle(parallel) is handle(model)
    optimiser = torch.optim.SGD(handle(model).scores(), lr=0.1)
    steps = []
    for _ in range(2):
        alone = copy.deepcopy(model)
        optimiser.zero_grad()
        for module in (parallel, alone):
            loss = (1.0 + rank) * TIED.loss(module)
            loss.backward()
        gradients, own = ([s.grad.clone() for s in handle(m).scores()] for m in (model, alone))
        steps.append({"masks": handle(model).masks(), "gradients": gradients, "own": own, "loss": loss.detach()})
        optimiser.step()
    torch.save(steps, f"{folder}/{rank}.pt")
    del parallel  # which would take the processes' group down under Python's lock, see slth.search.parallel.talking
    dist.destroy_process_group()
