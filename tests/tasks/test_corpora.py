"""Texts to train on: the standard library, packages, WikiText, files."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

from slth.tasks import corpora
from slth.tasks import text as task

# ---------------------------------------------------------------- corpora


@pytest.fixture(scope="module")
def stdlib():
    return task.corpus("stdlib")


def test_the_standard_library_is_the_same_each_time(stdlib):
    again = task.corpus("stdlib")
    assert again == stdlib
    assert stdlib.name == "stdlib"
    assert stdlib.digest == hashlib.sha256(stdlib.text.encode()).hexdigest()
    assert 5e6 < len(stdlib.text) < 30e6
    for module in ("argparse", "dataclasses"):
        source = Path(__import__(module).__file__).read_bytes().decode()
        assert source in stdlib.text
    assert stdlib.text.index("class ArgumentParser") < stdlib.text.index("class FrozenInstanceError")  # sorted


def test_library_sources_leave_out_tests_and_packages(tmp_path, monkeypatch):
    files = {
        "b.py": b"b",
        "a.py": b"a",
        "email/x.py": b"x",
        "email/test/y.py": b"no",
        "test/z.py": b"no",
        "idle/idle_test/z.py": b"no",
        "site-packages/p.py": b"no",
        "latin.py": b"\xe9",  # not UTF-8
        "notes.txt": b"no",
        "test.py": b"t",  # a file of that name is no folder of tests
    }
    for name, data in files.items():
        path = tmp_path / "test" / name  # the library itself may lie in such a folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.setattr(corpora.sysconfig, "get_path", {"stdlib": str(tmp_path / "test")}.__getitem__)
    assert task.corpus("stdlib").text == "a\nb\nx\nt"


@given(st.text().filter(str.strip))
def test_a_file_is_read_as_it_is(tmp_path_factory, text):
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate is no text
        return
    path = tmp_path_factory.getbasetemp() / "text of any kind.txt"
    path.write_bytes(data)
    found = task.corpus(f"path:{path}")
    assert (found.text, found.digest) == (text, hashlib.sha256(data).hexdigest())
    assert found.name == f"path:{path}"


@one_case
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty: must hold text"),
        (b" \n\t\n", "is empty: must hold text"),
        (b"fine so far \xff", r"is not UTF-8 \(byte 12\)"),
        (None, "cannot be read: No such file"),
    ],
)
def test_bad_files_are_named(tmp_path, data, message):
    path = tmp_path / "text"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=f"corpus 'path:.*text' {message}"):
        task.corpus(f"path:{path}")


def test_unknown_names_are_refused(tmp_path):
    for name in ("", "wikitext", "STDLIB", str(tmp_path)):
        with pytest.raises(ValueError, match="must be stdlib, installed, wikitext-103 or path:FILE or path:DIR"):
            task.corpus(name)


@given(st.binary(max_size=20) | st.text(max_size=9).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_data_is_checked_in_pieces_as_it_would_be_at_once(data):
    try:
        wanted = None if data.decode().strip() else "is empty: must hold text"
    except UnicodeDecodeError as error:
        wanted = rf"is not UTF-8 \(byte {error.start}\): must be"
    for piece in (1, 2, 3, 7, 100):
        with mock.patch.object(corpora, "_PIECE", piece):
            if wanted is None:
                corpora._check("corpus 'x'", data)
            else:
                with pytest.raises(ValueError, match=f"corpus 'x' {wanted}"):
                    corpora._check("corpus 'x'", data)


# ---------------------------------------------------------------- installed packages


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages: install(name, version, needs, files)."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, version, needs, files):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines]) + "\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        for path, data in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)

    return install


def test_installed_packages_are_all_that_is_needed(site):
    own = ["zeta", "Al.pha[fast]>=1", "gone", "dev; extra == 'dev'", "other; sys_platform == 'none'"]
    site("slth", "9", own, {"slth/own.py": b"no"})
    site("zeta", "2.0", ["slth"], {"zeta/z.py": b"z", "zeta/a.py": b"za", "zeta/data.txt": b"no"})
    site("al_pha", "1.5", ["speed; extra == 'fast'", "slow; extra == 'slow'", "zeta"], {"alpha.py": b"al"})
    speed = {"speed/s.py": b"s", "speed/tests/t.py": b"no", "speed/l.py": b"\xe9", "../bin/run.py": b"no"}
    site("speed", "3", [], speed)
    site("stubs", "1", [], {"stubs/x.pyi": b"no"})
    for name in ("dev", "other", "slow"):
        site(name, "1", [], {f"{name}.py": b"no"})
    found = task.corpus("installed")
    assert found.text == "al\ns\nza\nz"
    assert found.packages == ("al-pha 1.5", "speed 3", "zeta 2.0")
    assert found.digest == hashlib.sha256(found.data).hexdigest()
    assert found.validation is None


def test_installed_packages_need_this_one_to_be_installed(monkeypatch):
    monkeypatch.setattr(corpora, "distribution", mock.Mock(side_effect=corpora.PackageNotFoundError))
    with pytest.raises(ValueError, match="corpus 'installed': must have slth itself installed"):
        task.corpus("installed")


@pytest.mark.slow
def test_the_installed_packages_here():
    found = task.corpus("installed")
    assert 5e7 < len(found.data) < 5e8
    names = [package.split()[0] for package in found.packages]
    assert names == sorted(names)
    assert {"torch", "numpy", "scipy", "transformers"} < set(names)
    assert not {"slth", "pytest"} & set(names)
    assert f"numpy {np.__version__}" in found.packages
    assert Path(np.__file__).read_bytes() in found.data
    assert task.corpus("installed") == found


# ---------------------------------------------------------------- WikiText


class Rows:
    """A part of a data set of `datasets`, as much of it as is read."""

    def __init__(self, *texts):
        self.texts = texts

    def iter(self, batch_size):
        assert batch_size > 0
        for start in range(0, len(self.texts), 2):
            yield {"text": list(self.texts[start : start + 2])}


def test_wikitext_keeps_its_own_parts(monkeypatch):
    heading, line = " = A = \n", "caf\N{LATIN SMALL LETTER E WITH ACUTE}\n"
    parts = {"train": Rows("", heading, "", line), "validation": Rows(" b\n"), "test": Rows(" c\n")}
    load = mock.Mock(return_value=parts)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    found = task.corpus("wikitext-103")
    load.assert_called_once_with("Salesforce/wikitext", "wikitext-103-raw-v1")
    training, validation = f"\n{heading}\n{line}".encode(), b" b\n"
    assert (found.data, found.validation, found.test) == (training, validation, b" c\n")
    assert found.digest == hashlib.sha256(training + validation).hexdigest()
    tokens = task.tokens_of(found, task.Bytes())
    assert [bytes(part.tolist()) for part in tokens] == [training, validation]


def test_wikitext_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="must have the package datasets"):
        task.corpus("wikitext-103")
    load = mock.Mock(side_effect=ConnectionError("no route\nto host"))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    with pytest.raises(ValueError, match=r"cannot be loaded \(ConnectionError: no route\): must be .* a network"):
        task.corpus("wikitext-103")
