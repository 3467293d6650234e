"""Command lines that make no sense: refused in one line or run, and no run is marked complete that is not whole.

The full size, 1,000 lines in one process and 20 real processes: pytest -m slow tests/experiments/test_fuzz_config.py
"""

import json
import os
import random
import re
import signal
import subprocess
import sys

import pytest
from helpers import EXPERIMENTS
from tables import one_case

from slth.experiments import lab
from slth.experiments.lab import command_line, scripts

FULL, SMALL = 1000, 60
FULL_PROCESSES, SMALL_PROCESSES = 20, 2
KILLED_AFTER_S = 60  # a line may ask for a week's work: such a run is killed, and is not complete

NAMES = scripts.names()
# fmt: off
VALUES = [
    *("0", "1", "2", "3", "7", "64", "-1", "-0", "0.5", "1.0", "-0.25", "1e-300", "1e300", "5e-324"),
    *(f"{2**31}", f"{2**32}", f"{2**63}", f"{2**64}", f"{10**30}", f"-{10**30}", "1" + "0" * 400, "9" * 5000),
    *("nan", "inf", "-inf", "1e999", "-1e999", "float('nan')", "NaN", "[1e999]", "1j", "0x10", "1_000", "007"),
    *("None", "True", "False", "none", "true", "null", "...", "NotImplemented"),
    *("[]", "[[]]", "()", "(1,)", "{}", "[None]", "[0]", "[1,1]", "[1,2,3]", "[4,4.0]", "[True]", "[[1,2],[3,4]]"),
    *("[[16,16,16,1]]", "[[2,8,2,8]]", "{'a':1}", "{1:2}", "{'a':{'b':[]}}", "{1,2}", "set()", "b'x'", "[b'x']"),
    *("[a,b]", "[a,", "a]", "[,]", "[' ']", "[''", "[" * 60, "[" * 60 + "]" * 60, "[" * 300 + "]" * 300),
    *("", " ", "''", '""', "'", '"', "a'b", "'a' 'b'", "\\", "a\\nb", "'a\\nb'", "'\\0'", "'a\\0b'", "'\\ud800'"),
    *("ä", "ß∑", "数", "💥", "\u202e", "e\u0301", "٣", "²", "%s", "{0}", "$HOME", "`id`", "a=b", "=", "#", "@",
      "x" * 300),
    *("/", ".", "..", "~", "/dev/null", "no/such/file", "a/" * 3000, "sqlite:///", "sqlite:///:memory:",
      "sqlite://[#1", "sqlite:///no.db?x=1", "sqlite:///./#", "x://[", "://", "postgresql://:x/#1", "sqlite://h/x#1",
      "sqlite:///no/such.db#1", "x://", "#1"),
    *("__import__('os')", "1+1", "lambda: 0", "all", "theory", "trained", "random", "construction", "edge_popup"),
    *("cuda", "cpu", "tiny", "tiny*0", "tiny*1e9", "tiny*-1", "tiny*nan", "*", "bpe:0", "bpe:x", "bpe:", "mha",
      "[mha,mha]"),
]
# fmt: on
UNKNOWN = [
    "x",
    "sed",
    "Seed",
    "hiden",
    "hidden.x",
    "seed.x",
    "grid.",
    ".",
    "..",
    ".seed",
    "a.b.c",
    "__doc__",
    "_config",
]
UNKNOWN += ["", " ", "ä", "seed ", "_run", "_log", "_seed", "0", "None", "a[0]", "dataset", "config", "ex", "grid.seed"]


def line(rng, keys, named):
    """What follows `with`: one to four values for keys known and unknown, now and then a named config."""
    words = []
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        key = rng.choice(keys) if rng.random() < 0.8 else rng.choice(UNKNOWN)
        if rng.random() < 0.1:
            key += "." + rng.choice(("x", "seed", "0", ""))
        words.append(f"{key}={value(rng)}")
    if rng.random() < 0.15:
        words.append(rng.choice([*named, "smok", "", "ä", "no/such.yaml"]))
    rng.shuffle(words)
    return words


def value(rng):
    kind = rng.random()
    if kind < 0.75:
        return rng.choice(VALUES)
    if kind < 0.9:
        return f"[{','.join(rng.choice(VALUES) for _ in range(rng.randint(1, 4)))}]"
    return "".join(chr(rng.choice((rng.randint(1, 127), rng.randint(128, 0xD7FF)))) for _ in range(rng.randint(1, 20)))


def verdict(name, words):
    """None where such a start would be made, or the line that refuses it. Anything else that is raised is a fault."""
    ex = scripts.load(EXPERIMENTS / f"{name}.py")
    try:
        updates, named = command_line.updates_of(words, ex.with_options())
        scripts.resolve(ex, updates, named)
    except lab.Refused as error:
        return lab.one_line(error)
    return None


def validate(count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a value may name a folder
    faults, passed, refused = [], 0, 0
    for i in range(count):
        name = NAMES[i % len(NAMES)]
        rng = random.Random(f"line {i // len(NAMES)} of {name}")  # the same, whatever experiments there are
        ex = scripts.load(EXPERIMENTS / f"{name}.py")
        words = line(rng, sorted(ex.Config.kinds()), sorted(ex.named_configs))
        try:
            told = verdict(name, words)
        except Exception as error:
            faults.append(f"{i}: {name} with {words!r:.300}: {type(error).__name__}: {error!s:.200}")
            continue
        if told is None:
            passed += 1
        else:
            refused += 1
            if not told or told != told.strip():
                faults.append(f"{i}: {name} with {words!r:.300}: says {told!r}")
    assert not faults, "\n".join(faults)
    assert refused > count / 4  # the lines reach the checks,
    assert passed > count / 100  # and not all of them are nonsense


def test_a_config_line_passes_or_is_refused(tmp_path, monkeypatch):
    validate(SMALL, tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_thousand_config_lines_pass_or_are_refused(tmp_path, monkeypatch):
    validate(FULL, tmp_path, monkeypatch)


@one_case
@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("approx_error", ["target_norm=1" + "0" * 400], "target_norm=.*must be a finite number"),
        ("approx_error", ["hidden=1" + "0" * 30], "hidden=.*must be an int >= 1 and <= 2147483647"),
        ("gpt2_prune", ["data='a\\0b'"], "data=.*must be text in UTF-8 without null characters"),
        ("gpt2_prune", ["data='\\ud800'"], "data=.*must be text in UTF-8 without null characters"),
        ("mixing", ["variants=[[1,2]]"], r"variants=\[1, 2\]: must be all, or one or several of"),
        ("plot", ["runs=-1"], "runs='runs/-1': must be a run's folder"),
        ("plot", ["runs=" + "9" * 300], "runs=.*must be a run's folder"),
        ("plot", ["runs=[a,'\\0']"], "runs=.*must be text in UTF-8"),
        ("plot", ["runs=sqlite:///no.db"], "there is no such file"),
        ("plot", ["grid.=1", "grid.seed=2"], "grid.=1: a key with an empty part"),
        ("speed", ["what=[[1,2]]"], "what=.*must be one or several of"),
        ("speed", ["device=cuda", "what=True"], "what=True: must be None, or one or several areas"),
        ("sweep", ["experiment=lab"], "experiment='lab': must be one of"),
    ],
)
def test_what_once_was_no_refusal(name, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, verdict(name, words) or "passed")
    assert list(tmp_path.iterdir()) == []


@one_case
@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("approx_error", "d_in=4", {"d_out": 2}),
        ("approx_error", "d_in=4 target=random", {"d_out": 1}),
        ("approx_error", "d_in=100 target=random", {"hidden": [100, 200, 300, 400]}),
        ("approx_error", "d_in=40 depth=2", {"d_out": 40, "hidden": [80, 160, 240, 320]}),
        ("approx_error", "hidden=[32] lengths=[4,8]", {"hidden": [32]}),
        ("hidden_lm", "d=64", {"heads": 4}),
        ("hidden_lm", "d=30", {"heads": 3}),
        ("gpt2_prune", "size=tiny", {"stds": [(0.07, 0.12), (0.11, 0.12)]}),
        ("gpt2_prune", "base_std=0.05", {"stds": [(0.05, 0.02)]}),
        ("mixing", "heads=4", {"kv_heads": 2}),
        ("mixing", "heads=1", {"kv_heads": 1}),
        ("mixing", "variants=[kha_linear,mea]", {"variants": ("mha", "kha_linear", "mea")}),
    ],
)
def test_defaults_follow_what_they_depend_on(name, words, told):
    ex = scripts.load(EXPERIMENTS / f"{name}.py")
    scripts.resolve(ex, *command_line.updates_of(words.split()))
    study = ex.checked.study
    assert {key: getattr(study, key) for key in told} == told


def test_a_misspelt_key_is_told_without_what_takes_long_to_import():
    heavy = ("torch._dynamo", "sympy", "scipy.stats", "scipy.optimize", "transformers")
    code = f"""import sys
from slth.experiments.lab import scripts
from pathlib import Path
print("torch" in sys.modules)
for name in ("approx_error", "constant", "hidden_lm", "plot", "sweep"):
    scripts.load(Path({str(EXPERIMENTS)!r}) / f"{{name}}.py")
print(*(module for module in {heavy!r} if module in sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n\n"


# ---------------------------------------------------------------- real processes

TINY = {
    "constant": ["d=2", "epsilon=0.3", "effort=100"],
    "approx_error": ["hidden=[3,4]", "d_in=2", "heads=1", "lengths=[4]", "sources=2", "samples=4", "target=random"],
}


def start(i, folder):
    """One process with a tiny workload and one value that is not its own; its exit status, or None where killed."""
    rng = random.Random(f"process {i}")
    name = rng.choice(sorted(TINY))
    ex = scripts.load(EXPERIMENTS / f"{name}.py")
    words = TINY[name] + (line(rng, sorted(ex.Config.kinds()), []) if i % 4 else [])
    command = [sys.executable, str(EXPERIMENTS / f"{name}.py"), "with", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        return words, process.communicate(timeout=KILLED_AFTER_S)[1], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return words, process.communicate()[1], None


def processes(count, tmp_path):
    for i in range(count):
        folder = tmp_path / str(i)
        folder.mkdir()
        words, told, status = start(i, folder)
        runs = [path.parent for path in folder.glob("runs/*/run.json")]
        marked = [run for run in runs if json.loads((run / "run.json").read_text())["status"] == "COMPLETED"]
        assert len(marked) == (status == 0), (words, told)
        for run in marked:
            results, summary, _ = lab.load_run(run)
            assert len(results)
            assert summary
        if not runs and status is not None:
            assert status == 1, (words, told)
            assert len(told.splitlines()) == 1, (words, told)
            assert "cannot start" not in told, words


def test_no_process_leaves_a_run_complete_that_is_not_whole(tmp_path):
    processes(SMALL_PROCESSES, tmp_path)


@pytest.mark.slow
def test_no_process_of_many_leaves_a_run_complete_that_is_not_whole(tmp_path):
    processes(FULL_PROCESSES, tmp_path)
