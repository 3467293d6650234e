"""Antithetic sources: attentions in which every subset sum has equally many candidates of both signs, for any seed.

Hidden units come in pairs whose second factors (key for W_QK, output for W_VO) are opposite, +c and -c; the first
factors (query, value) are uniform on (0, c). So each pair gives a subset sum one positive and one negative candidate,
with independent magnitudes: all subsets differ, and the range of their sums is centred at 0. With uniform factors,
candidates of one sign may by chance be few and small; the entries that are then out of reach dominate the mean error
over sources.
"""

from __future__ import annotations

from slth.weights.inits import Fan, theory_scale
from slth.weights.recipes import Draw, Recipe

INIT = "antithetic"  # the name of this init for attentions
DISTRIBUTIONS = {"query": "positive", "value": "positive", "key": "sign", "output": "sign"}


def recipe(fan: Fan, axes: int, *, seed: int, name: str) -> Recipe:
    """Return the recipe of an attention's parameter (..., in, out) with `axes` axes, c being the scale of "theory".

    A parameter without a role is uniform on (-c, c).
    """
    draw = Draw(DISTRIBUTIONS.get(fan.role, "uniform"), theory_scale(fan), seed, name)
    hidden = {"key": axes - 1, "output": axes - 2}.get(fan.role)
    return Recipe((draw,), pairs=None if hidden is None else (hidden, -1))
