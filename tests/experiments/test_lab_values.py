"""Values of a config, and how the command line says them."""

import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from small_experiment import SCRIPT, Config, make_experiment
from tables import one_case

from slth.experiments import lab
from slth.experiments.lab import command_line, scripts
from slth.experiments.lab.options import Kind, an_integer, as_given, several
from slth.experiments.sweeps import plan


@one_case
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


@one_case
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


@one_case
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
    assert (ex.path, ex.default_command) == ("small", "main")
    assert {*ex.Config.kinds()} == {"hidden", "target", "seed", "end", "checkpoints"}
    (tmp_path / "none.py").write_text("a = 1\n")
    with pytest.raises(lab.Refused, match="no experiment"):
        scripts.load.__wrapped__(tmp_path / "none.py")


def test_a_long_value_is_shortened():
    assert len(str(lab.BadConfig("hidden", list(range(10**4)), "short"))) < 100


def test_help_is_told_where_a_key_still_lacks_its_value(capsys, monkeypatch):
    def incomplete(self):
        raise lab.BadConfig("hidden", None, "given")

    monkeypatch.setattr(Config, "check", incomplete)
    monkeypatch.setattr(sys, "argv", ["small.py", "help_config"])
    lab.launch(make_experiment())
    told = capsys.readouterr()
    assert (told.out.partition("\n")[0], told.err) == ("Config:", "")
