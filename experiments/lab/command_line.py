"""The command line of an experiment: parse it, run the experiment, or refuse with one line."""

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
    """Run the experiment from the command line; this is the last line of every script.

    The config is checked before anything is stored. If a run cannot start (a bad value, an unknown key, a wrong option,
    a folder that is not writable), the program ends with status 1 and one line on stderr. An error inside the run marks
    it FAILED and shows its traceback without Sacred's frames. An interrupt, SIGTERM or SIGHUP marks it INTERRUPTED
    (status 130, 143, 129), and one line says where the run is stored and which command, if any, resumes it. Failing to
    print a line has no further effect.

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
    """Undo what a launch adds to the experiment, so that it can be run again in the same process."""
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
    """Return the last config hook, which checks that all files can be written."""

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
    """Filter out Sacred's "Failed after 0:00:01!", since one line, or the traceback, tells what happened."""
    return not str(record.msg).startswith(("Failed after", "Aborted after"))


def _where(run: Run | None) -> str:
    """Describe where a started run is stored: its folder, and its places URL#ID in databases."""
    if run is None or run.status is None:
        return ""
    return "".join(f"; run: {place}" for place in (folder_of(run), *places_of(run)) if place is not None)


def _how_to_go_on(ex: Experiment[C], options: Mapping[str, Any]) -> str:
    """Describe how to resume a stored run from its checkpoints, or that it cannot be resumed."""
    command = options.get("COMMAND") or ex.default_command
    if ex.current_run is None or ex.current_run.status is None or ex.commands[command].unobserved:
        return ""
    if getattr(ex.checked, CHECKPOINTS, None) is not None:
        again = shlex.join(["python", *sys.argv]) if options["--id"] is None else "the same command without --id"
        return f"; to go on: {again}"
    hint = f": it had no {CHECKPOINTS}=FOLDER" if CHECKPOINTS in ex.Config.kinds() else ""
    return f"; nothing can be resumed{hint}"


def captured(text: str) -> str:
    """Clean printed text: valid UTF-8, and only the last state of each progress bar."""
    return str(apply_backspaces_and_linefeeds(text.encode(errors="backslashreplace").decode()))


def _options(ex: Experiment[C], arguments: list[str]) -> dict[str, Any]:
    """Parse the command line by Sacred's own grammar. Raises Refused."""
    try:
        options = dict(docopt(ex.get_usage()[2], arguments, default_help=False))
    except DocoptExit as error:
        first = str(error).partition("\n")[0]
        reason = first if "argument" in first and not first.startswith("Warning") else "not understood"
        line = f"{' '.join(arguments)}: {reason}; write: {USAGE}, or --help"
        raise Refused(line) from None
    options["--force"] = True  # no remarks of Sacred's on changed types and added keys, which are checked here
    return options


def updates_of(
    arguments: Sequence[str] | None, with_options: Set[str] = frozenset()
) -> tuple[dict[str, Any], list[str]]:
    """Return (config updates, names of named configs) from the arguments after `with`.

    For keys in `with_options`, key=value next to key.option=value means key.name=value. Raises Refused.
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
    """Raise Refused unless save_config can write its file, of a kind that Sacred knows."""
    if not isinstance(name, str) or Path(name).suffix not in HANDLER_BY_EXT or Path(name).is_dir():
        raise BadConfig("config_filename", name, f"the name of a file that ends in {', '.join(HANDLER_BY_EXT)}")
    require_writable(Path(name).parent, "config_filename", "choose another")


def _require_room(runs: Path, run_id: str | None) -> None:
    """Raise Refused unless the folder of runs is writable and has no run with the requested id."""
    require_writable(runs, "runs", "choose another with -F DIR")
    if run_id and (runs / run_id).exists():
        raise Refused(f"--id={run_id}: {runs / run_id} exists already; leave --id out or choose another")


def store_plain_result(_run: Run) -> None:
    """Replace the run's result by plain values after the main function, for observers that support only these."""
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
