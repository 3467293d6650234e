"""A folder of checkpoints belongs to one config and one text: what it says of itself, and when it is refused."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from slth.disk import write_all
from slth.experiments.lab import BadConfig, require_writable

CLAIM = "checkpoints.json"  # in the folder: the config that its checkpoints are of


def check(folder: Path | None, claim: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """BadConfig where the folder holds checkpoints of another config, Refused where it cannot be written.

    The last of all checks: the folder is made where it is missing. What it says of keys that are free does not count.
    """
    if folder is None:
        return
    held = {key: value for key, value in _held(folder).items() if key not in free}
    for key in {**claim, **held} if held else ():
        if held.get(key) != claim.get(key):
            was = f"{key}={held.get(key)!r}, not {claim.get(key)!r}"
            raise BadConfig("checkpoints", str(folder), f"another folder: its checkpoints are of {was}")
    require_writable(folder, "checkpoints", "choose another")


def put(folder: Path | None, claim: Mapping[str, Any]) -> None:
    """Note in the folder what its checkpoints are of."""
    if folder:
        write_all(folder, {CLAIM: json.dumps(claim, indent=2).encode()})


def _held(folder: Path) -> dict[str, Any]:
    """What the folder says of itself, nothing where it is not claimed."""
    try:
        return dict(json.loads((folder / CLAIM).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise BadConfig("checkpoints", str(folder), f"another folder: its {CLAIM} cannot be read ({error})") from error
