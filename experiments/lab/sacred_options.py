"""Sacred's own command-line options: which of them are supported, and with which values."""

import importlib.util
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from slth.experiments.lab.refusals import Refused, brief

STORES = ("--file_storage", "--sql", "--mongo_db", "--s3", "--tiny_db")


def require_possible(options: Mapping[str, Any]) -> None:
    """Raise Refused for an option of Sacred's that is not supported, or has a bad value."""
    if options["--queue"]:
        raise Refused("--queue: must be left out, for nothing takes runs from a queue; sweep.py makes many runs")
    if options["--enforce_clean"]:
        raise Refused("--enforce_clean: must be left out; no version control is asked, a run keeps copies of its code")
    for option, (allowed, fits) in _ALLOWED.items():
        given = options[option]
        if given is not None and not fits(given):
            raise Refused(f"{option}={brief(given)}: must be {allowed}")
    for option, module in _MODULES.items():
        if options[option] and not importlib.util.find_spec(module):
            raise Refused(f"{option}={options[option]}: needs {module}: pip install {module}")


def require_mongo(place: str) -> None:
    """Raise Refused if no server answers at --mongo_db within three seconds."""
    import pymongo
    from sacred.observers.mongo import parse_mongo_db_arg

    url = parse_mongo_db_arg(place).get("url", "localhost:27017")
    try:
        with pymongo.MongoClient(f"mongodb://{url}", serverSelectionTimeoutMS=3000) as client:  # type: ignore[var-annotated]
            client.admin.command("ping")
    except pymongo.errors.PyMongoError as error:
        raise Refused(f"--mongo_db={place}: must be where a server answers, none does at {url}") from error


def _is_number(text: str, minimum: float = -math.inf, maximum: float = math.inf) -> bool:
    try:
        return math.isfinite(float(text)) and minimum <= float(text) <= maximum
    except ValueError:
        return False


def _is_level(text: str) -> bool:
    return text in logging.getLevelNamesMapping() or (text.isdecimal() and int(text) <= logging.CRITICAL)


_MOST_S = 1e6  # most seconds between heartbeats; threads cannot wait much longer
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
_MODULES = {"--mongo_db": "pymongo", "--tiny_db": "tinydb", "--s3": "boto3"}  # modules that Sacred imports for a store
