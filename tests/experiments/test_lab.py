"""Runs by the command line: what they leave, and what is refused."""

import signal
import subprocess
import sys
import time

import pytest
from small_experiment import SCRIPT, Config, make_experiment, read, run_script
from tables import one_case

from slth.experiments import lab

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
    assert config == {"hidden": [4, 12], "target": "random", "seed": 0, "end": "well", "checkpoints": None}


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
    ("number", "status", "given", "line"),
    [
        (signal.SIGINT, 130, [], "interrupted; run: runs/1; {nothing}"),
        (signal.SIGTERM, 143, [], "interrupted by SIGTERM; run: runs/1; {nothing}"),
        (signal.SIGHUP, 129, ["checkpoints=so far"], "interrupted by SIGHUP; run: runs/1; to go on: python {again}"),
    ],
)
def test_an_interrupt_is_marked_and_leaves_no_results(tmp_path, number, status, given, line):
    nothing = "nothing can be resumed: it had no checkpoints=FOLDER"
    again = "small.py with end=wait 'checkpoints=so far'"
    (tmp_path / "small.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "small.py", "with", "end=wait", *given],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # jobs in the background may ignore it
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
    assert stderr == line.format(nothing=nothing, again=again) + "\n"
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


@one_case
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
        (
            "-F store -m localhost:9:db",
            "--mongo_db=localhost:9:db: must be where a server answers, none does at localhost:9",
        ),
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


def test_an_experiment_that_was_launched_can_be_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["small.py"])
    ex = make_experiment()
    lab.launch(ex)
    assert (ex.observers, ex.post_run_hooks) == ([], [])
    assert ex.run().status == "COMPLETED"
