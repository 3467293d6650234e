"""The command line of an experiment: what it means, how its run is made, and in which line it is refused."""

import logging
import pdb
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from slth import console
from slth.experiments.lab import stores
from slth.experiments.lab.border import (
    HANDLER_BY_EXT,
    DocoptExit,
    FileStorageObserver,
    Run,
    SqlObserver,
    apply_backspaces_and_linefeeds,
    docopt,
    get_config_updates,
    print_filtered_stacktrace,
)
from slth.experiments.lab.config_files import folded
from slth.experiments.lab.experiment import USAGE, Experiment, require_known, require_named
from slth.experiments.lab.options import Options
from slth.experiments.lab.refusals import BadConfig, Refused, one_line
from slth.experiments.lab.resuming import KEY as CHECKPOINTS
from slth.experiments.lab.sacred_options import STORES, require_mongo, require_possible
from slth.experiments.lab.signals import Ended, signals_end_a_run
from slth.experiments.lab.storage import RUNS, folder_of, places_of, plain, require_writable
from slth.experiments.lab.values import quoted

C = TypeVar("C", bound=Options)


def launch(ex: Experiment[C]) -> None:
    """Run the experiment as the command line says; the last line of every script.

    The config is checked before anything is stored. What keeps a run from starting (a bad value, an unknown key, a
    wrong option, a folder that cannot be written) ends the program with status 1 and one line on stderr. An error
    inside the run marks it FAILED and shows its traceback without Sacred's frames; an interrupt, SIGTERM or SIGHUP
    marks it INTERRUPTED (status 130, 143, 129), and a line says where it lies and which command goes on with it, if
    any does. A line that cannot be printed changes nothing.

    Runs are stored in the folder `runs` unless the user chose a store of Sacred's (-F, -s, -m, -S, -t) or none (-u).
    """
    with _left_alone(ex):
        _launch(ex)


def _launch(ex: Experiment[C]) -> None:
    console.forgive()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s - %(name)s - %(message)s")
    options: dict[str, Any] = {}
    try:
        options = _options(ex, sys.argv[1:])
        command = options["COMMAND"] or ex.default_command
        require_known("command", command, ex.commands)
        if options["help"] or options["--help"]:
            ex.run_commandline()
        require_possible(options)
        updates, named = updates_of(options["UPDATE"], ex.with_options())
        require_named(ex, named)
        stored = not options["--unobserved"] and not ex.commands[command].unobserved
        if stored and not any(options[store] for store in STORES):
            ex.observers.append(FileStorageObserver(RUNS))
        ex.config_hook(_require_places(ex, options, stored))
        ex.post_run_hook(store_plain_result)
        ex.captured_out_filter = captured
        with signals_end_a_run():
            ex.run(command, updates, named, info={}, meta_info={}, options=options)
    except Refused as error:
        sys.exit(one_line(error))
    except KeyboardInterrupt as end:
        number = end.number if isinstance(end, Ended) else signal.SIGINT
        line = "interrupted" if number == signal.SIGINT else f"interrupted by {number.name}"
        print(line + _where(ex.current_run) + _how_to_go_on(ex, options), file=sys.stderr)
        sys.exit(128 + number)
    except Exception as error:
        if options.get("--debug"):
            raise
        _report(error, started=ex.current_run is not None and ex.current_run.status is not None)
        if options.get("--pdb"):
            pdb.post_mortem(error.__traceback__)
        sys.exit(1)


@contextmanager
def _left_alone(ex: Experiment[C]) -> Iterator[None]:
    """Take back what a launch adds to the experiment, for whoever runs it in the same process later."""
    added = ("observers", "config_hooks", "post_run_hooks")
    before = {name: list(getattr(ex, name)) for name in added}
    try:
        yield
    finally:
        for name, held in before.items():
            getattr(ex, name)[:] = held


def _require_places(
    ex: Experiment[C], options: Mapping[str, Any], stored: bool
) -> Callable[[dict[str, Any], str, Any], dict[str, Any]]:
    """A config hook, the last: it sees that what is to be written can be."""

    def require(config, command_name, logger):  # type: ignore[no-untyped-def]  # Sacred wants these three names
        if command_name == "save_config":
            _require_config_file(config.get("config_filename", "config.json"))
        if stored and options["--sql"]:
            stores.require_database(options["--sql"], options["--id"])
        if stored and options["--mongo_db"]:
            require_mongo(options["--mongo_db"])
        if stored and (options["--file_storage"] or ex.observers):
            _require_room(Path(options["--file_storage"] or RUNS), options["--id"])
        logger.addFilter(_says_more)
        return {}

    return require


def _says_more(record: logging.LogRecord) -> bool:
    """False for Sacred's "Failed after 0:00:01!": one line, or the traceback, tells what happened."""
    return not str(record.msg).startswith(("Failed after", "Aborted after"))


def _where(run: Run | None) -> str:
    """What a line says of where a run lies that has begun: its folder, its places URL#ID in databases, or nothing."""
    if run is None or run.status is None:
        return ""
    return "".join(f"; run: {place}" for place in (folder_of(run), *places_of(run)) if place is not None)


def _how_to_go_on(ex: Experiment[C], options: Mapping[str, Any]) -> str:
    """What a line says of a stored command that has begun: what goes on from its checkpoints, or that nothing does."""
    command = options.get("COMMAND") or ex.default_command
    if ex.current_run is None or ex.current_run.status is None or ex.commands[command].unobserved:
        return ""
    if getattr(ex.checked, CHECKPOINTS, None) is not None:
        again = shlex.join(["python", *sys.argv]) if options["--id"] is None else "the same command without --id"
        return f"; to go on: {again}"
    hint = f": it had no {CHECKPOINTS}=FOLDER" if CHECKPOINTS in ex.Config.kinds() else ""
    return f"; nothing can be resumed{hint}"


def captured(text: str) -> str:
    """What was printed, as UTF-8 can hold it, with the last state of a progress bar alone."""
    return str(apply_backspaces_and_linefeeds(text.encode(errors="backslashreplace").decode()))


def _options(ex: Experiment[C], arguments: list[str]) -> dict[str, Any]:
    """The command line by Sacred's own grammar."""
    try:
        options = dict(docopt(ex.get_usage()[2], arguments, default_help=False))
    except DocoptExit as error:
        first = str(error).partition("\n")[0]
        reason = first if "argument" in first and not first.startswith("Warning") else "not understood"
        line = f"{' '.join(arguments)}: {reason}; write: {USAGE}, or --help"
        raise Refused(line) from None
    options["--force"] = True  # Sacred's own remarks on changed types and added keys: the guard speaks for both
    return options


def updates_of(
    arguments: Sequence[str] | None, with_options: Set[str] = frozenset()
) -> tuple[dict[str, Any], list[str]]:
    """(config updates, names of named configs) from what follows `with`.

    Beside key.option=value, key=value is key.name=value where the key is one `with_options`.
    """
    words = []
    for argument in arguments or []:
        key, equals, value = argument.partition("=")
        if equals and "." in key and not all(key.split(".")):
            raise Refused(f"{argument}: a key with an empty part")
        words.append((key, equals, quoted(value)))
    keys = folded([key for key, equals, _ in words if equals], with_options)
    try:
        updates, named = get_config_updates([keys.get(key, key) + equals + value for key, equals, value in words])
    except Exception as error:
        raise Refused(f"with {' '.join(arguments or [])}: cannot be read as key=value ... ({error})") from error
    return updates, named


def _require_config_file(name: object) -> None:
    """The file that save_config writes is of a kind that Sacred knows, and can be written."""
    if not isinstance(name, str) or Path(name).suffix not in HANDLER_BY_EXT or Path(name).is_dir():
        raise BadConfig("config_filename", name, f"the name of a file that ends in {', '.join(HANDLER_BY_EXT)}")
    require_writable(Path(name).parent, "config_filename", "choose another")


def _require_room(runs: Path, run_id: str | None) -> None:
    """The folder that Sacred will store in can be written, and holds no run of the wished id."""
    require_writable(runs, "runs", "choose another with -F DIR")
    if run_id and (runs / run_id).exists():
        raise Refused(f"--id={run_id}: {runs / run_id} exists already; leave --id out or choose another")


def store_plain_result(_run: Run) -> None:
    """After the main function: the run's result as plain values, for observers that know only these."""
    _run.result = plain(_run.result)
    for observer in _run.observers:
        if isinstance(observer, SqlObserver):
            stores.leave_out_result(observer)


def _report(error: Exception, started: bool) -> None:
    if started:
        print_filtered_stacktrace()
    else:
        line = one_line(f"cannot start: {type(error).__name__}: {error}")
        print(f"{line} (--debug shows the traceback)", file=sys.stderr)
