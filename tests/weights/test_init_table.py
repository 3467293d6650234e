"""Each init by name: its distribution and its scale; what is refused."""

import math

import pytest
from tables import one_case

from slth.weights import inits

# ---------------------------------------------------------------- initialisations

FAN = inits.Fan(fan_in=32, fan_out=16, width=81)
PRUNED = inits.Fan(fan_in=32, fan_out=16, keep=0.25)


def of_role(role):
    return inits.Fan(fan_in=32, fan_out=16, width=81, role=role)


@one_case
@pytest.mark.parametrize(
    ("init", "fan", "distribution", "scale"),
    [
        ("theory", of_role("query"), inits.uniform, 3.0),
        ("theory", of_role("key"), inits.uniform, 3.0),
        ("theory", of_role("value"), inits.uniform, 1.0),
        ("theory", of_role("output"), inits.uniform, 1.0),
        ("theory", FAN, inits.uniform, 1.0),
        ("xavier_uniform", FAN, inits.uniform, math.sqrt(6 / 48)),
        ("kaiming_uniform", FAN, inits.uniform, math.sqrt(6 / 32)),
        ("kaiming_uniform", PRUNED, inits.uniform, math.sqrt(6 / 8)),
        ("kaiming_normal", FAN, inits.normal, math.sqrt(2 / 32)),
        ("kaiming_normal", PRUNED, inits.normal, math.sqrt(2 / 8)),
        ("signed_constant", FAN, inits.sign, math.sqrt(2 / 32)),
        ("signed_constant", PRUNED, inits.sign, math.sqrt(2 / 8)),
        ("gpt2", FAN, inits.normal, 0.02),
    ],
)
def test_init_table(init, fan, distribution, scale):
    taken, scale_of = inits.INITS[init]
    assert taken is distribution
    assert scale_of(fan) == pytest.approx(scale, rel=1e-15)
    made = inits.weight(init, (5, 7), fan, seed=1, name="w", scale=2.0, stream=4)
    assert made.equal(distribution((5, 7), 2.0 * scale_of(fan), seed=1, name="w", stream=4))


def test_every_init_is_in_the_table_test():
    listed = {"theory", "xavier_uniform", "kaiming_uniform", "kaiming_normal", "signed_constant", "gpt2"}
    assert set(inits.INITS) == listed
