"""A GPT-2 that is small."""

from slth.models import gpt2

SMALL = {"n_layer": 2, "n_embd": 24, "n_head": 3}  # of the tiny model, for what needs no statistics


def small(**changed):
    return gpt2.config(vocabulary=11, length=7, **(SMALL | changed))
