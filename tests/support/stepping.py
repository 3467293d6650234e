"""Steps of a search tried on the CPU, and what stands in for CUDA graphs there."""

import torch
from regression import batches, loss, state

import slth
from slth.search import steps


class Replayer:
    """Stands in for CUDA graphs: work that was recorded is done by Python at each replay, into the same tensor."""

    def __init__(self):
        self.recorded = 0

    def record(self, work):
        self.recorded += 1
        out = []

        def replay():
            out.append(work())
            return out[0].copy_(out.pop()) if len(out) > 1 else out[0]

        return replay


class Once(Replayer):
    """A replayer whose recording runs Python, as a capture does."""

    def record(self, work):
        work()
        return super().record(work)


class Broken:
    """A recorder of what cannot be recorded."""

    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def result(model, **options):
    """The rows of a training of 24 steps, and the model's tensors then."""
    found = slth.fit(model, batches, loss, 24, **({"lr": 0.02, "progress": False, "seed": 3} | options))
    return found.rows, state(model)


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def training(model, **options):
    trained = [p for p in model.parameters() if p.requires_grad]
    return steps.Training(model, loss, torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0), trained, **options)
