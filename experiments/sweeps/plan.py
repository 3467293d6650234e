"""The runs of a sweep: the grid or list is expanded, each config is checked, and its hash gives the run's name."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """A run: its id, the updates on its command line, its full config, and the values that differ from the defaults."""

    id: str
    updates: dict[str, Any]
    config: dict[str, Any]
    changed: dict[str, Any]

    def __str__(self) -> str:
        return f"run {self.id} ({brief(self.updates)})"


def brief(updates: Mapping[str, Any]) -> str:
    """Return the updates as text, such as "hidden=32, seed=0"."""
    return ", ".join(f"{key}={value}" for key, value in updates.items()) or "the defaults"


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested dicts to one key per value: {"method": {"rate": 0.2}} becomes {"method.rate": 0.2}."""
    keys: dict[str, Any] = {}
    for key, value in config.items():
        inner = flat(value) if isinstance(value, dict) and value and all(isinstance(k, str) for k in value) else None
        keys |= {key: value} if inner is None else {f"{key}.{option}": part for option, part in inner.items()}
    return keys


def text(value: Any) -> str:
    """Format a config value for a cell of a table: text as it is, None as "", everything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def unfold(base: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the updates of every run: each config of `runs`, or one empty config, at each point of the grid.

    The first key of the grid changes slowest. A grid value that is not a list counts as a list of one. If several set
    the same key, the grid takes precedence over `runs`, and `runs` over `base`.
    """
    axes = [values if isinstance(values, list | tuple) else [values] for values in grid.values()]
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*axes)]
    return [{**base, **run, **point} for run in runs or [{}] for point in points]


def identity(experiment: str, changed: Mapping[str, Any], version: str) -> str:
    """Return 16 hex digits of the SHA-256 of the experiment, the non-default config values and the code's version."""
    text = json.dumps([experiment, dict(changed), version], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def name(experiment: str, named: Sequence[str], points: Sequence[Mapping[str, Any]]) -> str:
    """Return a sweep's name: EXPERIMENT- and 8 hex digits of the SHA-256 of named configs and updates, in order."""
    text = json.dumps([list(named), [dict(point) for point in points]], sort_keys=True)
    return f"{experiment}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def resolve(script: Path, named: Sequence[str], points: Sequence[dict[str, Any]], version: str) -> list[dict[str, Any]]:
    """Return the runs for a list of updates as dicts of the fields of `Run`, without duplicates.

    It imports the experiment, so it runs in a process of the fork server, where the import is already done.

    Raises:
        lab.Refused: at the first invalid config; the message is one line that names the run and the key.
    """
    from slth.experiments import lab
    from slth.experiments.lab import scripts
    from slth.experiments.sweeps import code

    ex = scripts.load(script)
    runs: dict[str, dict[str, Any]] = {}
    for number, updates in enumerate(points, 1):
        try:
            config, changed = scripts.resolve(ex, updates, named)
        except lab.Refused as error:
            raise lab.Refused(f"run {number} of {len(points)} ({brief(updates)}): {error}") from error
        name = identity(script.stem, changed, code.version_of(config, version))
        runs.setdefault(name, {"id": name, "updates": updates, "config": config, "changed": changed})
    return list(runs.values())


def varying(runs: Sequence[Run]) -> list[str]:
    """Return the config keys whose values differ among the runs, in the order of the config."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if len({json.dumps(run.config.get(key), sort_keys=True) for run in runs}) > 1]
