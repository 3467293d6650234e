"""Classes of the user's own are found by their place, or refused by name."""

import pickle
import re
import sys
from pathlib import Path

import pytest
from tables import one_case

from slth import plugins
from slth.experiments.sweeps import code


class Base:
    pass


OWN = f"from {__name__} import Base\nclass Own(Base):\n    pass\nclass Other:\n    pass\nsome = 1\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_classes", {})
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("slth.plugins.")]:
        del sys.modules[name]


def test_a_file_is_loaded_once_whatever_it_is_called(folder):
    own = plugins.load("kind", "own.py:Own", Base)
    assert issubclass(own, Base)
    assert own is plugins.load("kind", str(folder / "own.py") + ":Own", Base)
    assert own is plugins.load("kind", "there/../own.py:Own", Base)
    assert plugins.place_of(own) == "own.py:Own"
    assert own.__module__.startswith("slth.plugins.own")
    assert type(pickle.loads(pickle.dumps(own()))) is own
    assert plugins.load("kind", "there/own.py:Own", Base) not in (own, None)


def test_what_was_loaded_is_found_by_its_text_and_by_its_file(folder, monkeypatch):
    first = plugins.load("kind", "own.py:Own", Base)
    assert plugins.loaded("there/own.py:Own", Base) is None
    monkeypatch.chdir(folder / "there")
    assert plugins.loaded("own.py:Own", Base) is plugins.loaded("../own.py:Own", Base) is first  # executes nothing
    assert plugins.loaded("own.py:Own", Path) is None
    second = plugins.load("kind", "own.py:Own", Base)
    assert plugins.loaded("own.py:Own", Base) is second is not first
    monkeypatch.chdir(folder)
    assert plugins.loaded("own.py:Own", Base) is first


def test_a_module_that_python_finds_is_imported():
    assert plugins.load("kind", "pathlib:Path", object) is Path
    assert plugins.place_of(Base) is None


@one_case
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("none.py:Own", "no file none.py in "),
        ("own.py:None_", f"own.py has no class None_; its classes of {__name__}.Base: Own"),
        ("own.py:some", "own.py has no class some"),
        ("own.py:Other", f"must derive from {__name__}.Base; classes there that do: Own"),
        ("own.py:Base", f"must derive from {__name__}.Base"),
        ("own.py:", "must be the place of a class, as my_file.py:Name or package.module:Name"),
        (":Own", "must be the place of a class"),
        ("broken.py:Own", r"cannot be imported (ZeroDivisionError: division by zero)"),
        ("no_such_module:Own", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module')"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_no_such_class_is_refused_by_name(place, why):
    before = set(sys.modules)
    with pytest.raises(ValueError, match=re.escape(f"kind={place}: {why}")):
        plugins.load("kind", place, Base)
    assert "slth.plugins.broken" not in set(sys.modules) - before


def test_another_file_of_the_users_is_another_version_of_a_run(folder):
    def version():
        return code.version_of({"method": {"name": "own.py:Own", "rate": 1}, "variants": ["mha", "sum: a.py:b"]}, "v")

    alone = "class Own:\n    pass\n"  # OWN imports this file, and it all tests, which would be read each time
    (folder / "own.py").write_text(alone)
    before = version()
    assert re.fullmatch(r"v\+[0-9a-f]{16}", before)
    assert before == version()
    (folder / "own.py").write_text(alone + "# changed\n")
    assert version() != before
    assert code.version_of({"method": "iterand", "data": "path:own.py", "at": "a(b"}, "v") == "v"


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        ("own_package.method:Own", "own_package/method.py"),
        ("own_package.method:Own(rate=1)", "own_package/deep/part.py"),
        ("own_package.method:Own", "helper_of_own.py"),
        ("imports.py:Own", "helper_of_own.py"),
        ("imports.py:Own", "own_package/__init__.py"),
    ],
)
def test_what_a_class_of_the_users_imports_is_part_of_the_version_of_a_run(folder, monkeypatch, place, changed):
    """By file or by module, and nothing of it is executed: each file would raise."""
    monkeypatch.syspath_prepend(folder)
    (folder / "own_package" / "deep").mkdir(parents=True)
    names = ("own_package/__init__.py", "own_package/deep/__init__.py", "own_package/deep/part.py", "helper_of_own.py")
    for name in (*names, "stranger.py"):
        (folder / name).write_text("1 / 0\n")
    (folder / "own_package" / "method.py").write_text("1 / 0\ndef f():\n    import helper_of_own\n")
    (folder / "imports.py").write_text("1 / 0\nimport own_package.method\n")
    config, before = {"method": {"name": place}}, ""
    for name, other in (("stranger.py", False), (changed, True)):
        before = code.version_of(config, "v")
        (folder / name).write_text("2 / 0\n")
        assert (code.version_of(config, "v") != before) is other
    assert re.fullmatch(r"v\+[0-9a-f]{16}", before)
    assert code.version_of({"at": ["json:Own", "no_such_module:Own", "slth.search:Search"]}, "v") == "v"
