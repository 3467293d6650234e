"""Which runs a sweep has, how they are named, and what is refused."""

import re
import shutil
import sys

import pytest
from command_lines import launched
from hypothesis import given
from hypothesis import strategies as st
from sweeping import TOY
from tables import one_case

from slth.experiments import lab
from slth.experiments import sweep as script
from slth.experiments.lab import storage
from slth.experiments.sweeps import code, conduct, plan

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


def asked(**given):
    """What a sweep's config asks for."""
    return script.Config(**{"experiment": "approx_error", **given}).sweep


# ---------------------------------------------------------------- which runs


def test_the_first_key_of_a_grid_changes_slowest_and_later_ones_win():
    points = plan.unfold({"seed": 7, "d": 1}, [{"heads": 2}, {"d": 3}], {"hidden": [4, 8], "seed": 1})
    assert points == [
        {"seed": 1, "d": 1, "heads": 2, "hidden": 4},
        {"seed": 1, "d": 1, "heads": 2, "hidden": 8},
        {"seed": 1, "d": 3, "hidden": 4},
        {"seed": 1, "d": 3, "hidden": 8},
    ]


def test_no_grid_and_no_list_is_one_run():
    assert plan.unfold({"seed": 3}, [], {}) == [{"seed": 3}]


@given(st.dictionaries(st.text(), VALUES), VALUES)
def test_a_run_is_named_by_its_values_whatever_their_order(changed, value):
    names = {plan.identity("a", dict(order), "1") for order in (changed.items(), reversed(changed.items()))}
    assert len(names) == 1
    assert len(names.pop()) == 16
    other = {**changed, "one more": value}
    assert plan.identity("a", other, "1") != plan.identity("a", changed, "1")


def test_experiment_and_code_are_part_of_the_name():
    names = {plan.identity(*given) for given in (("a", {}, "1"), ("b", {}, "1"), ("a", {}, "2"))}
    assert len(names) == 3


def test_changed_code_is_another_version(tmp_path):
    path = tmp_path / "toy.py"
    versions = []
    for text in (TOY, TOY + "# changed\n", TOY):
        path.write_text(text)
        versions.append(code.version(path))
    assert versions[0] == versions[2] != versions[1]


HELPERS = {
    "beside": ("import helper\n", "helper.py"),
    "in a function": ("def main():\n    from helper import a\n", "helper.py"),
    "of a helper": ("import first\n", "helper.py"),
    "in a package": ("import package\n", "package/deep/module.py"),
    "without __init__": ("from namespace import part\n", "namespace/part.py"),
    "linked": ("import linked\n", "elsewhere/real.py"),
    "linked package": ("import linked_package\n", "elsewhere/package/module.py"),
    "on the path": ("import distant\n", "lib/distant.py"),
    "by a literal": ("import importlib\nimportlib.import_module('helper')\n", "helper.py"),
    "by a name": ("import importlib\nimportlib.import_module('hel' + 'per')\n", "helper.py"),
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder, with what a script may import, and what it does not."""
    others = {"first.py": "import helper\n", "package/__init__.py": "", "package/deep/__init__.py": ""}
    others |= {"elsewhere/package/__init__.py": "", "stranger.py": "", "notes.txt": ""}
    for name, text in {**others, **{name: "a = 1\n" for _, name in HELPERS.values()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "linked.py").symlink_to(tmp_path / "elsewhere" / "real.py")
    (tmp_path / "linked_package").symlink_to(tmp_path / "elsewhere" / "package")
    for folder in (tmp_path / "lib", tmp_path):
        monkeypatch.syspath_prepend(folder)
    return tmp_path


@pytest.mark.parametrize("kind", HELPERS)
def test_a_changed_helper_is_another_version(kind, project):
    imports, name = HELPERS[kind]
    (project / "toy.py").write_text(imports)
    before = code.version(project / "toy.py")
    (project / "stranger.py").write_text("b = 2\n") if kind != "by a name" else None
    (project / "notes.txt").write_text("other\n")
    assert code.version(project / "toy.py") == before
    (project / name).write_text("a = 2\n")
    assert code.version(project / "toy.py") != before


def test_what_has_been_imported_is_part_of_the_version(project):
    (project / "toy.py").write_text("")
    versions = {code.version(project / "toy.py", imported) for imported in ((), ("helper",), ("json", "pytest", "lab"))}
    assert len(versions) == 2


def test_the_version_does_not_depend_on_where_the_files_lie(project, tmp_path_factory, monkeypatch):
    (project / "toy.py").write_text("import helper, package\n")
    before = code.version(project / "toy.py")
    moved = shutil.copytree(project, tmp_path_factory.mktemp("moved") / "to", symlinks=True)
    monkeypatch.setattr(sys, "path", [str(moved), *(path for path in sys.path if not path.startswith(str(project)))])
    assert code.version(moved / "toy.py") == before


def test_the_version_covers_the_sources_and_not_the_sweeps_own(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    names = {name for name, _ in code._sources(path, ())}
    assert names >= {
        "slth/masking/masks.py",
        "slth/kernels/select/reference.py",
        "slth/experiments/lab/__init__.py",
        "script",
    }
    assert not {name for name in names if "sweep" in name}


@one_case
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"experiment": "approximate"}, "experiment='approximate': must be one of approx_error,"),
        ({"experiment": None}, "experiment=None: must be one of"),
        ({"grid": 3}, "grid=3: must be given key by key"),
        ({"grid": {"hidden": []}}, r"grid.hidden=\[\]: must be a value"),
        ({"runs": [3]}, r"runs=\[3\]: must be a list of configs"),
        ({"named": [3]}, r"named=\[3\]: must be the name"),
        ({"cpus": 0}, "cpus=0: must be an int >= 1"),
        ({"gpus": 1.5}, "gpus=1.5: must be a share"),
        ({"gpus": -1}, "gpus=-1: must be a finite number >= 0"),
        ({"retries": -1}, "retries=-1: must be an int >= 0"),
        ({"workers": 0}, "workers=0: must be an int >= 1"),
        ({"address": 3}, "address=3: must be host:port"),
        ({"sql": "runs.db"}, "sql='runs.db': must be a database's URL"),
        ({"folder": 3}, "folder=3: must be a folder"),
        ({"file": "none.yaml"}, "file='none.yaml': must be a YAML file"),
        ({"base": {"seed": {1}}}, "must be numbers, text, lists and None"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(lab.BadConfig, match=message):
        asked(**given)


def test_names_and_values_of_a_command_line():
    checked = asked(named="[smoke,learned]", grid={"method": "[construction,edge_popup]", "lr": 0.1})
    assert checked.named == ["smoke", "learned"]
    assert checked.points == [{"method": "construction", "lr": 0.1}, {"method": "edge_popup", "lr": 0.1}]


def test_each_grid_has_a_folder_of_its_own_and_the_same_grid_the_same():
    grids = [{"hidden": [4, 8], "seed": [0, 1]}, {"hidden": [8, 4], "seed": [0, 1]}, {"hidden": [4, 8]}]
    folders = [asked(grid=grid).folder for grid in [*grids, grids[0]]]
    assert folders[0] == folders[3]
    assert len(set(folders)) == 3
    assert all(folder.parent == storage.RUNS / "sweeps" for folder in folders)
    assert all(re.fullmatch("approx_error-[0-9a-f]{8}", folder.name) for folder in folders)
    assert asked(named="smoke").folder != asked().folder


def test_a_file_gives_what_the_command_line_leaves_open(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("experiment: constant\nretries: 5\ncpus: 2\nruns:\n- {d: 2}\n- {d: 4}\ngrid: {seed: [0, 1]}\n")
    checked = asked(file=str(path), experiment=None, cpus=3)
    assert (checked.script.stem, checked.retries, checked.cpus) == ("constant", 5, 3)
    assert checked.points == [{"d": d, "seed": seed} for d in (2, 4) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(["retries=2"], (2, 2, "h:1")), (["cpus=1", "address=None"], (5, 1, None)), ([], (5, 2, "h:1"))],
)
def test_a_default_given_on_the_command_line_wins_over_the_file(given, expected, tmp_path, monkeypatch):
    path = tmp_path / "sweep.yaml"
    path.write_text("experiment: constant\nretries: 5\ncpus: 2\naddress: 'h:1'\n")
    seen = []
    monkeypatch.setattr(conduct, "conduct", seen.append)
    assert launched("sweep", tmp_path, "with", f"file={path}", *given).returncode == 0
    assert [(one.retries, one.cpus, one.address) for one in seen] == [expected]


def test_a_seed_that_no_run_would_see_is_refused(tmp_path):
    refusal = r"seed=5: must be given for the runs, as base.seed=5 or grid.seed=[0,1]"
    done = launched("sweep", tmp_path, "with", "experiment=constant", "seed=5")
    assert (done.returncode, done.stderr) == (1, refusal + "\n")
    path = tmp_path / "sweep.yaml"
    path.write_text("experiment: constant\nseed: 5\n")
    with pytest.raises(lab.BadConfig, match=re.escape(refusal)):
        asked(file=str(path))


def test_a_file_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("grids: {seed: [0, 1]}\n")
    with pytest.raises(lab.BadConfig, match="a YAML file with the keys address, base"):
        asked(file=str(path))
