"""The version of the code that runs: the same config under changed code is another run."""

import hashlib
from collections.abc import Iterator
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1]
IDLE = ("sweep.py", "plot.py", "sweeps")  # of experiments/: no run executes them


def version(script: Path) -> str:
    """slth's version and 16 hex digits over every source file of slth, its kernels, the experiments and the script.

    Comments count, data files and other packages do not: it is bytes that are compared.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_sources(script)):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"{installed('slth')}+{digest.hexdigest()[:16]}"


def _sources(script: Path) -> Iterator[tuple[str, Path]]:
    for room in ("slth", "slth.kernels"):
        spec = find_spec(room)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield from ((f"{room}/{path.relative_to(folder)}", path) for path in Path(folder).rglob("*.py"))
    for path in EXPERIMENTS.rglob("*.py"):
        name = path.relative_to(EXPERIMENTS)
        if name.parts[0] not in IDLE:
            yield f"experiments/{name}", path
    yield "script", script
