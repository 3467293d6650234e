"""The command `slth`: describe and apply tickets, list experiments and run them.

Each command imports what it needs when it runs, so that `slth --help` loads no torch.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from slth import console

if TYPE_CHECKING:
    from torch import nn

EXPERIMENTS = Path(__file__).parent / "experiments"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 1 with one line on stderr if the command fails."""
    console.forgive()
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], str] = options.command
    try:
        text = command(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(console.one_line(str(error)), file=sys.stderr)
        return 1
    print(text, flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slth", description="Strong lottery tickets: inspect them, apply them, run experiments."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], str], help: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        one.set_defaults(command=command)
        return one

    add("show", _show, "describe a ticket").add_argument("file", metavar="FILE")
    summary = add("summary", _summary, "show shares kept by layer and projection, and dead units, of a trusted file")
    summary.add_argument("file", metavar="FILE")
    help = "another ticket with the same shapes, to compute the overlap"
    summary.add_argument("other", metavar="OTHER", nargs="?", help=help)
    apply = add("apply", _apply, "build a network, apply a ticket to it, and write its weights as safetensors")
    apply.add_argument("file", metavar="TICKET")
    help = "your function that builds the network: my_file.py:build or package.module:build(width=3)"
    apply.add_argument("module", metavar="MODULE", help=help)
    apply.add_argument("--out", metavar="FILE", required=True, help="the file for the weights")
    help = "weights (safetensors) of the trained network that was pruned, for a ticket over a base"
    apply.add_argument("--base", metavar="FILE", help=help)
    add("list", _list, "list the experiments")
    run = add("run", _run, "run an experiment; `slth run NAME help_config` prints its keys")
    run.add_argument("experiment", metavar="EXPERIMENT")
    help = "with key=value ..., a named config, or Sacred's options"
    run.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help=help)
    return parser


def _show(options: argparse.Namespace) -> str:
    from slth.ticket.__main__ import show

    return show(options.file)


def _summary(options: argparse.Namespace) -> str:
    from slth.ticket.__main__ import summary

    return summary(options.file, options.other)


def _apply(options: argparse.Namespace) -> str:
    folder = Path(options.out).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"--out={options.out}: must be in a folder that exists")
    from safetensors.torch import load_model, save_model

    from slth.ticket import Ticket

    ticket = Ticket.load(options.file)
    module = _built(options.module)
    if options.base is not None:
        try:
            load_model(module, options.base)
        except Exception as error:  # safetensors and torch raise several types for wrong files, names and shapes
            raise ValueError(f"--base={options.base}: must hold the weights of {options.module} ({error})") from error
    ticket.apply(module)
    save_model(module, options.out)
    return f"{options.out}: {Path(options.out).stat().st_size:,} bytes, read by safetensors.torch.load_model"


def _built(place: str) -> nn.Module:
    """Build a module with the user's function at `place`. Raises ValueError if that fails."""
    from slth import plugins

    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does, so that modules in the working folder can be imported
    where, options = plugins.split(place)
    build = plugins.load_callable("MODULE", where)
    try:
        module: nn.Module = build(**options)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"MODULE={place}: cannot be built ({type(error).__name__}: {error})") from error
    return module


def _list(options: argparse.Namespace) -> str:
    names = _experiments()
    width = max(map(len, names))
    rows = [f"{name:{width}}  {_summary_of(EXPERIMENTS / f'{name}.py')}" for name in names]
    return "\n".join([*rows, "", "slth run NAME with smoke   tries one; slth run NAME help_config   prints its keys"])


def _experiments() -> list[str]:
    return sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem != "__init__")


def _summary_of(script: Path) -> str:
    """The first line of a script's docstring, read without importing the script."""
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _run(options: argparse.Namespace) -> str:
    names = _experiments()
    if options.experiment not in names:
        near = difflib.get_close_matches(options.experiment, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"EXPERIMENT={options.experiment}: must be one of {', '.join(names)}{hint}")
    for package in ("sacred", "seaborn"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f'{package} is not installed: pip install "slth[experiments]"')
    script = str(EXPERIMENTS / f"{options.experiment}.py")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, script, *options.arguments])
