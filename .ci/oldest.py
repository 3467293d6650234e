"""Print constraints that hold every requirement of pyproject.toml to the oldest version it allows.

    python .ci/oldest.py > oldest.txt; pip install -c oldest.txt -e '.[dev]'

Requirements of requirements are left to pip.
"""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
LEAST = re.compile(r"([\w.-]+)(?:\[.*?\])?>=([\w.]+)")  # name, extras, the oldest version


def oldest(pyproject: Path = PYPROJECT) -> dict[str, str]:
    """Name -> oldest version, of all requirements, extras' too, that have one."""
    project = tomllib.loads(pyproject.read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return dict(match.groups() for line in lines if (match := LEAST.match(line)))


if __name__ == "__main__":
    print(*(f"{name}=={version}" for name, version in sorted(oldest().items())), sep="\n")
