"""The border between the experiments and Sacred: how a run is configured, refused, stored and read again.

An experiment script says what it measures; everything about command lines, run folders and files is here:

    ex = lab.experiment("name")
    ex.add_config(seed=0, hidden=[4, 8])

    def check(config): ...          # raises BadConfig, returns what the experiment needs

    @ex.main
    def main(_config, _run):
        ...
        lab.save(_run, results, summary, figures)
        return summary

    if __name__ == "__main__":
        lab.launch(ex, check)
"""

import ast
import contextlib
import difflib
import functools
import importlib.util
import io
import json
import logging
import math
import os
import pdb
import re
import runpy
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

with warnings.catch_warnings():  # Sacred imports pkg_resources, and from Python 3.12 on deprecated parts of the library
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    import sacred
    from docopt import DocoptExit, docopt
    from sacred import stdout_capturing
    from sacred.arg_parser import get_config_updates
    from sacred.config.config_files import HANDLER_BY_EXT
    from sacred.initialize import create_run
    from sacred.observers import FileStorageObserver, SqlObserver
    from sacred.run import Run
    from sacred.utils import apply_backspaces_and_linefeeds, print_filtered_stacktrace

from slth import console
from slth.experiments.lab.refusals import BadConfig, Refused, _brief, one_line


class _Tee(stdout_capturing.TeeingStreamProxy):  # type: ignore[misc]
    """What is printed in a run goes to the stream and to the run; to the stream alone once the run has ended.

    Whatever was set up within a run may write after it: handlers of logging, colorama as the program ends.
    """

    def write(self, text: str) -> int:
        self.__wrapped__.write(text)
        if not self._self_out.closed:
            self._self_out.write(text)
        return len(text)

    def flush(self) -> None:
        self.__wrapped__.flush()


def _read_up(captured: stdout_capturing.CapturedStdout) -> bool:
    """Whether nothing is left to read: a run that fails or is cut has closed the buffer before its last words are."""
    return bool(captured.buffer.closed) and captured.final is None


stdout_capturing.TeeingStreamProxy = _Tee
stdout_capturing.CapturedStdout.closed = property(_read_up)
sacred.SETTINGS.CAPTURE_MODE = "sys"
sacred.SETTINGS.CONFIG.READ_ONLY_CONFIG = False  # its read-only lists are no lists, for isinstance and json
sacred.SETTINGS.HOST_INFO.INCLUDE_GPU_INFO = False  # asks nvidia-smi: a second, and it fails on shared devices

# Sacred looks at the frame that called it for the script's file and docstring: a partial adds no frame of its own.
# Git stays out: it is slow to ask, may be missing, and every run keeps a copy of its script.
experiment = functools.partial(sacred.Experiment, save_git_info=False)
"""experiment(name) -> sacred.Experiment, to be called at the top level of the script, after its imports."""

RUNS = Path("runs")
HOME: Path | None = None  # the folder that a run's folder is moved to when the run has ended; a sweep names its own
USAGE = "[COMMAND] [with key=value ...] [options]"
STORES = ("--file_storage", "--sql", "--mongo_db", "--s3", "--tiny_db")


# ---------------------------------------------------------------------------------------------------------------------
# Values of a config
# ---------------------------------------------------------------------------------------------------------------------


def as_int(config: Mapping[str, Any], key: str, minimum: int, maximum: float = math.inf) -> int:
    """config[key], an int (no bool, no float) from minimum to maximum, or BadConfig."""
    if not _is_int(config[key], minimum, maximum):
        raise BadConfig(key, config[key], f"an int {_bounds(minimum, maximum)}")
    return int(config[key])


def as_int_list(config: Mapping[str, Any], key: str, minimum: int, maximum: float = math.inf) -> list[int]:
    """config[key], one int or several, as a list: not empty, none twice, each from minimum to maximum, or BadConfig."""
    value = config[key]
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or not all(_is_int(v, minimum, maximum) for v in values) or len(set(values)) < len(values):
        raise BadConfig(key, value, f"an int {_bounds(minimum, maximum)} or a list of them, not empty, none twice")
    return values


def as_float(
    config: Mapping[str, Any],
    key: str,
    *,
    above: float = -math.inf,
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> float:
    """config[key], a finite number (no bool) > above, >= minimum and <= maximum, or BadConfig."""
    value = config[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    finite = number and abs(value) <= sys.float_info.max  # of an int that no float holds, isfinite would raise
    if not finite or value <= above or not minimum <= value <= maximum:
        allowed = ([f"> {above}"] if above > -math.inf else []) + [_bounds(minimum, maximum)]
        raise BadConfig(key, value, " ".join(["a finite number", " and ".join(filter(None, allowed))]).strip())
    return float(value)


def as_choice(config: Mapping[str, Any], key: str, choices: Sequence[str]) -> str:
    """config[key], one of the choices, or BadConfig."""
    value = config[key]
    if not isinstance(value, str) or value not in choices:
        raise BadConfig(key, value, f"one of {', '.join(choices)}")
    return value


def as_bool(config: Mapping[str, Any], key: str) -> bool:
    """config[key], True or False, or BadConfig."""
    if not isinstance(config[key], bool):
        raise BadConfig(key, config[key], "True or False")
    return bool(config[key])


_PART = re.compile(
    r"""
    (?P<quoted> (?: '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" ) \s* (?=[],]) )
    | (?P<mark> [][,] \s* )
    | (?P<bare> [^][,'"{}]+ (?=[],]) )
    """,
    re.VERBOSE,
)


def quoted(text: str) -> str:
    """[a,b] as it comes from a command line, as the literal ['a','b']: words are quoted, what is a literal stays.

    Lists may hold lists. Any other text stays as it is.
    """
    if not (text.startswith("[") and text.endswith("]")) or _is_literal(text):
        return text
    parts, end = [], 0
    for part in _PART.finditer(text):
        if part.start() != end:
            return text
        end = part.end()
        word = part[0].strip()
        parts.append(repr(word) if part["bare"] and not _is_literal(word) else word)
    made = "".join(parts)
    return made if end == len(text) and _is_literal(made) else text


def unbracketed(value: Any) -> Any:
    """Text [a,b], as a file may hold it, as the list that it stands for; all else as it is."""
    made = quoted(value) if isinstance(value, str) and value.startswith("[") else ""
    return ast.literal_eval(made) if _is_literal(made) else value


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _is_int(value: object, minimum: int, maximum: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _bounds(minimum: float, maximum: float) -> str:
    return " and ".join(f"{sign} {bound}" for sign, bound in ((">=", minimum), ("<=", maximum)) if math.isfinite(bound))


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def launch(ex: sacred.Experiment, check: Callable[[dict[str, Any]], object]) -> None:
    """Run the experiment as the command line says; the last line of every script.

    `check` is the experiment's own validation: it is given the whole config and raises BadConfig. It runs before
    anything is stored. What keeps a run from starting (a bad value, an unknown key, a wrong option, a folder that
    cannot be written) ends the program with status 1 and one line on stderr. An error inside the run marks it FAILED
    and shows its traceback without Sacred's frames; an interrupt, SIGTERM or SIGHUP marks it INTERRUPTED (status 130,
    143, 129), and a line says where it lies. A line that cannot be printed changes nothing.

    Runs are stored in the folder `runs` unless the user chose a store of Sacred's (-F, -s, -m, -S, -t) or none (-u).
    """
    console.forgive()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s - %(name)s - %(message)s")
    options: dict[str, Any] = {}
    try:
        options = _options(ex, sys.argv[1:])
        command = options["COMMAND"] or ex.default_command
        _require_known("command", command, ex.commands)
        if options["help"] or options["--help"]:
            ex.run_commandline()
        _require_possible(options)
        updates, named = _updates(options["UPDATE"])
        for name in named:
            if not os.path.isfile(name):
                _require_known("named config", name, ex.named_configs)
        stored = not options["--unobserved"] and not ex.commands[command].unobserved
        if stored and not any(options[store] for store in STORES):
            ex.observers.append(FileStorageObserver(RUNS))
        ex.config_hook(_guard(ex, check, options, stored))
        ex.post_run_hook(_store_plain_result)
        ex.captured_out_filter = _captured
        with _signals_end_a_run():
            ex.run(command, updates, named, info={}, meta_info={}, options=options)
    except Refused as error:
        sys.exit(one_line(error))
    except KeyboardInterrupt as end:
        number = end.number if isinstance(end, Ended) else signal.SIGINT
        line = "interrupted" if number == signal.SIGINT else f"interrupted by {number.name}"
        print(line + _where(ex.current_run), file=sys.stderr)
        sys.exit(128 + number)
    except Exception as error:
        if options.get("--debug"):
            raise
        _report(error, started=ex.current_run is not None and ex.current_run.status is not None)
        if options.get("--pdb"):
            pdb.post_mortem(error.__traceback__)
        sys.exit(1)


def _folder(run: Run) -> Path | None:
    """Where a run is stored; None where it has no folder, or has not begun."""
    return next((Path(o.dir) for o in run.observers if isinstance(o, FileStorageObserver) and o.dir), None)


def _where(run: Run | None) -> str:
    """What a line says of where a run lies that has begun: its folder, its places URL#ID in databases, or nothing."""
    if run is None or run.status is None:
        return ""
    return "".join(f"; run: {place}" for place in (_folder(run), *_places(run)) if place is not None)


def _places(run: Run) -> list[str]:
    urls = (o.engine.url for o in run.observers if isinstance(o, SqlObserver))
    return [f"{url.render_as_string(hide_password=True)}#{run._id}" for url in urls]


class Ended(KeyboardInterrupt):
    """A signal asked this process to end; a run is stored as one that was interrupted."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        super().__init__(number.name)


@contextlib.contextmanager
def _signals_end_a_run() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Ended, once, where they would end the process at once and leave its run RUNNING."""
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    caught = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores SIGHUP
    owner = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a process that was forked within the run ends as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in caught:
            signal.signal(other, signal.SIG_IGN)  # while the run is stored
        raise Ended(signal.Signals(number))

    for number in caught:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in caught:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)


def _captured(text: str) -> str:
    """What was printed, as UTF-8 can hold it, with the last state of a progress bar alone."""
    return str(apply_backspaces_and_linefeeds(text.encode(errors="backslashreplace").decode()))


Check = Callable[[dict[str, Any]], object]


@functools.cache
def launched_by(script: Path) -> tuple[sacred.Experiment, Check]:
    """The experiment that the script would launch, and its check, without launching it."""
    launched: list[tuple[sacred.Experiment, Check]] = []
    module = sys.modules[__name__]
    folder, as_it_is = os.fspath(script.parent), launch
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module.launch = lambda ex, check: launched.append((ex, check))  # type: ignore[attr-defined]
    try:
        runpy.run_path(os.fspath(script), run_name="__main__")
    finally:
        module.launch = as_it_is  # type: ignore[attr-defined]
    if not launched:
        raise Refused(f"{script}: no experiment, for it does not end with lab.launch(ex, check)")
    return launched[0]


def resolve(
    ex: sacred.Experiment, check: Check, updates: Mapping[str, Any], named: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole config of such a run, checked as `launch` checks it, and what of it differs from the defaults.

    Raises:
        Refused: as `launch` refuses it.
    """
    for name in named:
        _require_known("named config", name, ex.named_configs)
    guard = ex.config_hook(_guard(ex, check, {}, stored=False))
    try:
        run = create_run(ex, ex.default_command, dict(updates), list(named), force=True, log_level="ERROR")
    finally:
        ex.config_hooks.remove(guard)
    defaults = plain(_defaults(ex))
    config = {key: value for key, value in plain(run.config).items() if key != "__doc__"}
    if "seed" not in {*defaults, *updates}:
        config.pop("seed", None)  # Sacred's own, drawn anew each time
    return config, {k: v for k, v in config.items() if k not in defaults or repr(v) != repr(defaults[k])}


def _defaults(ex: sacred.Experiment) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for scope in ex.configurations:
        defaults.update(scope(preset=defaults))
    return defaults


def _options(ex: sacred.Experiment, arguments: list[str]) -> dict[str, Any]:
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


def _updates(arguments: list[str] | None) -> tuple[dict[str, Any], list[str]]:
    """Config updates and the names of named configs, from what follows `with`."""
    words = []
    for argument in arguments or []:
        key, equals, value = argument.partition("=")
        if equals and "." in key and not all(key.split(".")):
            raise Refused(f"{argument}: a key with an empty part")
        words.append(key + equals + quoted(value))
    try:
        return get_config_updates(words)
    except Exception as error:
        raise Refused(f"with {' '.join(arguments or [])}: cannot be read as key=value ... ({error})") from error


def _guard(
    ex: sacred.Experiment, check: Callable[[dict[str, Any]], object], options: Mapping[str, Any], stored: bool
) -> Callable[..., dict[str, Any]]:
    """A config hook: it sees the final config before anything is stored, and refuses what cannot be run."""
    defaults = _defaults(ex)

    def guard(config, command_name, logger):  # type: ignore[no-untyped-def]  # Sacred wants these three names
        arguments = [name for name in ex.commands[command_name].signature.arguments if not name.startswith("_")]
        for key, value in config.items():
            if key not in ("seed", "__doc__"):
                _require_known("key", key, [*defaults, *arguments], f"{key}={_brief.repr(value)}")
            require_text(key, value)
        if "seed" in config:
            as_int(config, "seed", 0, 2**32 - 1)  # Sacred also seeds numpy's global generator, which takes no more
        check(config)
        if command_name == "save_config":
            _require_config_file(config.get("config_filename", "config.json"))
        if stored and options["--sql"]:
            _require_database(options["--sql"], options["--id"])
        if stored and (options["--file_storage"] or ex.observers):
            _require_room(Path(options["--file_storage"] or RUNS), options["--id"])
        # Its one line, or the traceback, tells what happened; Sacred's "Failed after 0:00:01!" adds a second.
        logger.addFilter(lambda record: not str(record.msg).startswith(("Failed after", "Aborted after")))
        return {}

    return guard


def require_text(key: str, value: Any) -> None:
    """BadConfig where text in a value holds what no file can, nor its name: null characters, half a surrogate pair."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for part in value:
            require_text(key, part)
    elif isinstance(value, str) and ("\0" in value or value != value.encode(errors="replace").decode()):
        raise BadConfig(key, value, "text in UTF-8 without null characters")


def _require_known(what: str, name: str, allowed: Iterable[str], given: str | None = None) -> None:
    allowed = sorted(set(allowed) - {"__doc__"})
    if name in allowed:
        return
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    hint = f", did you mean {near[0]}?" if near else ";"
    if what == "command":
        hint = f"{hint} write: {USAGE};"
    raise Refused(f"{given or name}: unknown {what}{hint} allowed: {', '.join(allowed) or 'none'}")


def _require_possible(options: Mapping[str, Any]) -> None:
    """Refused for an option of Sacred's that cannot be followed."""
    if options["--queue"]:
        raise Refused("--queue: must be left out, for nothing takes runs from a queue; sweep.py makes many runs")
    if options["--enforce_clean"]:
        raise Refused("--enforce_clean: must be left out; no version control is asked, a run keeps copies of its code")
    for option, (allowed, fits) in _ALLOWED.items():
        given = options[option]
        if given is not None and not fits(given):
            raise Refused(f"{option}={_brief.repr(given)}: must be {allowed}")
    for option, module in _MODULES.items():
        if options[option] and not importlib.util.find_spec(module):
            raise Refused(f"{option}={options[option]}: needs {module}: pip install {module}")


def _is_number(text: str, minimum: float = -math.inf, maximum: float = math.inf) -> bool:
    try:
        return math.isfinite(float(text)) and minimum <= float(text) <= maximum
    except ValueError:
        return False


def _is_level(text: str) -> bool:
    return text in logging.getLevelNamesMapping() or (text.isdecimal() and int(text) <= logging.CRITICAL)


_MOST_S = 1e6  # seconds between heartbeats; a thread does not wait for much more
_ALLOWED: dict[str, tuple[str, Callable[[str], bool]]] = {
    "--beat-interval": (f"a number >= 0 and <= {_MOST_S:g}, of seconds", lambda text: _is_number(text, 0, _MOST_S)),
    "--capture": ("one of no, sys, fd", lambda text: text in ("no", "sys", "fd")),
    "--id": (
        "at most 200 letters, digits and any of . _ + = @ -, first a letter or a digit",
        lambda text: bool(re.fullmatch(r"[^\W_][\w.+=@-]{0,199}", text)) and len(text.encode()) <= 200,
    ),
    "--loglevel": ("an int from 0 to 50, or DEBUG, INFO, WARNING, ERROR, CRITICAL", _is_level),
    "--priority": ("a finite number", _is_number),
    **dict.fromkeys(STORES, ("a place, not empty", bool)),
}
_MODULES = {"--mongo_db": "pymongo", "--tiny_db": "tinydb", "--s3": "boto3"}  # that Sacred imports for a store


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


def require_writable(folder: Path, key: str, remedy: str) -> None:
    """Make the folder and try to write in it; where that fails, remove what was made and raise Refused."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise Refused(f"{key}={folder}: cannot write there ({error.strerror}); {remedy}") from error


def _store_plain_result(_run: Run) -> None:
    """After the main function: the run's result as plain values, for observers that know only these."""
    _run.result = plain(_run.result)
    for observer in _run.observers:
        if isinstance(observer, SqlObserver):
            _leave_out_result(observer)


def _leave_out_result(observer: SqlObserver) -> None:
    """Sacred's SQL table has one float for the result: a summary would break it, and stands in summary.json anyway."""
    for method in ("heartbeat_event", "completed_event"):
        event = getattr(observer, method)
        setattr(observer, method, lambda event=event, **given: event(**{**given, "result": None}))


def sql_tables() -> Any:
    """Sacred's SQL tables by name, for text of any length where they are yet to be made.

    PostgreSQL would hold them to their 16 to 64 characters, which the path of a folder soon exceeds. Raises
    ModuleNotFoundError without sqlalchemy.
    """
    import sqlalchemy

    with warnings.catch_warnings():  # Sacred asks for the base of its tables where sqlalchemy 1 had it
        warnings.filterwarnings("ignore", message="The ``declarative_base", category=sqlalchemy.exc.MovedIn20Warning)
        from sacred.observers.sql_bases import Base

    for table in Base.metadata.tables.values():
        for column in table.columns:
            if type(column.type) is sqlalchemy.String:
                column.type = sqlalchemy.Text()
    return Base.metadata.tables


def _require_database(url: str, run_id: str | None) -> None:
    """Refused where an SQL database cannot be reached, or holds a run of the wished id."""
    try:
        run = sql_tables()["run"]
        import sqlalchemy

        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            known = run_id is not None and sqlalchemy.inspect(connection).has_table("run")
            taken = known and connection.execute(run.select().where(run.c.run_id == run_id)).first() is not None
        engine.dispose()
    except ModuleNotFoundError as error:
        raise Refused(f"-s {url}: needs {error.name}: pip install 'slth[sql]'") from error
    except (sqlalchemy.exc.SQLAlchemyError, ValueError, TypeError) as error:  # of a port or a setting that is none
        raise Refused(f"-s {url}: no database that can be reached ({str(error).partition(chr(10))[0]})") from error
    if taken:
        raise Refused(f"--id={run_id}: the database holds a run of that id; leave --id out or choose another")


def _report(error: Exception, started: bool) -> None:
    if started:
        print_filtered_stacktrace()
    else:
        line = one_line(f"cannot start: {type(error).__name__}: {error}")
        print(f"{line} (--debug shows the traceback)", file=sys.stderr)


def progress(iterable: Iterable[Any] | None, description: str, total: int | None = None) -> tqdm:
    """The same items with a progress bar on stderr, quiet where that is no terminal. Without items: `.update()`."""
    return tqdm(iterable, desc=description, total=total, disable=None)


# ---------------------------------------------------------------------------------------------------------------------
# Files of a run
# ---------------------------------------------------------------------------------------------------------------------


def save(
    run: Run,
    results: pandas.DataFrame,
    summary: Mapping[str, Any],
    figures: Mapping[str, Figure],
    others: Mapping[str, bytes] | None = None,
) -> Path | None:
    """Store what a run found, and say where.

    results.csv: one row per measurement, no index; the text of a float is exact, the same float gives the same text.
    summary.json: `plain(summary)`. Each figure: NAME.png and NAME.svg. Others: whole files by name.

    Everything is rendered before the first file is written, and a file appears under its name only when it is whole.
    In a run folder of Sacred's the files lie beside run.json; other observers store them as artifacts. Call it as the
    last act of the main function: the run is marked COMPLETED after it.

    Returns:
        The run's folder, or None where the run has none.
    """
    files = {"results.csv": _csv(results), "summary.json": _json(summary), **render(figures), **(others or {})}
    if not run.observers:
        return None
    folder = _folder(run)
    with tempfile.TemporaryDirectory() if folder is None else contextlib.nullcontext(folder) as place:
        write(Path(place), files)
        for name in files:  # the file observer's own folder: it notes the name and leaves the file alone
            run.add_artifact(os.path.join(place, name), name)
    for at in _places(run):
        print(f"results: {at}")
    if folder is not None:
        home = folder if HOME is None else HOME / folder.name
        print(f"results: {home / 'results.csv'}")
        for name in figures:
            print(f"figure: {home / name}.png")
        for name in others or {}:
            print(f"file: {home / name}")
    return folder


def _csv(table: pandas.DataFrame) -> bytes:
    """The table as CSV in UTF-8 with LF: each float64 as the shortest text that stands for it alone, NaN as nothing."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def _json(summary: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(summary), indent=2, allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """The same as dicts, lists, strings, ints, floats, bools and None; NaN and infinities, unknown to JSON, are None.

    Raises:
        TypeError: for anything that has no such form.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, tensors
        return plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a summary holds numbers, strings, lists and dicts, not {type(value).__name__}: {value!r}")


def render(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Each figure as NAME.png (150 dots an inch) and NAME.svg, without dates: the same figure gives the same bytes."""
    files = {}
    with matplotlib.rc_context({"svg.hashsalt": "slth"}):
        for name, figure in figures.items():
            png, svg = io.BytesIO(), io.BytesIO()
            figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
            files |= {f"{name}.png": _with_few_colors(png), f"{name}.svg": svg.getvalue()}
    return files


def _with_few_colors(png: io.BytesIO) -> bytes:
    """The picture with a palette of 256 colours: half the size or less, and no difference to the eye."""
    small = io.BytesIO()
    Image.open(png).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png")
    return small.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into the folder, each under a temporary name first: a final name stands for a whole file."""
    for name, content in files.items():
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)


def load_run(folder: str | os.PathLike[str]) -> tuple[pandas.DataFrame, dict[str, Any], dict[str, Any]]:
    """Read a stored run's folder: results, summary, config. (Those in databases: `stores.load_run`.)

    Raises:
        BadConfig: (key `runs`) if a file is missing or cannot be read, or Sacred did not mark the run COMPLETED.
    """
    folder = Path(folder)
    results, summary, config, run = (_load(folder, name, read) for name, read in _READERS.items())
    if run.get("status") != "COMPLETED":
        raise BadConfig("runs", str(folder), f"a completed run; this one is {run.get('status')}")
    config.pop("__doc__", None)
    return results, summary, config


def _load(folder: Path, name: str, read: Callable[[Path], Any]) -> Any:
    try:
        return read(folder / name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise BadConfig("runs", str(folder), f"a run's folder; its {name} cannot be read ({reason})") from error


def json_object(text: str | bytes) -> dict[str, Any]:
    """The dict that JSON stands for. Raises ValueError where it is something else."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _read_dict(path: Path) -> dict[str, Any]:
    return json_object(path.read_text(encoding="utf-8"))


_READERS: dict[str, Callable[[Path], Any]] = {
    "results.csv": pandas.read_csv,
    "summary.json": _read_dict,
    "config.json": _read_dict,
    "run.json": _read_dict,
}
