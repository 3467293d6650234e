"""The project's frame: what is installed, under which names, and which imports a plain `import slth` may cost."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from libraries import OPTIONAL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import slth

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: Code after which nothing that an extra brings can be imported, as where the core alone is installed.
BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))"


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


def test_the_core_alone_runs_readmes_example_and_names_the_extras(tmp_path):
    example = re.findall(r"## Construct\n+```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    rest = """
print(float((source(x) - target(x)).norm(dim=-1).max()), float(construction.certificate.bound), construction.keep)
import slth.search, slth.tasks.text, slth.ticket.serving
for line in "import slth.models.gpt2", "from slth.plots import figures":
    try:
        exec(line)
    except ModuleNotFoundError as error:
        print(error)
"""
    *_, numbers, gpt2, plots = python("\n".join([BLOCKED, *example, rest]), tmp_path).splitlines()
    error, bound, keep = map(float, numbers.split())
    assert 0 < error < bound < 0.02
    assert 0.2 < keep < 0.3
    assert gpt2 == 'transformers is not installed: pip install "slth[gpt2]"'
    assert plots == 'pandas is not installed: pip install "slth[experiments]"'


def test_constraints_pin_every_requirement_within_its_bounds():
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = ("dev", *Requirement(extras["dev"][0]).extras)
    lines = [*PYPROJECT["project"]["dependencies"], *(line for name in asked for line in extras[name])]
    requirements = [r for r in map(Requirement, lines) if r.name != "slth"]
    pinned = pins()
    assert not [r.name for r in requirements if canonicalize_name(r.name) not in pinned]
    assert not [r.name for r in requirements if pinned[canonicalize_name(r.name)] not in r.specifier]


def test_tests_have_what_experiments_need():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert {"experiments", "gpt2", "cluster", "sql", "train", "docs"} == Requirement(extras["dev"][0]).extras


def test_the_core_is_small():
    core = {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]}
    assert core == {"torch", "numpy", "scipy", "numba", "safetensors", "triton"}


@pytest.mark.xdist_group("frame")
def test_groups_of_tests_stay_together(request):
    """In one process: what a group shares would be made by each of several."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@frame")
