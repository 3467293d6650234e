"""The folder of a sweep: each complete run is a folder named by its id.

A run is written to a temporary folder in .work. Once it has completed, it is renamed to its id in one atomic step; if
that name exists by then, the new run is deleted. A file digests.json in its folder reveals later changes of the
results. Several sweeps may share a folder. Each has a token, holds the lock of that token while it runs, and deletes
what sweeps that were killed left in .work. Only one sweep at a time may gather results or move damaged runs.

The class is not a `lab.Resumable`, because its parts are runs in Sacred's format, which other programs read: digests
are in a separate file, the identity (config and code) is in the name, and the rest handles concurrent sweeps.
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
GATHERED = ".gathered.json"  # names of the files gathered last, and of their runs
ROOM = 1 << 16  # bytes that must be free for a sweep to continue


class Store:
    """The folder of a sweep, opened by one sweep until `close`.

    Raises:
        lab.Refused: if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._created = not folder.exists()
        lab.require_writable(folder, "folder", "choose another with folder=DIR")
        self.folder = folder.resolve()
        self.work = self.folder / ".work"
        self.work.mkdir(exist_ok=True)
        self.token = uuid.uuid4().hex[:12]
        self._lock = _locked_file(self.work / f"{self.token}.lock")
        self._clear_killed_sweeps()

    def close(self) -> None:
        """Remove this sweep's temporary files, and also the folder if this sweep created it and it has no runs."""
        self._clear(self.token)
        self._lock.close()
        if self._created and [*self.folder.iterdir()] == [self.work]:
            with contextlib.suppress(OSError):  # another sweep uses the folder
                self.work.rmdir()
                self.folder.rmdir()

    def _clear_killed_sweeps(self) -> None:
        names = [path.name.split(".") for path in self.work.iterdir()]
        for token in {name[-2] for name in names if len(name) in (2, 3)} - {self.token}:
            try:
                with open(self.work / f"{token}.lock", "rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._clear(token)
            except FileNotFoundError:
                self._clear(token)
            except OSError:  # that sweep still runs, or another one is clearing it
                continue

    def _clear(self, token: str) -> None:
        for place in self.work.glob(f"*.{token}.*"):
            shutil.rmtree(place, ignore_errors=True)
        (self.work / f"{token}.lock").unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the folder, which one sweep at a time can have."""
        with open(self.folder / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def place_for(self, run_id: str, attempt: int) -> Path:
        """Create and return an empty temporary folder for one attempt of a run."""
        place = self.work / f"{run_id}.{self.token}.{attempt}"
        place.mkdir()
        return place

    @property
    def shared(self) -> Path:
        """The folder of files that this sweep's runs share (`lab.sharing`); it is created when needed."""
        return self.work / f"shared.{self.token}.0"

    def require_room(self) -> None:
        """Raise OSError unless ROOM more bytes can be written to the folder."""
        with tempfile.TemporaryFile(dir=self.work) as file:
            file.write(bytes(ROOM))
            file.flush()

    def has(self, run_id: str) -> bool:
        """Return whether the folder has a run of this id."""
        return (self.folder / run_id).is_dir()

    def load(self, run_id: str) -> dict[str, Any]:
        """Return the content of a finished run's run.json.

        Raises:
            lab.BadConfig: if files are missing, or have changed since the run finished.
        """
        folder = self.folder / run_id
        try:
            recorded = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
            changed = [name for name in WHOLE if recorded[name] != _digest(folder / name)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise lab.BadConfig("run", run_id, f"whole; {type(error).__name__}: {error}") from error
        if changed:
            raise lab.BadConfig("run", run_id, f"whole; {changed[0]} is not what the run wrote")
        return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))

    def adopt(self, run_id: str, place: Path) -> None:
        """Move a completed run from its temporary folder to its id, or delete it if that name exists.

        Raises:
            lab.BadConfig: if the run has not completed, or files are missing.
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
        """Write a completed run from the contents of its files by name. Raises lab.BadConfig as `adopt` does."""
        place = self.place_for(run_id, 0)
        try:
            (place / run_id).mkdir()
            write_all(place / run_id, files)
            write_all(place, {"log.txt": files.get("cout.txt", b"")})
            self.adopt(run_id, place)
        finally:
            self.discard(place)

    def discard(self, place: Path) -> None:
        """Delete the temporary folder of an attempt."""
        shutil.rmtree(place, ignore_errors=True)

    def examine(self, run_id: str) -> str | None:
        """Check a run, and move a damaged one to .corrupt; return a message if it was moved, else None."""
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
        """Write the gathered files to the folder, and remove older gathered files that are not among them.

        Call it within `alone()`. Each file is replaced atomically.

        Args:
            files: contents by name.
            runs: ids of the runs that the files describe.

        Returns:
            Whether the files that were gathered before describe any other runs.
        """
        place = self.place_for("gathered", 0)
        write_all(place, files)
        before = self._gathered()
        stale = {*before["files"]} - {*files}
        self._record(place, {*files} | stale, runs)  # lists every file even if we are killed below
        for name in files:
            os.replace(place / name, self.folder / name)
        for name in stale:
            (self.folder / name).unlink(missing_ok=True)
        self._record(place, files, runs)
        self.discard(place)
        return not {*before["runs"]} <= {*runs}

    def _record(self, place: Path, files: Iterable[str], runs: Sequence[str]) -> None:
        content = {"files": sorted(files), "runs": list(runs)}
        write_all(place, {GATHERED: (json.dumps(content, indent=2) + "\n").encode()})
        os.replace(place / GATHERED, self.folder / GATHERED)

    def _gathered(self) -> dict[str, list[str]]:
        try:
            recorded = json.loads((self.folder / GATHERED).read_text(encoding="utf-8"))
            return {name: [Path(entry).name for entry in recorded[name]] for name in ("files", "runs")}
        except (OSError, ValueError, KeyError, TypeError):
            return {"files": [], "runs": []}

    def keep_log(self, run_id: str, place: Path) -> Path | None:
        """Move the log of a failed attempt to .failed and return its path, or None if that is impossible."""
        kept = self.folder / ".failed" / f"{run_id}.txt"
        try:
            kept.parent.mkdir(exist_ok=True)
            os.replace(place / "log.txt", kept)
        except OSError:
            return None
        return kept


def _locked_file(path: Path) -> IO[bytes]:
    """Create a file and lock it, until it is closed or the process ends."""
    while True:
        lock = open(path, "wb")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock.fileno()).st_nlink:
            return lock
        lock.close()  # before we had the lock, another sweep removed the file as one of a killed sweep


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
