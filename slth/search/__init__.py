"""Learn masks: every weight has a score, the best `keep` share of them is the mask, and only scores are trained."""

from slth.search import baselines, controls
from slth.search.base import Search
from slth.search.bernoulli import Bernoulli
from slth.search.biprop import Biprop
from slth.search.checkpoint import CheckpointError
from slth.search.edge_popup import EdgePopup
from slth.search.frozen import Frozen
from slth.search.iterand import IteRand
from slth.search.loop import Fit, fit
from slth.search.methods import METHODS, method

__all__ = [
    "METHODS",
    "Bernoulli",
    "Biprop",
    "CheckpointError",
    "EdgePopup",
    "Fit",
    "Frozen",
    "IteRand",
    "Search",
    "baselines",
    "controls",
    "fit",
    "method",
]
