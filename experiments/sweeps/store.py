"""What stands in a sweep's folder: whole runs under their names, and nothing else that anybody looks at.

A run is made in a place of its own below .work and moved to its name when it is completed and whole, in one step; where
the name is taken by then, the newcomer is thrown away. A file digests.json goes along, so that any later change of a
result is noticed. Several sweeps may share a folder: each holds a lock on a token of its own while it lives, and
clears away what the dead left. What is gathered, and what is moved aside, is so by one sweep at a time.

It is no `lab.Resumable`, for its parts are runs as Sacred stores them, which others read: their seal lies beside them,
their identity (config and code) is in their name, and the rest is about several sweeps at work in one folder.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from slth.disk import write_all
from slth.experiments import lab

WHOLE = ("results.csv", "summary.json", "config.json", "run.json")
DIGESTS = "digests.json"
GATHERED = ".gathered.json"  # the runs that were gathered last, and the files that were made of them
ROOM = 1 << 16  # bytes; with less a sweep does not go on


class Store:
    """A sweep's folder, for as long as the sweep lives.

    Raises:
        lab.Refused: if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._made = not folder.exists()
        lab.require_writable(folder, "folder", "choose another with folder=DIR")
        self.folder = folder.resolve()
        self.work = self.folder / ".work"
        self.work.mkdir(exist_ok=True)
        self.token = uuid.uuid4().hex[:12]
        self._lock = _held(self.work / f"{self.token}.lock")
        self._bury_the_dead()

    def close(self) -> None:
        """Remove what this sweep left on its way, and a folder that it made in vain."""
        self._clear(self.token)
        self._lock.close()
        if self._made and [*self.folder.iterdir()] == [self.work]:
            with contextlib.suppress(OSError):  # another sweep has come
                self.work.rmdir()
                self.folder.rmdir()

    def _bury_the_dead(self) -> None:
        names = [path.name.split(".") for path in self.work.iterdir()]
        for token in {name[-2] for name in names if len(name) in (2, 3)} - {self.token}:
            try:
                with open(self.work / f"{token}.lock", "rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._clear(token)
            except FileNotFoundError:
                self._clear(token)
            except OSError:  # it lives, or another is burying it
                continue

    def _clear(self, token: str) -> None:
        for place in self.work.glob(f"*.{token}.*"):
            shutil.rmtree(place, ignore_errors=True)
        (self.work / f"{token}.lock").unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One sweep of this folder at a time."""
        with open(self.folder / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def place_for(self, run_id: str, attempt: int) -> Path:
        """A new, empty folder that only this attempt writes to."""
        place = self.work / f"{run_id}.{self.token}.{attempt}"
        place.mkdir()
        return place

    @property
    def shared(self) -> Path:
        """Where this sweep's runs lay what others of them may take; not there before it is needed."""
        return self.work / f"shared.{self.token}.0"

    def require_room(self) -> None:
        """Raise OSError where the folder takes no more files."""
        with tempfile.TemporaryFile(dir=self.work) as file:
            file.write(bytes(ROOM))
            file.flush()

    def has(self, run_id: str) -> bool:
        """Whether a run stands under this name."""
        return (self.folder / run_id).is_dir()

    def load(self, run_id: str) -> dict[str, Any]:
        """A finished run's run.json.

        Raises:
            lab.BadConfig: if it is not whole, or not as it was when it was finished.
        """
        folder = self.folder / run_id
        try:
            noted = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
            changed = [name for name in WHOLE if noted[name] != _digest(folder / name)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise lab.BadConfig("run", run_id, f"whole; {type(error).__name__}: {error}") from error
        if changed:
            raise lab.BadConfig("run", run_id, f"whole; {changed[0]} is not what the run wrote")
        return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))

    def adopt(self, run_id: str, place: Path) -> None:
        """Give a completed run its name, or throw it away where the name is taken.

        Raises:
            lab.BadConfig: if the run is not completed and whole.
        """
        made = place / run_id
        lab.load_run(made)
        digests = {name: _digest(made / name) for name in WHOLE}
        os.replace(place / "log.txt", made / "log.txt")
        write_all(made, {DIGESTS: (json.dumps(digests, indent=2) + "\n").encode()})
        sources = self.folder / "_sources"
        sources.mkdir(exist_ok=True)
        for source in (place / "_sources").glob("*"):
            os.replace(source, sources / source.name)
        try:
            made.rename(self.folder / run_id)
        except OSError:
            if not self.has(run_id):
                raise
        self.discard(place)
        (self.folder / ".failed" / f"{run_id}.txt").unlink(missing_ok=True)

    def restore(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Give a completed run that was kept elsewhere its name, from the files of its folder. Raises as `adopt`."""
        place = self.place_for(run_id, 0)
        try:
            (place / run_id).mkdir()
            write_all(place / run_id, files)
            write_all(place, {"log.txt": files.get("cout.txt", b"")})
            self.adopt(run_id, place)
        finally:
            self.discard(place)

    def discard(self, place: Path) -> None:
        """Remove what an attempt left."""
        shutil.rmtree(place, ignore_errors=True)

    def examine(self, run_id: str) -> str | None:
        """Move a finished run that is not whole any more out of the way, and keep it; returns what to say of it."""
        with self.alone():
            if not self.has(run_id):
                return None
            try:
                self.load(run_id)
                return None
            except lab.BadConfig as error:
                aside = self.folder / ".corrupt"
                aside.mkdir(exist_ok=True)
                to = aside / f"{run_id}.{uuid.uuid4().hex[:8]}"
                (self.folder / run_id).rename(to)
                return f"{error}; moved to {to}"

    def publish(self, files: Mapping[str, bytes], runs: Sequence[str]) -> bool:
        """Lay what was gathered of the runs beside them, in the place of all that was gathered before.

        To be called `alone`. Each name stands for a whole file at any time. Returns whether other runs than these had
        been gathered here.
        """
        place = self.place_for("gathered", 0)
        write_all(place, files)
        before = self._gathered()
        stale = {*before["files"]} - {*files}
        self._note(place, {*files} | stale, runs)  # whoever is killed from here on leaves no file unknown
        for name in files:
            os.replace(place / name, self.folder / name)
        for name in stale:
            (self.folder / name).unlink(missing_ok=True)
        self._note(place, files, runs)
        self.discard(place)
        return not {*before["runs"]} <= {*runs}

    def _note(self, place: Path, files: Iterable[str], runs: Sequence[str]) -> None:
        content = {"files": sorted(files), "runs": list(runs)}
        write_all(place, {GATHERED: (json.dumps(content, indent=2) + "\n").encode()})
        os.replace(place / GATHERED, self.folder / GATHERED)

    def _gathered(self) -> dict[str, list[str]]:
        try:
            noted = json.loads((self.folder / GATHERED).read_text(encoding="utf-8"))
            return {name: [Path(entry).name for entry in noted[name]] for name in ("files", "runs")}
        except (OSError, ValueError, KeyError, TypeError):
            return {"files": [], "runs": []}

    def keep_log(self, run_id: str, place: Path) -> Path | None:
        """Keep the log of a failed attempt; None where it has none, or the disk has no room for it."""
        kept = self.folder / ".failed" / f"{run_id}.txt"
        try:
            kept.parent.mkdir(exist_ok=True)
            os.replace(place / "log.txt", kept)
        except OSError:
            return None
        return kept


def _held(path: Path) -> IO[bytes]:
    """The file, made and locked until it is closed or the process ends."""
    while True:
        lock = open(path, "wb")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock.fileno()).st_nlink:
            return lock
        lock.close()  # another took it for a dead sweep's before it was locked


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
