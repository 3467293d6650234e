"""Experiments on top of Sacred's, with a config that is declared once and passed to main as a checked object."""

import contextlib
import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from slth.experiments.lab import config_files
from slth.experiments.lab.border import ConfigDict, ConfigSummary, Run, sacred
from slth.experiments.lab.live import sent_to
from slth.experiments.lab.options import MOST_SEED, Options, an_integer
from slth.experiments.lab.refusals import Refused, brief
from slth.experiments.lab.values import require_text
from slth.fields import require_dataclass

USAGE = "[COMMAND] [with key=value ...] [options]"
HELP = "help_config"  # the command that needs no complete config

C = TypeVar("C", bound=Options)
Main = Callable[[C, Run], object]


class Experiment(sacred.Experiment, Generic[C]):  # type: ignore[misc]  # Sacred has no types
    """A Sacred experiment with one config class; create it by :func:`experiment`, since Sacred inspects its caller."""

    Config: type[C]
    named_configs: dict[str, Any]
    checked: C
    """The config of the current run."""

    def declare(self, config: type[C]) -> None:
        """Make the class's fields the experiment's keys, which are checked before anything else in a run.

        Raises ValueError for a class that is no dataclass.
        """
        require_dataclass(config)
        self.Config = config
        self.configurations.append(_Declared(config))
        self.config_hook(_check_of(self))
        self.command(_help_command(config), unobserved=True)

    def main(self, function: Main[C]) -> Main[C]:
        """Decorate main(config, run), the default command."""
        return self._default(function, unobserved=False)

    def unstored(self, function: Main[C]) -> Main[C]:
        """Decorate the default command of an experiment that is not stored."""
        return self._default(function, unobserved=True)

    def _default(self, function: Main[C], *, unobserved: bool) -> Main[C]:
        def command(_run: Run) -> object:
            with sent_to(_run.log_scalar):
                return function(self.checked, _run)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        self.command(command, unobserved=unobserved)
        self.default_command = function.__name__
        return function

    def before_storing(self, require: Callable[[], None]) -> None:
        """Call `require` after the config is checked and before anything is stored."""

        def hook(config, command_name, logger):  # type: ignore[no-untyped-def]  # Sacred wants these three names
            require()
            return {}

        self.config_hook(hook)

    def add_named_config(self, name: str, cfg_or_file: Any = None, **values: Any) -> None:
        """Name a set of values of keys, as in `with smoke`."""
        super().add_named_config(name, cfg_or_file, **config_files.canonical(values, self.with_options()))

    @contextlib.contextmanager
    def files_named(self, named: Sequence[str]) -> Iterator[list[str]]:
        """Make config files among `named` named configs within the with block; yield the names for Sacred.

        Raises:
            Refused: if a file cannot be read.
        """
        before, names = dict(self.named_configs), list(named)
        try:
            for i, name in enumerate(names):
                if os.path.isfile(name):
                    names[i] = f"file {i}"  # Sacred takes a dot in a name as a separator
                    self.named_configs[names[i]] = config_files.read(name, self.with_options())
            yield names
        finally:
            self.named_configs = before

    def _create_run(
        self,
        command_name: str | None = None,
        config_updates: dict[str, Any] | None = None,
        named_configs: Sequence[str] = (),
        *others: Any,
    ) -> Run:
        with self.files_named(named_configs) as names:
            run = super()._create_run(command_name, config_updates, names, *others)
        run.meta_info["named_configs"] = list(named_configs)
        return run

    def with_options(self) -> set[str]:
        """The keys that may have options, as key.option=value."""
        return {key for key, kind in self.Config.kinds().items() if kind.with_options}

    def get_usage(self, program_name: str | None = None) -> tuple[str, str, str]:
        """Return Sacred's usage (short, long, docopt's), with the config's keys added to the long one."""
        short, long, parsed = super().get_usage(program_name)
        return short, f"{long}\n{help_of(self.Config)}", parsed


def experiment(name: str, config: type[C]) -> Experiment[C]:
    """Create an experiment with the keys of this class; call it at the top level of a script, after its imports."""
    # Sacred takes the script's file, docstring and imports from the calling frame; eval makes that the script's frame.
    # Git is not used: it is slow, may be missing, and every run stores a copy of its script.
    script = sys._getframe(1).f_globals
    made: Experiment[C] = eval("made(name, save_git_info=False)", script, {"made": Experiment, "name": name})
    made.declare(config)
    return made


class _Declared(ConfigDict):  # type: ignore[misc]
    """The defaults of a config class, and its help for Sacred's `print_config`."""

    def __init__(self, config: type[Options]) -> None:
        super().__init__(config.defaults())
        self._help = config.help()

    def __call__(self, fixed: Any = None, preset: Any = None, fallback: Any = None) -> ConfigSummary:
        summary = super().__call__(fixed, preset, fallback)
        summary.docs.update(self._help)
        return summary


def _check_of(ex: Experiment[C]) -> Callable[[dict[str, Any], str, Any], dict[str, Any]]:
    """Return a config hook that checks the final config before anything is stored. It raises Refused."""

    def check(config, command_name, logger):  # type: ignore[no-untyped-def]  # Sacred wants these three names
        require_keys(ex, config, command_name)
        if command_name != HELP:
            ex.checked = ex.Config.of(config)
        return {}

    return check


def require_keys(ex: Experiment[C], config: Mapping[str, Any], command: str) -> None:
    """Raise Refused for a key that neither the experiment nor the command has, and a value that no file can hold."""
    arguments = [name for name in ex.commands[command].signature.arguments if not name.startswith("_")]
    for key, value in config.items():
        if key not in ("seed", "__doc__"):
            require_known("key", key, [*ex.Config.kinds(), *arguments], f"{key}={brief(value)}")
        require_text(key, value)
    if "seed" in config:  # for Sacred, whether the experiment has one or not
        an_integer(0, MOST_SEED).read("seed", config["seed"])


def require_known(what: str, name: str, allowed: Iterable[str], given: str | None = None) -> None:
    """Raise Refused if there is no such command, key or named config; the line suggests the nearest one."""
    allowed = sorted({*allowed})
    if name in allowed:
        return
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    hint = f", did you mean {near[0]}?" if near else ";"
    if what == "command":
        hint = f"{hint} write: {USAGE};"
    raise Refused(f"{given or name}: unknown {what}{hint} allowed: {', '.join(allowed) or 'none'}")


def require_named(ex: Experiment[C], names: Iterable[str]) -> None:
    """Raise Refused for a name that is neither a named config nor a file."""
    for name in names:
        if not os.path.isfile(name):
            require_known("named config", name, ex.named_configs)


def _help_command(config: type[Options]) -> Callable[[], None]:
    def help_config() -> None:
        """Print the config's keys with defaults, help and allowed values, and exit."""
        print(help_of(config))

    return help_config


def help_of(config: type[Options]) -> str:
    """Return a paragraph for every key: key=default, its help, and the allowed values."""
    lines = ["Config:"]
    for key, kind in config.kinds().items():
        lines.append(f"  {key}={config.defaults()[key]!r}")
        paragraph = f"{config.help()[key]} ({kind.allowed()})"
        lines += textwrap.wrap(paragraph, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
