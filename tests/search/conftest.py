"""How the steps of a fit are taken in a test."""

import pytest

from slth.search import steps
from slth.search.steps.device import DeviceStep
from slth.search.steps.graph import GraphStep


@pytest.fixture
def by_device(monkeypatch):
    """Have fit leave its steps to the device, recorded by a Replayer or not."""

    def use(recorder=None):
        def choose(training, masks, graph, name):
            step = DeviceStep(training, masks)
            return GraphStep(step, name, recorder) if recorder else step

        monkeypatch.setattr(steps, "choose", choose)

    return use
