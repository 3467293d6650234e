"""The frame of the experiments: what is refused, how a run is stored and read again."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_lines import launched
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from slth.disk import write_all
from slth.experiments import lab
from slth.experiments.lab import border, command_line, scripts, storage
from slth.experiments.lab.options import Kind, an_integer, as_given, several
from slth.experiments.lab.refusals import brief
from slth.experiments.sweeps import plan

SCRIPT = '''"""A small experiment."""
import signal
import sys

import time
from dataclasses import dataclass
from pathlib import Path

from slth.experiments import lab
import pandas
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(lab.Options):
    hidden: list[int] = lab.integers([4, 8], least=1, help="widths")
    target: str = lab.choice("random", ("random", "trained"), help="of the target")
    seed: int = lab.seed()
    end: str = lab.text("well", "an end", help="how it ends")


ex = lab.experiment("small", Config)
ex.add_named_config("smoke", hidden=2)


@ex.main
def main(config, run):
    for _ in lab.progress(range(3), "count"):
        pass
    if config.end == "crash":
        raise ValueError("it broke")
    if config.end == "wait":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have been told to ignore it
        print("so far", flush=True)
        Path("waiting").touch()
        time.sleep(60)
    figure = Figure()
    figure.subplots().plot(config.hidden)
    results = pandas.DataFrame({"hidden": config.hidden, "error": [0.1 / n for n in config.hidden]})
    summary = {"gamma": float("nan"), "widths": config.hidden, "seconds": 0.5}
    lab.save(run, results, summary, {"errors": figure})
    return summary


if __name__ == "__main__":
    lab.launch(ex)
'''


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "small.py").write_text(SCRIPT)
    return launched("small.py", folder, *arguments)


def read(path: Path):
    return json.loads(path.read_text())


# ---------------------------------------------------------------- a run that ends well


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    return folder, run_script(folder, "with", "hidden=[4,12]")


def test_a_good_run_is_quiet_and_says_where_its_figure_lies(stored):
    _, done = stored
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["results: runs/1/results.csv", "figure: runs/1/errors.png"]


def test_a_good_run_holds_its_files_and_no_others(stored):
    run = stored[0] / "runs" / "1"
    sacred = {"config.json", "cout.txt", "metrics.json", "run.json"}
    assert {path.name for path in run.iterdir()} - sacred == {
        "results.csv",
        "summary.json",
        *(f"errors.{kind}" for kind in ("pdf", "png", "svg")),
    }
    assert (run / "results.csv").read_bytes() == f"hidden,error\n4,{0.1 / 4}\n12,{0.1 / 12}\n".encode()
    assert (run / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "cout.txt").read_text() == stored[1].stdout


def test_the_result_is_the_summary_with_null_for_nan(stored):
    run = stored[0] / "runs" / "1"
    assert read(run / "summary.json") == {"gamma": None, "widths": [4, 12], "seconds": 0.5}
    assert read(run / "run.json")["result"] == read(run / "summary.json")
    assert read(run / "run.json")["status"] == "COMPLETED"
    assert read(run / "run.json")["experiment"]["mainfile"] == "small.py"


def test_a_stored_run_is_read_again(stored):
    results, summary, config = lab.load_run(stored[0] / "runs" / "1")
    assert results["error"].tolist() == [0.1 / 4, 0.1 / 12]
    assert summary["widths"] == [4, 12]
    assert config == {"hidden": [4, 12], "target": "random", "seed": 0, "end": "well"}


def test_another_store_and_a_named_config(tmp_path):
    done = run_script(tmp_path, "with", "smoke", "-F", "deep/store")
    assert done.returncode == 0
    assert not (tmp_path / "runs").exists()
    assert read(tmp_path / "deep/store/1/summary.json")["widths"] == [2]


def test_an_unobserved_run_leaves_nothing(tmp_path):
    done = run_script(tmp_path, "-u")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["small.py"]


# ---------------------------------------------------------------- runs that do not


def test_a_crash_is_marked_failed_and_leaves_no_results(tmp_path):
    done = run_script(tmp_path, "with", "end=crash")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("ValueError: it broke")
    assert "sacred" not in done.stderr.replace("WITHOUT Sacred internals", "")
    run = tmp_path / "runs" / "1"
    assert read(run / "run.json")["status"] == "FAILED"
    assert not (run / "results.csv").exists()
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGINT, 130, "interrupted; run: runs/1\n"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM; run: runs/1\n"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP; run: runs/1\n"),
    ],
)
def test_an_interrupt_is_marked_and_leaves_no_results(tmp_path, number, status, line):
    (tmp_path / "small.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "small.py", "with", "end=wait"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (tmp_path / "waiting").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    assert stderr == line
    run = tmp_path / "runs" / "1"
    assert read(run / "run.json")["status"] == "INTERRUPTED"
    assert (run / "cout.txt").read_text() == "so far\n"
    assert not (run / "results.csv").exists()


def test_a_bad_value_is_one_line_on_stderr(tmp_path):
    done = run_script(tmp_path, "with", "hidden=0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "hidden=0: must be an int >= 1 or a list of them, not empty, none twice\n"
    assert [path.name for path in tmp_path.iterdir()] == ["small.py"]


@dataclass(frozen=True)
class Config(lab.Options):
    """Of a small experiment."""

    hidden: list[int] = lab.integers([4, 8], least=1, help="widths of it")
    target: str = lab.choice("random", ("random", "trained"), help="of the target")
    seed: int = lab.seed()


def make_experiment(config=Config):
    ex = lab.experiment("small", config)
    ex.add_named_config("smoke", hidden=2)
    ex.main(lambda config, run: None)
    return ex


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """The line with which launch refuses these arguments; nothing may have been made by then."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()

    def refuse(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["small.py", *arguments])
        with pytest.raises(SystemExit) as end:
            lab.launch(make_experiment())
        captured = capsys.readouterr()
        if isinstance(end.value.code, str):  # Python prints it on stderr and exits with status 1
            line = end.value.code
        else:
            assert end.value.code == 1
            line = captured.err.removesuffix("\n")
        assert captured.out == ""
        assert line
        assert "\n" not in line
        return line

    yield refuse
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("with hidden=[]", "hidden=[]: must be an int >= 1 or a list"),
        ("with hidden=[3,", "hidden='[3,': must be an int"),
        ("with hidden=True", "hidden=True: must be an int"),
        ("with hidden=4.0", "hidden=4.0: must be an int"),
        ("with hidden.x=4", "hidden={'x': 4}: must be an int"),
        ("with target=foo", "target='foo': must be one of random, trained"),
        ("with smoke target=foo", "target='foo': must be one of"),
        ("print_config with hidden=0", "hidden=0: must be an int"),
        ("with seed=-1", "seed=-1: must be an int >= 0"),
        ("with seed=4294967296", "seed=4294967296: must be an int >= 0"),
        ("with seed=x", "seed='x': must be an int"),
        ("with hiden=3", "hiden=3: unknown key, did you mean hidden? allowed: hidden, seed, target"),
        ("with a.b=3", "a={'b': 3}: unknown key"),
        ("with =3", "=3: unknown key"),
        ("with hidden=3 hidden.x=4", "with hidden=3 hidden.x=4: cannot be read"),
        ("with smoek", "smoek: unknown named config, did you mean smoke? allowed: smoke"),
        ("with file", "file: no config file that can be read (Configuration file"),
        ("hidden=3", "hidden=3: unknown command; write: [COMMAND] [with key=value ...]"),
        ("help nothing", "nothing: unknown command"),
        ("with", "with: unknown command"),
        ("--nothing", "--nothing: not understood"),
        ("-F", "-F: -F requires argument"),
        ("-l LOUD", "--loglevel='LOUD': must be an int from 0 to 50, or DEBUG, INFO"),
        ("-l 99", "--loglevel='99': must be an int from 0 to 50"),
        ("-q", "--queue: must be left out"),
        ("-F store -e", "--enforce_clean: must be left out"),
        ("-F store -b nan", "--beat-interval='nan': must be a number >= 0 and <= 1e+06"),
        ("-b soon", "--beat-interval='soon': must be a number"),
        ("-F store -C all", "--capture='all': must be one of no, sys, fd"),
        ("-F store -P high", "--priority='high': must be a finite number"),
        ("-i a/b", "--id='a/b': must be at most 200 letters, digits"),
        ("-i ..", "--id='..': must be"),
        ("-i _sources", "--id='_sources': must be"),
        (f"-i {'ä' * 120}", "--id="),
        ("--file_storage=", "--file_storage='': must be a place, not empty"),
        ("-F store -m db", "--mongo_db=db: needs pymongo: pip install pymongo"),
        ("-F store -t db", "--tiny_db=db: needs tinydb"),
        ("-F store -S s3://a/b", "--s3=s3://a/b: needs boto3"),
        ("with hiden=3 -F store -s sqlite:///new.db", "hiden=3: unknown key"),
        ("-F store -s nothing://", "-s nothing://: no database that can be reached"),
        ("save_config with config_filename=a.txt", "config_filename='a.txt': must be the name of a file that ends in"),
        ("save_config with config_filename=file/a.json", "config_filename=file: cannot write there"),
        ("-F file", "runs=file: cannot write there (File exists); choose another with -F DIR"),
        ("-F file/store", "runs=file/store: cannot write there (Not a directory); choose another with -F DIR"),
        (f"-F new/{'x' * 300}", "runs=new/xxx"),
    ],
)
def test_refused_with_one_line_before_anything_is_made(refusal, arguments, line):
    assert refusal(*arguments.split()).startswith(line)


def test_what_nobody_foresaw_ends_with_one_line_too(refusal, monkeypatch):
    def broken(self):
        raise RuntimeError("not\nforeseen")

    monkeypatch.setattr(Config, "check", broken)
    assert refusal() == "cannot start: RuntimeError: not foreseen (--debug shows the traceback)"


TRIED = [
    *("-b 1", "-c words", "-d", "-f", "-F store", "-i 7", "-l WARNING", "-n other", "-D", "-p", "-P 3", "-u"),
    *("-C no", "-C sys", "-s sqlite:///runs.db", "-F store -s sqlite:///runs.db -i 8"),
    *("print_config", "save_config", "save_config with config_filename=new/a.yaml"),
    *("help_config", "print_dependencies", "print_named_configs", "-h", "help", "help print_config"),
]
REFUSED = {"-q", "-e", "-m", "-t", "-S"}  # above


@pytest.mark.parametrize("arguments", TRIED)
def test_options_and_commands_do_what_they_say(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["small.py", *arguments.split()])
    ex = make_experiment()
    if "-h" in arguments or arguments.split()[0] == "help":
        with pytest.raises(SystemExit) as end:
            lab.launch(ex)
        assert not end.value.code
    else:
        lab.launch(ex)
        assert ex.current_run.status == "COMPLETED"
    captured = capsys.readouterr()
    assert captured.err == ""
    assert bool(captured.out) == (arguments in ("-p", "-h") or arguments.startswith(("print", "help")))


def test_every_option_and_command_is_tried():
    ex = make_experiment()
    words = {word for line in TRIED for word in line.split()}
    assert {option.get_short_flag() for option in ex.all_cli_options} <= words | REFUSED
    assert {*ex.commands} - {"<lambda>"} <= words


def test_an_id_that_a_database_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["small.py", "-s", "sqlite:///runs.db", "-i", "7"])
    lab.launch(make_experiment())
    with pytest.raises(SystemExit, match="--id=7: the database holds a run of that id"):
        lab.launch(make_experiment())


# ---------------------------------------------------------------- what cannot be printed


def nobody():
    """A pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    ("store", "options"),
    [
        ("runs", lambda: {"stdout": nobody(), "stderr": nobody()}),
        ("runs", lambda: {"preexec_fn": lambda: os.closerange(0, 3)}),
        ("runs", lambda: dict.fromkeys(("stdout", "stderr"), os.open("/dev/full", os.O_WRONLY))),
        ("d\xe9p\xf4t", lambda: {"stdout": subprocess.DEVNULL, "env": {**os.environ, "PYTHONIOENCODING": "ascii"}}),
    ],
    ids=["reader gone", "closed", "full", "narrow"],
)
def test_lines_that_cannot_be_printed_fail_no_run(tmp_path, store, options):
    (tmp_path / "small.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "small.py", "-F", store], cwd=tmp_path, check=False, **options())
    run = tmp_path / store / "1"
    assert (done.returncode, read(run / "run.json")["status"]) == (0, "COMPLETED")
    assert (run / "cout.txt").read_text() == f"results: {store}/1/results.csv\nfigure: {store}/1/errors.png\n"


def test_what_outlives_a_run_still_prints(capsys):
    with border.stdout_capturing.tee_output_python() as captured:
        kept = sys.stdout  # as colorama does, and handlers of logging
        print("within")
    kept.write("after\n")
    kept.flush()
    assert captured.get() == "within\n"
    assert capsys.readouterr().out == "within\nafter\n"


def test_a_name_that_is_no_text_is_stored_all_the_same():
    assert command_line.captured("results: \udcff/1\n") == "results: \\udcff/1\n"


def test_a_file_named_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    monkeypatch.setattr(sys, "argv", ["small.py"])
    with pytest.raises(SystemExit, match=r"runs=runs: cannot write there .* choose another with -F DIR"):
        lab.launch(make_experiment())


def test_an_id_that_is_taken_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "7").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["small.py", "-i", "7"])
    with pytest.raises(SystemExit, match="--id=7: runs/7 exists already"):
        lab.launch(make_experiment())


@dataclass(frozen=True)
class Faulty(lab.Options):
    """One whose own check fails."""

    hidden: int = lab.integer(1, help="a width")

    def check(self):
        1 // 0  # noqa: B018


def test_an_error_of_the_check_itself_is_shown_in_debug_mode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["small.py", "--debug"])
    with pytest.raises(ZeroDivisionError):
        lab.launch(make_experiment(Faulty))


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[kha_linear,mea]", ["kha_linear", "mea"]),
        ("['kha_linear','mea']", ["kha_linear", "mea"]),
        ("[ a , 'b,c' , 3, None, 1e-3]", ["a", "b,c", 3, None, 1e-3]),
        ("[tiny*0.25,tiny]", ["tiny*0.25", "tiny"]),
        ("[sqlite:///a.db#1,runs/3,4]", ["sqlite:///a.db#1", "runs/3", 4]),
        ("[[a,b],[c]]", [["a", "b"], ["c"]]),
        ("[1.0,theory]", [1.0, "theory"]),
        ("[a,]", ["a"]),
        ("[]", []),
        ("[a b]", ["a b"]),
        ("a,b", "a,b"),
        ("[a,,b]", "[a,,b]"),
        ("[a,", "[a,"),
        ("['a'b]", "['a'b]"),
        ("[{a:1}]", "[{a:1}]"),
        ("'[a,b]'", "[a,b]"),
    ],
)
def test_words_in_lists_need_no_quotes(text, value):
    updates, named = command_line.updates_of(["smoke", f"x={text}", f"grid.y={text}"])
    assert updates == {"x": value, "grid": {"y": value}}
    assert named == ["smoke"]


@dataclass(frozen=True)
class Every(lab.Options):
    """A key of each kind."""

    n: int = lab.integer(3, least=1, most=3, help="a count")
    ns: list[int] = lab.integers([1, 2], least=1, help="counts")
    x: float = lab.number(0.5, above=0.0, most=1, help="a share")
    y: float = lab.number(0, least=0, help="a size")
    xs: list[float] = lab.numbers([0.5], least=0, most=1, help="shares")
    name: str = lab.choice("a", ("a", "b"), help="a name")
    names: list[str] = lab.choices("a", lambda: ("a", "b"), help="names")
    flag: bool = lab.flag(False, help="whether")
    place: str | None = lab.text(None, "a folder", help="where")
    given: Any = lab.key(None, as_given(several(an_integer(1))), help="a count or counts")
    searched: Any = lab.key(
        "a", Kind(lambda key, value: value, lambda: "a name", with_options=True), help="with options"
    )


def test_values_of_the_right_kind_pass():
    config = Every.of({"n": 2, "ns": 3, "x": 1, "name": "b", "flag": True, "given": [2], "unknown": 1})
    assert (config.n, config.ns, config.x, config.name, config.flag, config.given) == (2, [3], 1.0, "b", True, [2])
    assert type(config.x) is float
    assert (config.names, config.xs, config.place) == (["a"], [0.5], None)
    assert config.values() == {**Every.defaults(), "n": 2, "ns": 3, "x": 1, "name": "b", "flag": True, "given": [2]}
    assert Every() == Every.of(Every.defaults())


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("n", 4, "n=4: must be an int >= 1 and <= 3"),
        ("n", True, "n=True: must be an int >= 1"),
        ("n", None, "n=None: must be an int >= 1"),
        ("ns", [2, 2], "ns=[2, 2]: must be an int >= 1 or a list of them, not empty, none twice"),
        ("ns", [[2]], "ns=[[2]]: must be an int >= 1"),
        ("x", math.nan, "x=nan: must be a finite number > 0.0 and <= 1"),
        ("x", 0, "x=0: must be a finite number > 0.0 and <= 1"),
        ("y", False, "y=False: must be a finite number >= 0"),
        ("y", 10**400, "y=1000"),
        ("xs", [0.5, 2], "xs=2: must be a finite number >= 0 and <= 1"),
        ("xs", [], "xs=[]: must be one value or a list of them, not empty, none twice"),
        ("name", 3, "name=3: must be one of a, b"),
        ("names", ["a", "a"], "names=['a', 'a']: must be one or several of a, b, none twice"),
        ("names", [["a"]], "names=[['a']]: must be one or several of"),
        ("flag", 1, "flag=1: must be True or False"),
        ("place", "", "place='': must be a folder"),
        ("given", 0, "given=0: must be an int >= 1 or a list of them"),
    ],
)
def test_values_of_the_wrong_kind_are_named(key, value, line):
    with pytest.raises(lab.BadConfig) as error:
        Every(**{key: value})
    assert str(error.value).startswith(line)
    assert error.value.key == key


@pytest.mark.parametrize(
    ("words", "updates"),
    [
        ("searched=b", {"searched": "b"}),
        ("searched.rate=0.2", {"searched": {"rate": 0.2}}),
        ("searched.rate=0.2 searched=b", {"searched": {"name": "b", "rate": 0.2}}),
        ("searched=b searched.rate=0.2", {"searched": {"name": "b", "rate": 0.2}}),
    ],
)
def test_options_stand_beside_a_name(words, updates):
    made, _ = command_line.updates_of(words.split(), {"searched"})
    assert made == updates
    ex = make_experiment(Every)
    ex.add_named_config("other", searched="c")
    wanted = updates["searched"]
    assert scripts.resolve(ex, made, [])[1] == {"searched": wanted}
    both = wanted if isinstance(wanted, str) else {"name": "c"} | wanted
    assert scripts.resolve(ex, made, ["other"])[0]["searched"] == both
    flat = plan.flat(updates)
    assert scripts.resolve(ex, flat, [])[0]["searched"] == wanted


def test_help_tells_every_key_its_default_and_what_it_takes(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["small.py", "help_config"])
    lab.launch(make_experiment())
    told = capsys.readouterr().out
    assert re.search(
        r"  hidden=\[4, 8\]\n +widths of it \(an int >= 1 or a list of them, not empty, none twice\)", told
    )
    assert "seed=0" in told
    monkeypatch.setattr(sys, "argv", ["small.py", "--help"])
    with pytest.raises(SystemExit):
        lab.launch(make_experiment())
    assert told in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["small.py", "print_config"])
    lab.launch(make_experiment())
    assert "# widths of it" in capsys.readouterr().out


def test_a_script_is_imported_and_not_launched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(SCRIPT)
    ex = scripts.load.__wrapped__(tmp_path / "small.py")
    assert (ex.path, ex.default_command, {*ex.Config.kinds()}) == ("small", "main", {"hidden", "target", "seed", "end"})
    (tmp_path / "none.py").write_text("a = 1\n")
    with pytest.raises(lab.Refused, match="no experiment"):
        scripts.load.__wrapped__(tmp_path / "none.py")


def test_a_long_value_is_shortened():
    assert len(str(lab.BadConfig("hidden", list(range(10**4)), "short"))) < 100


# ---------------------------------------------------------------- files


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_the_text_of_a_float_is_exact(values):
    text = storage._csv(pd.DataFrame({"source": range(len(values)), "error": values})).decode()
    back = [float(row["error"]) for row in csv.DictReader(text.split("\n"))]
    assert np.array(back).tobytes() == np.array(values).tobytes()
    assert text.endswith("\n")
    assert "\r" not in text


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.floats().map(np.float64)


@settings(max_examples=50)
@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_plain_values_survive_json_and_stay_as_they_are(value):
    plain = storage.plain(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert storage.plain(plain) == plain


def test_plain_takes_arrays_and_refuses_what_json_has_no_form_for():
    assert storage.plain({"a": np.array([1.0, np.inf]), "n": np.int64(3), "ok": np.True_}) == {
        "a": [1.0, None],
        "n": 3,
        "ok": True,
    }
    with pytest.raises(TypeError, match="not object"):
        storage.plain({"a": object()})


def test_a_figure_gives_the_same_bytes_twice():
    def draw():
        figure = Figure()
        figure.subplots().plot([1, 3, 2], label="a")
        figure.legend()
        return figure

    first, second = lab.render({"a": draw()}), lab.render({"a": draw()})
    assert first == second
    assert set(first) == {"a.png", "a.svg", "a.pdf"}


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    write_all(tmp_path, {"a.txt": b"old"})
    with pytest.raises(TypeError):
        write_all(tmp_path, {"a.txt": "not bytes"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"old"}


def test_without_a_run_folder_the_files_go_to_the_observers():
    seen = {}
    run = SimpleNamespace(
        observers=[object()], add_artifact=lambda path, name: seen.setdefault(name, Path(path).read_bytes())
    )
    assert lab.save(run, pd.DataFrame({"a": [1]}), {"b": 2}, {}) is None
    assert seen == {"results.csv": b"a\n1\n", "summary.json": b'{\n  "b": 2\n}\n'}


def test_the_sql_observer_is_spared_the_summary():
    observer = border.SqlObserver.create_from(engine=None, session=None)
    observer.run, observer.save = SimpleNamespace(), lambda: None
    run = SimpleNamespace(result={"gamma": np.float64(0.5)}, observers=[observer])
    command_line.store_plain_result(run)
    assert run.result == {"gamma": 0.5}
    observer.completed_event(stop_time=None, result=run.result)
    assert (observer.run.result, observer.run.status) == (None, "COMPLETED")


# ---------------------------------------------------------------- reading


def store(folder: Path, name: str = "", content: bytes | None = None) -> Path:
    """A run's folder in which the file `name` has this content, or is missing."""
    files: dict[str, bytes | None] = {
        "results.csv": b"hidden,error\n4,0.5\n",
        "summary.json": b"{}",
        "config.json": b'{"__doc__": "text"}',
        "run.json": b'{"status": "COMPLETED"}',
    }
    if name:
        files[name] = content
    folder.mkdir()
    write_all(folder, {name: content for name, content in files.items() if content is not None})
    return folder


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("results.csv", None, r"results.csv cannot be read \(No such file"),
        ("results.csv", b"", r"results.csv cannot be read \(No columns"),
        ("results.csv", b'a,b\n"1', r"results.csv cannot be read"),
        ("summary.json", None, r"summary.json cannot be read"),
        ("summary.json", b"{", r"summary.json cannot be read"),
        ("summary.json", b"\xff", r"summary.json cannot be read"),
        ("config.json", b"[]", r"config.json cannot be read \(no JSON object\)"),
        ("run.json", None, r"run.json cannot be read"),
        ("run.json", b'{"status": "FAILED"}', r"a completed run; this one is FAILED"),
        ("run.json", b"{}", r"a completed run; this one is None"),
    ],
)
def test_a_run_that_cannot_be_read_is_named(tmp_path, name, content, complaint):
    run = store(tmp_path / "7", name, content)
    with pytest.raises(lab.BadConfig, match=complaint) as error:
        lab.load_run(run)
    assert str(error.value).startswith(f"runs={brief(str(run))}: must be a")
    assert "\n" not in str(error.value)


def test_a_whole_run_is_read(tmp_path):
    results, summary, config = lab.load_run(store(tmp_path / "7"))
    assert results.to_dict("list") == {"hidden": [4], "error": [0.5]}
    assert (summary, config) == ({}, {})


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    lab.require_writable(tmp_path / "a" / "b", "out", "")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_progress_is_quiet_without_a_terminal(capsys):
    assert list(lab.progress(range(3), "count")) == [0, 1, 2]
    with lab.progress(None, "count", total=2) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_config_that_is_no_dataclass_is_refused():
    class Lost(lab.Options):
        n: int = lab.integer(3, help="x")

    for make in (Lost, lambda: lab.experiment("lost", Lost)):
        with pytest.raises(ValueError, match="Lost: must be a frozen dataclass"):
            make()
