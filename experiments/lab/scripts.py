"""The experiments as modules: list them, load the one that a script defines, and resolve the config of a run."""

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
    """Return the names of the experiments in this folder; all its modules are commands."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem != "__init__")


def free_keys(name: str) -> list[str]:
    """Return the config keys of an experiment that are declared free (`options.free`)."""
    keys: list[str] = load(EXPERIMENTS / f"{name}.py").Config.free_keys()
    return keys


class _Loader(SourceFileLoader):
    """A loader that writes no __pycache__ next to a script, as when Python runs it."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


@functools.cache
def load(script: Path) -> Experiment[Any]:
    """Import a script as a module, without launching it, and return its experiment.

    Raises:
        Refused: if it defines none, or several.
    """
    folder = os.fspath(script.parent)
    if script.parent.resolve() != EXPERIMENTS.resolve() and folder not in sys.path:
        # As Python does for a script that it runs, so that it can import modules next to it at any time. A finder would
        # not be enough, since processes that the script spawns get sys.path only.
        sys.path.insert(0, folder)
    loader = _Loader(script.stem, os.fspath(script))
    module = importlib.util.module_from_spec(ModuleSpec(script.stem, loader, origin=os.fspath(script)))
    module.__file__ = os.fspath(script)
    sys.modules.setdefault(script.stem, module)  # pickle looks up classes here
    loader.exec_module(module)
    experiments = {id(one): one for one in vars(module).values() if isinstance(one, Experiment)}
    if len(experiments) != 1:
        raise Refused(f"{script}: no experiment, for it does not make one by lab.experiment(name, Config)")
    return next(iter(experiments.values()))


def resolve(
    ex: Experiment[Any], updates: Mapping[str, Any], named: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the complete config of a run, checked as in `launch`, and its values that differ from the defaults.

    Raises:
        Refused: as `launch` does.
    """
    require_named(ex, named)
    keys = folded(updates, ex.with_options())
    given = {keys[key]: value for key, value in updates.items()}
    with ex.files_named(named) as names:
        run = create_run(ex, ex.default_command, given, names, force=True, log_level="ERROR")
    defaults = plain(ex.Config.defaults())
    config = {key: value for key, value in plain(run.config).items() if key != "__doc__"}
    if "seed" not in {*defaults, *updates}:
        config.pop("seed", None)  # Sacred's own, which is random
    return config, {k: v for k, v in config.items() if k not in defaults or repr(v) != repr(defaults[k])}
