"""Prunings of GPT-2s made small."""

from slth.experiments import gpt2_prune

SMALL = {
    **gpt2_prune.PLAIN,
    "keep": 0.5,
    "embedding_std": 0.15,
    "size": "tiny*0.25",
    "length": 16,
    "lr": [0.001, 0.02],
    "base_std": 0.06,
    "position_std": 0.02,
    "pilot_steps": 4,
    "steps": 30,
    "batch": 4,
    "every": 10,
    "windows": 8,
}


def config_of(text):
    """The config `plain` made small, on a text, with changes."""
    return lambda **changed: gpt2_prune.Config.defaults() | SMALL | {"data": str(text)} | changed
