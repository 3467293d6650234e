"""What stands between a call and a GPU, without one: Triton's own launcher, devices by name, copies, moves."""

import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from posing import GPU, Event, posing
from tables import one_case
from torch import nn

import slth
from slth import kernels
from slth.experiments.studies.speed.gpu import command, processes, report
from slth.experiments.studies.speed.gpu.hour import Hour
from slth.kernels import Cut, Selector, cases, finished, offline, pruned_weight
from slth.kernels.arguments import placed
from slth.kernels.seeded import bench as seeded
from slth.kernels.select.nan import NaNWatch
from slth.weights.recipes import Draw

HERE = Path(__file__).parents[1] / "support"


def test_every_case_goes_through_the_launcher():
    """In a process of its own, without the interpreter: names, binding, specialisation, and the code."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "launching.py")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert not told["failed"]
    assert told["launches"].keys() == told["specialisations"].keys() == kernels_with_grids()
    assert min(told["specialisations"].values()) > 1


def kernels_with_grids():
    """Names of all kernels that are launched: those that ask for the program's number."""
    return {one.kernel.__name__ for one in offline.cases()}


# ---------------------------------------------------------------- devices by name


def test_a_device_without_an_index_is_the_current_one():
    assert placed("cpu") == placed(torch.device("cpu")) == torch.device("cpu")
    with posing():
        assert placed("cuda") == placed("cuda:0") == GPU != torch.device("cuda")


@one_case
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda"), GPU], ids=repr)
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_bits_on_a_gpu_make_a_weight_there(device, impl):
    mask = torch.arange(12 * 16).reshape(12, 16) % 3 == 0
    made = partial(kernels.seeded_weight, (12, 16), Draw("uniform", 0.5, 1, "w"), impl=impl)
    wanted = made(bits=kernels.pack_mask(mask))
    with posing():
        found = made(bits=kernels.pack_mask(mask), device=device)
    assert torch.equal(found, wanted)


def test_speed_measures_seeded_weights(monkeypatch, tmp_path):
    """Checks, times and files, by kernels in the interpreter on tensors that pose as a GPU's."""
    names = ("weight whole blocks, uniform16", "linear one token, uniform16", "linear three tokens, uniform16")
    few = [case for case in cases.all_cases() if case.name in names]
    half = (torch.float16,)  # the interpreter has no bfloat16
    monkeypatch.setattr(report, "all_cases", lambda: [replace(case, dtypes=case.dtypes[:1] + half) for case in few])
    monkeypatch.setattr(seeded, "rows", partial(seeded.rows, sizes=[(1, 64, 24), (3, 64, 24)], dtype=torch.float16))
    monkeypatch.setattr(seeded, "captured", finished.waited)
    with posing():
        given = ["device=cuda", "what=seeded", "rounds=1", f"out={tmp_path}"]
        config = command.config_of(given)
        assert config["device"] == "cuda"
        monkeypatch.setattr(processes, "do", lambda jobs, deadline, write: [job.work() for job in jobs])  # posing here
        timed, summary = Hour.of(config, tmp_path).measure(lambda name, contents: None)
    assert summary["checks"] == 14
    assert not summary["checks_failed"] + timed.failed + timed.skipped
    assert (timed.table["ours_s"] > 0).all()
    assert len(timed.table) == 6


# ---------------------------------------------------------------- copies and moves


def test_a_watch_for_nan_is_copied_without_its_event():
    with posing():
        watch = NaNWatch()
        watch.look(torch.ones(3))
        watch.look(torch.tensor([1.0, float("nan")]))
        assert isinstance(watch.arrived, Event)
        for twin in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
            assert twin.arrived is None
            with pytest.raises(ValueError, match="NaN"):
                twin.settle()
            twin.settle()  # told once
        assert watch.arrived.waited == 2
    calm = copy.deepcopy(NaNWatch())
    calm.look(torch.ones(2))
    calm.settle()


def searched():
    """A model of two layers after a step of search on what poses as a GPU, its cuts found and kept there."""
    model = slth.wrap(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False)), weights="signed_constant", seed=0)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    with kernels.use("triton"):
        model(x).square().mean().backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
        wanted = model(x).detach()
    return model, x, wanted


def test_a_searched_model_is_copied_whole():
    with posing():
        model, x, wanted = searched()
        twin = copy.deepcopy(model)
        with kernels.use("triton"):
            assert torch.equal(twin(x), wanted)
        for group in slth.handle(model).groups:
            pickle.loads(pickle.dumps(group)).settle()


class Elsewhere:
    """A number on another device than the scores': it can be brought over, and nothing else."""

    def __init__(self, number):
        self.number = number

    def to(self, device):
        """The number there."""
        return self.number.to(device)

    def __sub__(self, other):
        return Elsewhere(self.number - other)


def test_cuts_follow_scores_to_another_device():
    scores = torch.tensor([[1.0, -2.0, 0.5], [2.0, 0.1, -0.5]])
    cut = Cut(Elsewhere(torch.ones(())), Elsewhere(torch.tensor(5)))
    wanted = [[False, True, False], [True, False, False]]
    assert cut.mask(scores, 6).tolist() == wanted
    assert (pruned_weight(torch.ones_like(scores), (scores, cut.after(6))) != 0).tolist() == wanted
    with kernels.use("triton"):
        assert (pruned_weight(torch.ones_like(scores), (scores, cut.after(6))) != 0).tolist() == wanted


def test_a_selector_follows_its_scores_to_another_device():
    scores = torch.randn(500, generator=torch.Generator().manual_seed(1))
    selector = Selector()
    with kernels.use("triton"):
        wanted = selector.cut([scores], 150).mask(scores)
        (selection,) = selector._selections.values()
        selection._last = Cut(*map(Elsewhere, selection._last))
        assert selector.cut([scores], 150).mask(scores).equal(wanted)
    assert selector.cut([scores], 150).mask(scores).equal(wanted)  # what moves to the CPU is cut there
