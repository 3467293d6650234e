"""What each of two processes does in tests/search/test_parallel.py: searches of one kind after another, stored by rank.

RANK=0 WORLD_SIZE=2 python tests/support/parallel_run.py FOLDER        # and beside it the same with RANK=1
"""

import faulthandler
import importlib
import importlib.util
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import slth
from slth.search import Bernoulli, IteRand, parallel
from slth.weights import inits

METHODS = {
    "edge_popup": lambda: None,
    "iterand": lambda: IteRand(every=3),
    "bernoulli": Bernoulli,
    "signed": lambda: None,
}
FORMS = {"signed": {"kind": "signed(levels=2)", "scale": "row"}}  # of masks
STEPS = 8


def network(**form):
    net = nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False))
    return slth.wrap(net, keep=0.5, weights="kaiming_normal", seed=3, **form)


def batch(rows):
    """Step -> rows of inputs and what they should give."""

    def of(step):
        x = inits.normal((rows, 6), 1.0, seed=step, name="x")
        return x, x[:, :3] * x[:, 3:]

    return of


def loss(model, given):
    x, wanted = given
    return (model(x) - wanted).square().mean()


def searched(method, rows, **options):
    model = network(**FORMS.get(method, {}))
    fit = slth.fit(model, batch(rows), loss, STEPS, method=METHODS[method](), lr=0.05, progress=False, **options)
    return model, fit


def state_of(model, fit):
    found = slth.handle(model)
    return {
        "scores": {path: torch.cat([t.detach().flatten() for t in m.trained]) for path, m in found.weights.items()},
        "masks": found.masks(),
        "losses": [row["train_loss"] for row in fit.rows],
    }


def refusal(call, kind=ValueError):
    try:
        call()
    except kind as error:
        return str(error)
    return ""


def main(folder):
    faulthandler.dump_traceback_later(200, exit=True)  # says where it waited
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    met, limit = f"file://{folder}/met", timedelta(seconds=150)
    dist.init_process_group("gloo", init_method=met, rank=rank, world_size=size, timeout=limit)
    found = {method: state_of(*searched(method, 8)) for method in METHODS}
    sent, reduce = [], dist.all_reduce
    dist.all_reduce = lambda tensor, **group: (sent.append(tensor.numel()), reduce(tensor, **group))
    searched("edge_popup", 8)
    dist.all_reduce = reduce
    found["sent"] = sum(sent)
    found["logged"] = []
    found["uneven"] = state_of(*searched("edge_popup", 5, log=lambda numbers, step: found["logged"].append(step)))
    model = network()
    wrapped = nn.parallel.DistributedDataParallel(model)
    fit = slth.fit(wrapped, batch(5), loss, STEPS, lr=0.05, progress=False)
    found["ddp"] = state_of(model, fit)
    if importlib.util.find_spec("accelerate"):
        model = network()
        prepared = importlib.import_module("accelerate").Accelerator(cpu=True).prepare(model)
        fit = slth.fit(prepared, batch(5), loss, STEPS, lr=0.05, progress=False)
        found["accelerate"] = state_of(model, fit)
    found["seeds"] = refusal(lambda: slth.fit(network(), batch(8), loss, STEPS, seed=rank, progress=False))
    found["few rows"] = refusal(lambda: slth.fit(network(), batch(1), loss, STEPS, progress=False))
    nowhere = {"checkpoint": folder / "nowhere" / "search.checkpoint"}
    found["no folder"] = refusal(lambda: slth.fit(network(), batch(8), loss, STEPS, progress=False, **nowhere), OSError)
    sampled = torch.utils.data.TensorDataset(torch.ones(8, 6))
    sampler = torch.utils.data.DistributedSampler(sampled)
    loader = torch.utils.data.DataLoader(sampled, batch_size=2, sampler=sampler)
    found["sampler"] = refusal(lambda: slth.fit(network(), loader, loss, STEPS, progress=False))
    found["no tensors"] = refusal(lambda: parallel.share(["a", "b"]))

    def stops(model, given, after=[0]):  # noqa: B006 - counts its calls
        after[0] += 1
        if after[0] > 5:
            raise KeyboardInterrupt
        return loss(model, given)

    where = {"checkpoint": folder / "search.checkpoint", "save_every": 2}
    try:
        slth.fit(network(), batch(8), stops, STEPS, lr=0.05, progress=False, **where)
    except KeyboardInterrupt:
        dist.barrier()
    if rank:  # the first process alone needs to see the file
        where = where | {"checkpoint": folder / "another" / "place"}
    resumed, fit = searched("edge_popup", 8, **where)
    found["resumed"] = state_of(resumed, fit) | {"at": fit.resumed_at}

    def breaks(model, given):
        if rank:
            raise RuntimeError("it broke here alone")
        limits.append(parallel._own._get_backend(torch.device("cpu")).options._timeout.total_seconds())
        return loss(model, given)

    def breaks_late(model, given):
        value = loss(model, given)
        if rank:
            value.register_hook(lambda gradient: breaks(model, given))
        return value

    limits, kept = [], []
    for broken in (breaks, breaks_late):
        try:
            slth.fit(network(), batch(8), broken, STEPS, progress=False)
        except RuntimeError as error:
            kept.append(error)  # and with it all frames that it came through
    found["broken"], found["limits"] = [str(error) for error in kept], limits
    found["refused"] = [refusal(lambda: slth.fit(network(), batch(8), loss, 0, progress=False)) for _ in range(20)]
    found["again"] = state_of(*searched("edge_popup", 8))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]).resolve())
