"""Which runs a sweep has: the grid or list is unfolded, each config checked and named by what it is."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run: its name, what its command line adds to the defaults, and the whole config that this gives."""

    id: str
    updates: dict[str, Any]
    config: dict[str, Any]
    changed: dict[str, Any]

    def __str__(self) -> str:
        return f"run {self.id} ({brief(self.updates)})"


def brief(updates: Mapping[str, Any]) -> str:
    """The values as they stand on a command line."""
    return ", ".join(f"{key}={value}" for key, value in updates.items()) or "the defaults"


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same with one key for each value: {"method": {"rate": 0.2}} as {"method.rate": 0.2}."""
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
    """The updates of every run: each of the list (none: one that changes nothing) at each point of the grid.

    The grid's first key changes slowest; a value that is no list is a list of one. Later ones win: base, list, grid.
    """
    axes = [values if isinstance(values, list | tuple) else [values] for values in grid.values()]
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*axes)]
    return [{**base, **run, **point} for run in runs or [{}] for point in points]


def identity(experiment: str, changed: Mapping[str, Any], version: str) -> str:
    """16 hex digits of the SHA-256 of experiment, config values other than the defaults, and the code's version."""
    text = json.dumps([experiment, dict(changed), version], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def name(experiment: str, named: Sequence[str], points: Sequence[Mapping[str, Any]]) -> str:
    """Of a sweep: EXPERIMENT- and 8 hex digits of the SHA-256 of what its runs are to be, in their order."""
    text = json.dumps([list(named), [dict(point) for point in points]], sort_keys=True)
    return f"{experiment}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def resolve(script: Path, named: Sequence[str], points: Sequence[dict[str, Any]], version: str) -> list[dict[str, Any]]:
    """The runs at these points as plain values, none twice. Made where the experiment has been imported.

    Raises:
        lab.Refused: for the first run that the experiment would refuse; its one line names run and key.
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
    """The config keys that are not the same in all runs, in the order of the config."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if len({json.dumps(run.config.get(key), sort_keys=True) for run in runs}) > 1]
