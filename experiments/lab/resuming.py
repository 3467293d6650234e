"""Folders of checkpoints, from which an interrupted run is resumed: measurements in parts, and their settings."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slth.experiments.lab.refusals import BadConfig
from slth.experiments.lab.storage import json_object, require_writable

KEY = "checkpoints"  # the config key of the folder
SETTINGS = "settings"  # the part that only has the settings
_KIND, _VERSION = "part", 1
#: The settings of a folder of an older version, in plain JSON, as its parts NAME.json.
FORMER = "checkpoints.json"


@dataclass(frozen=True)
class Settings:
    """The settings that all parts of a folder depend on; values of keys in `free` are not compared."""

    values: Mapping[str, Any]
    free: Collection[str] = ()

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the values."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the values after a round trip through JSON."""
        return dict(json.loads(json.dumps(self.values)))

    def differences(self, other: Any) -> list[str]:
        """Describe each key whose value differs, with both values."""
        here, there = self.to_json(), {key: value for key, value in other.items() if key not in self.free}
        keys = [key for key in {**here, **there} if there.get(key) != here.get(key)]
        return [f"{key}={there.get(key)!r}, not {here.get(key)!r}" for key in keys]


class Resumable:
    """A folder of parts, JSON objects by name, each in a sealed file. With folder=None nothing is read or stored.

    The folder may also have checkpoints of searches (`slth.fit`), which are sealed files too. Folders of older
    versions, whose parts are plain JSON, can be read.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any], free: Collection[str] = ()) -> None:
        self.folder, self.settings = folder, Settings(settings, free)

    def check(self, names: Iterable[str] = ()) -> None:
        """Check the settings of the folder and the stored parts of these names, and create the folder.

        Raises:
            BadConfig: for parts of other settings, or damaged ones.
            Refused: if the folder cannot be written.
        """
        if self.folder is None:
            return
        former = _former(self.folder / FORMER)
        if former is not None and (differences := self.settings.differences(former)):
            raise _of_others(self.folder, differences)
        self._stored(SETTINGS)
        for name in names:
            self.read(name)
        require_writable(self.folder, KEY, "choose another")

    def begin(self) -> None:
        """Store the folder's settings."""
        self.write(SETTINGS, {})

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a stored part, or None. Raises BadConfig for one of other settings, or a damaged one."""
        if self.folder is None:
            return None
        part = self._stored(name)
        return _former(self.folder / f"{name}.json") if part is None else part

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Store a part of JSON values, which may also be NaN or infinite."""
        if self.folder is not None:
            from slth import resuming  # with torch, which many a command does without

            text = json.dumps(content)  # as text, since numbers may be NaN or infinite
            resuming.save(self._path(name), _KIND, _VERSION, self.settings, {}, {"content": text})

    def _stored(self, name: str) -> dict[str, Any] | None:
        from slth import resuming

        path = self._path(name)
        try:
            _, manifest = resuming.read(path, _KIND, _VERSION, self.settings)
            return json_object(manifest["content"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except resuming.Foreign as error:
            raise _of_others(path.parent, error.differences) from error
        except resuming.Damaged as error:
            raise _unreadable(path, error.reason) from error
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from error

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.part"


def _former(path: Path) -> dict[str, Any] | None:
    """Read a plain JSON file of an older version, or return None. Raises BadConfig."""
    try:
        return json_object(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _of_others(folder: Path, differences: list[str]) -> BadConfig:
    return BadConfig(KEY, str(folder), f"another folder: its checkpoints are of {differences[0]}")


def _unreadable(path: Path, reason: object) -> BadConfig:
    return BadConfig(
        KEY, str(path.parent), f"another folder, or without its {path.name}, which cannot be read ({reason})"
    )
