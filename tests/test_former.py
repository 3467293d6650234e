"""Modules that have moved: both names are one module."""

from importlib import import_module

import pytest
from tables import one_case

from slth.former import MOVED, _Former


@one_case
@pytest.mark.parametrize("name", MOVED)
def test_a_former_name_is_the_module_itself(name):
    module = import_module(name)
    assert module is import_module(MOVED[name])
    assert module.__name__ == module.__spec__.name == MOVED[name]


def test_imports_in_several_threads_do_not_cross():
    finder, names = _Former(), ["slth.masks", "slth.targets", "slth.masking.targets", "slth.bits"]
    specs = [finder.find_spec(name, None) for name in names]
    modules = [finder.create_module(spec) for spec in specs]
    for module, spec in zip(modules, specs, strict=True):
        module.__spec__ = spec  # as the import system does between the two steps
    for module in modules:
        finder.exec_module(module)
    assert [module.__spec__.name for module in modules] == [MOVED[name] for name in names]


def test_a_name_may_be_taken_from_a_former_package():
    from slth.masking import parameters, targets

    assert targets is parameters
