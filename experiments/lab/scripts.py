"""The experiments as modules: which there are, the one that a script defines, and the config that a run of it gets."""

import functools
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

from slth.experiments.lab.border import create_run
from slth.experiments.lab.config_files import folded
from slth.experiments.lab.experiment import Experiment, require_named
from slth.experiments.lab.refusals import Refused
from slth.experiments.lab.storage import plain

EXPERIMENTS = Path(__file__).parents[1]


def names() -> list[str]:
    """The experiments of this folder: all its modules are commands."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem != "__init__")


def free_keys(name: str) -> list[str]:
    """The config keys of an experiment of this folder that are declared free (`options.free`)."""
    keys: list[str] = load(EXPERIMENTS / f"{name}.py").Config.free_keys()
    return keys


class _Loader(SourceFileLoader):
    """Leaves no __pycache__ beside a script, as Python leaves none of what it runs."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


@functools.cache
def load(script: Path) -> Experiment[Any]:
    """The experiment that a script defines, imported as a module, so that nothing is launched.

    Raises:
        Refused: if it defines none, or several.
    """
    folder = os.fspath(script.parent)
    if script.parent.resolve() != EXPERIMENTS.resolve() and folder not in sys.path:
        # As Python does for a script that it runs: it may import what lies beside it, at any time. A finder of our own
        # would serve this process alone: those that the script spawns are given sys.path.
        sys.path.insert(0, folder)
    loader = _Loader(script.stem, os.fspath(script))
    module = importlib.util.module_from_spec(ModuleSpec(script.stem, loader, origin=os.fspath(script)))
    module.__file__ = os.fspath(script)
    sys.modules.setdefault(script.stem, module)  # where classes are looked for when they are pickled
    loader.exec_module(module)
    experiments = {id(one): one for one in vars(module).values() if isinstance(one, Experiment)}
    if len(experiments) != 1:
        raise Refused(f"{script}: no experiment, for it does not make one by lab.experiment(name, Config)")
    return next(iter(experiments.values()))


def resolve(
    ex: Experiment[Any], updates: Mapping[str, Any], named: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole config of such a run, checked as `launch` checks it, and what of it differs from the defaults.

    Raises:
        Refused: as `launch` refuses it.
    """
    require_named(ex, named)
    keys = folded(updates, ex.with_options())
    given = {keys[key]: value for key, value in updates.items()}
    with ex.files_named(named) as names:
        run = create_run(ex, ex.default_command, given, names, force=True, log_level="ERROR")
    defaults = plain(ex.Config.defaults())
    config = {key: value for key, value in plain(run.config).items() if key != "__doc__"}
    if "seed" not in {*defaults, *updates}:
        config.pop("seed", None)  # Sacred's own, drawn anew each time
    return config, {k: v for k, v in config.items() if k not in defaults or repr(v) != repr(defaults[k])}
