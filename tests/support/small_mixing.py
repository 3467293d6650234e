"""Comparisons of attentions made small."""

from slth.experiments import mixing

SMALL = {"variants": ["kha_linear", "mhla"], "seeds": 2, "hidden": [8, 16], "lengths": [8], "block": 4, "steps": 3}
SMALL |= {"error_steps": 3, "error_batch": 4, "size": "tiny*0.25", "length": 16, "keep": [0.3, 0.5], "batch": 2}
SMALL |= {"windows": 4, "spikes": True, "spike_lrs": [0.01], "spike_steps": 25, "lr": 0.01}


def config_of(text):
    """The default config made small, on a text, with changes."""
    return lambda **changed: mixing.Config.defaults() | SMALL | {"data": str(text)} | changed
