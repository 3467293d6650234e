"""README and the documentation: their blocks run, their commands are understood, their links lead somewhere."""

import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT

import slth
from slth import cli
from slth.experiments.lab import command_line, scripts

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "kernels" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
#: By page, the Python blocks in their order; CONTRIBUTING's recipes are files, which tests/test_contributing.py runs.
PYTHON = {
    name: blocks for name, text in TEXTS.items() if (blocks := re.findall(r"```python\n(.*?)```", text, re.DOTALL))
}
PYTHON.pop("CONTRIBUTING.md")
COMMANDS = [
    (name, command)
    for name, text in TEXTS.items()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
    if (command := " ".join(shlex.split(re.sub(r"(^|\s+)# .*", "", line))))
]


#: Experiments whose commands here want stored runs, or a GPU.
NEEDING = {"plot", "speed"}


@pytest.mark.parametrize("name", PYTHON)
def test_blocks_run(name, tmp_path):
    """One after the other in a program of their own, as a reader would paste them."""
    (tmp_path / "page.py").write_text("\n".join(PYTHON[name]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {
        "OMP_NUM_THREADS": "1",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_commands_are_understood(name, command):
    """Not run: their names, options and config keys are those that there are."""
    program, *words = re.sub(r"^([A-Z_]+=\w+ )+", "", command).split(" ")
    if program == "slth" and words[0] != "run":
        cli._parser().parse_args(words)
    elif program == "slth":
        check_experiment(words[1], words[2:])
    elif program == "python" and words[0].startswith("experiments/"):
        check_experiment(Path(words[0]).stem, words[1:])
    elif program == "make":
        assert re.search(rf"^{words[0]}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"[a-z0-9]+", words[-1].partition("[")[2])) <= extras.keys()
    else:
        assert program == "ray"


def check_experiment(name, words):
    """Its config is one that it takes."""
    ex = scripts.load(ROOT / "experiments" / f"{name}.py")
    before, _, rest = " ".join(words).partition("with ")
    options = command_line._options(ex, words)
    assert options["COMMAND"] is None or options["COMMAND"] in ex.commands, before
    updates, named = command_line.updates_of(options["UPDATE"], ex.with_options())
    if name in NEEDING:
        assert updates.keys() <= ex.Config.kinds().keys()
    elif rest:
        scripts.resolve(ex, updates, named)


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            assert f"\n#{anchor}" in re.sub(r"\n#+ (.*)", lambda m: "\n#" + slug(m[1]), file.read_text()), target


def slug(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_figure_is_shown():
    shown = {Path(target).name for text in TEXTS.values() for target in re.findall(r"!\[.*?\]\((.*?)\)", text)}
    assert {path.name for path in (ROOT / "docs" / "figures").iterdir()} == shown


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 130
    assert len(README.read_text().split()) <= 1300


@pytest.mark.parametrize("page", ["README.md", "docs/results/index.md"])
def test_the_table_of_results_says_what_its_pages_say(page):
    """Every number in an answer stands in the page that the row links to."""
    table = TEXTS[page].partition("Results")[2]
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| \[.*?\]\((\S+?results/|)(\w+\.md)\) \|$", table, re.MULTILINE)
    assert len(rows) >= 7
    for answer, _, name in rows:
        text = TEXTS[f"docs/results/{name}"]
        for number in re.findall(r"\d[\d.,]*(?:e-?\d+)?", answer):
            shown = re.escape(number.rstrip(",.")).removeprefix("0")  # the pages write 0.121 or .121
            assert re.search(rf"(?<![\d.])0?{shown}(?!\d)", text), (answer, number)


def test_every_room_has_a_page_of_its_names():
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} - {"index"}
    assert pages == {"slth", "libraries", *slth._ROOMS}  # libraries: the modules beside the rooms
    shown = {"slth": ["slth"], "libraries": ["slth.convert", "slth.hf"]}
    for page in pages:
        for module in shown.get(page, [f"slth.{page}"]):
            assert f".. automodule:: {module}\n" in TEXTS[f"docs/api/{page}.md"]


def test_no_page_is_forgotten():
    """All are reached from the first one."""
    named = {
        name
        for text in TEXTS.values()
        for tree in re.findall(r"\{toctree\}\n(.*?)```", text, re.DOTALL)
        for name in tree.split()
    }
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if page not in named and page.removeprefix("api/") not in named} == {"index"}
