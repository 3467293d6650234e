"""Folders that a run goes on from: parts come back whole, or one line says why not."""

import json
import math

import pytest
from tables import one_case

from slth import files
from slth.experiments import lab
from slth.experiments.lab.resuming import FORMER

SETTINGS = {"keep": 0.5, "lr": (0.1, 0.2), "text": "abc"}


@pytest.fixture
def begun(tmp_path):
    made = lab.Resumable(tmp_path / "kept", SETTINGS)
    made.check()
    made.begin()
    return made


def test_a_part_comes_back(begun):
    content = {"loss": math.inf, "matrix": {"rank": [1, 2.5]}, "none": None}
    assert begun.read("mha seed=0") is None
    begun.write("mha seed=0", content)
    again = lab.Resumable(begun.folder, json.loads(json.dumps(SETTINGS)))
    again.check(["mha seed=0", "mha seed=1"])
    assert again.read("mha seed=0") == content
    assert {path.name for path in begun.folder.iterdir()} == {"settings.part", "mha seed=0.part"}


def test_no_folder_holds_nothing():
    none = lab.Resumable(None, SETTINGS)
    none.check(["mha"])
    none.begin()
    none.write("mha", {"loss": 1.0})
    assert none.read("mha") is None


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"keep": 0.3}, r"keep=0\.5, not 0\.3"),
        ({"lr": [0.1]}, r"lr=\[0\.1, 0\.2\], not \[0\.1\]"),
        ({"new": 1}, "new=None, not 1"),
    ],
)
def test_another_folder_says_what_differs(begun, changed, line):
    begun.write("mha", {})
    other = lab.Resumable(begun.folder, SETTINGS | changed)
    for ask in (other.check, lambda: other.read("mha")):
        with pytest.raises(lab.BadConfig, match=f"^checkpoints='.*kept': must be another folder.* are of {line}$"):
            ask()


@pytest.mark.parametrize("name", ["settings", "mha"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "damaged"),
        (lambda data: data[:-3], "cut short"),
        (lambda data: b"{}", "not a safetensors file"),
        (lambda data: files.seal("ticket", 1, {}, {}), "a file of kind 'ticket'"),
        (lambda data: files.seal("part", 1, {}, {"content": "{}"}), "does not say what wrote it"),
    ],
)
def test_a_damaged_part_is_told_from_a_foreign_one(begun, name, damage, reason):
    begun.write("mha", {"loss": 1.0})
    path = begun.folder / f"{name}.part"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(lab.BadConfig, match=rf"^checkpoints='.*': must be .* without its {name}\.part, .*\({reason}"):
        begun.check(["mha"])


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(lab.Refused, match=r"^checkpoints=.*file: cannot write there"):
        lab.Resumable(tmp_path / "file", SETTINGS).check()


def former(folder, **settings):
    folder.mkdir()
    (folder / FORMER).write_text(json.dumps(SETTINGS | settings))
    (folder / "mha.json").write_text('{"loss": Infinity}')
    return folder


def test_folders_of_before_are_read(tmp_path):
    folder = former(tmp_path / "kept", seeds=3)  # when all keys were in it
    with pytest.raises(lab.BadConfig, match="are of seeds=3, not None"):
        lab.Resumable(folder, SETTINGS).check()
    again = lab.Resumable(folder, SETTINGS, free=["seeds"])
    again.check(["mha"])
    assert again.read("mha") == {"loss": math.inf}
    again.write("mha", {"loss": 2.0})
    assert again.read("mha") == {"loss": 2.0}


@one_case
@pytest.mark.parametrize("name", [FORMER, "mha.json"])
@pytest.mark.parametrize("content", ["", "[1, 2]", "{"])
def test_damaged_files_of_before_are_named(tmp_path, name, content):
    folder = former(tmp_path / "kept")
    (folder / name).write_text(content)
    with pytest.raises(lab.BadConfig, match=rf"without its {name}, which cannot be read"):
        lab.Resumable(folder, SETTINGS).check(["mha"])
