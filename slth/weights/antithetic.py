"""Antithetic sources: attentions in which each sum has as many candidates of either sign, whatever the seed.

Hidden units come in pairs whose second factors (key for W_QK, output for W_VO) are opposite, +c and -c; the first
factors (query, value) are uniform on (0, c). So of the products that an entry's subset sum chooses from, one of each
pair is positive and one negative, and their sizes are independent: all subsets differ, and what they reach is centred
at 0. Among uniform products, those of one sign may by chance be few and small, and the entries that are then out of
reach rule the mean error over all sources.
"""

from __future__ import annotations

from slth.weights.inits import Fan, theory_scale
from slth.weights.recipes import Draw, Recipe

INIT = "antithetic"  # as an attention's init
DISTRIBUTIONS = {"query": "positive", "value": "positive", "key": "sign", "output": "sign"}


def recipe(fan: Fan, axes: int, *, seed: int, name: str) -> Recipe:
    """The recipe of an attention's parameter of so many axes (..., in, out), at theory's scale c.

    A parameter without a role is uniform on (-c, c).
    """
    drawn = Draw(DISTRIBUTIONS.get(fan.role, "uniform"), theory_scale(fan), seed, name)
    hidden = {"key": axes - 1, "output": axes - 2}.get(fan.role)
    return Recipe((drawn,), pairs=None if hidden is None else (hidden, -1))
