"""The project's frame: what is installed, under which names, and which imports a plain `import slth` may cost."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import slth

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str, cwd: Path) -> str:
    """Run the code in an interpreter of its own and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pins() -> dict[str, str]:
    """The versions in constraints.txt by canonical name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_version_is_the_installed_one():
    assert slth.__version__ == importlib.metadata.version("slth")


def test_kernels_are_found_from_anywhere_and_only_as_slth_kernels(tmp_path):
    assert Path(python("import slth.kernels; print(slth.kernels.__file__)", tmp_path)).parent.name == "kernels"
    spec = python("import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)", tmp_path)
    assert not spec.startswith(str(ROOT))


def test_plain_import_is_light(tmp_path):
    loaded = python("import slth, sys; print(*{name.split('.')[0] for name in sys.modules})", tmp_path).split()
    assert "slth" in loaded
    assert not {"sacred", "matplotlib", "seaborn", "transformers", "triton"} & set(loaded)


def test_constraints_pin_every_requirement_within_its_bounds():
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in ("dev", "cluster", "sql", "train") for line in extras[name])]
    requirements = [r for r in map(Requirement, lines) if r.name != "slth"]
    assert Requirement(extras["dev"][0]).extras == {"cluster", "sql", "train"}
    pinned = pins()
    assert not [r.name for r in requirements if canonicalize_name(r.name) not in pinned]
    assert not [r.name for r in requirements if pinned[canonicalize_name(r.name)] not in r.specifier]
