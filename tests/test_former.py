"""Modules that have moved: both names are one module."""

from importlib import import_module

import pytest

from slth.former import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_a_former_name_is_the_module_itself(name):
    module = import_module(name)
    assert module is import_module(MOVED[name])
    assert module.__name__ == module.__spec__.name == MOVED[name]


def test_a_name_may_be_taken_from_a_former_package():
    from slth.masking import parameters, targets

    assert targets is parameters
