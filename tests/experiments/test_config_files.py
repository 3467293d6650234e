"""A config file means what the same keys mean on a command line, for every experiment that takes a method."""

import json

import pytest
from tables import one_case

from slth.experiments import lab, sweep
from slth.experiments.lab import config_files, scripts
from slth.experiments.sweeps import plan

OPTIONS = {"method": "iterand", "method.rate": 0.2}
EXPERIMENTS = {name: scripts.load(scripts.EXPERIMENTS / f"{name}.py") for name in scripts.names()}
WITH_METHOD = [name for name, ex in EXPERIMENTS.items() if "method" in ex.with_options()]
SMALL = {"steps": 9, "method.every": 2}


@pytest.fixture
def write(tmp_path):
    def write(content, name="my.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))  # JSON is YAML
        return str(path)

    return write


@pytest.fixture
def method_of(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and some dogs ran away\n" * 400)

    def method_of(name, updates, named=()):
        ex = EXPERIMENTS[name]
        data = {"data": str(tmp_path / "text.txt")} if "data" in ex.Config.kinds() else {}
        scripts.resolve(ex, data | updates, ["smoke", *named])
        return ex.checked.method

    return method_of


def test_these_take_a_method():
    assert WITH_METHOD == ["approx_error", "gpt2_prune", "mixing", "qk_scale"]


@pytest.mark.parametrize("name", WITH_METHOD)
def test_options_stand_beside_a_method(name, write, method_of):
    wanted = method_of(name, OPTIONS | SMALL)
    assert (wanted.name, wanted.options) == ("iterand", {"rate": 0.2, "every": 2})
    lines = "".join(f"{key}: {value}\n" for key, value in (OPTIONS | SMALL).items())
    assert method_of(name, {}, [write(lines)]) == wanted
    assert method_of(name, {}, [write(OPTIONS | SMALL, "my.json")]) == wanted
    assert method_of(name, {}, [write({"method": {"name": "iterand", "rate": 0.2, "every": 2}, "steps": 9})]) == wanted
    assert method_of(name, {"method.rate": 0.2}, [write({"method": "iterand"} | SMALL)]) == wanted
    assert method_of(name, {"method": "edge_popup"}, [write({"method": "iterand"})]).name == "edge_popup"


def test_later_ones_win(write, method_of):
    named = [write({"method": "iterand", "method.rate": 0.3}, "one.yaml"), write({"method.rate": 0.2}, "two.yaml")]
    assert str(method_of("approx_error", {}, named)) == "iterand(rate=0.2)"
    assert str(method_of("approx_error", {}, named[::-1])) == "iterand(rate=0.3)"


def test_a_run_knows_its_files_by_name(write):
    ex, path = EXPERIMENTS["approx_error"], write(OPTIONS)
    before = dict(ex.named_configs)
    run = ex._create_run("print_config", {}, ["smoke", path], None, None, {"--force": True})
    assert run.meta_info["named_configs"] == ["smoke", path]
    assert run.config["method"] == {"name": "iterand", "rate": 0.2}
    assert ex.named_configs == before


@one_case
@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("[1, 2]", "my.yaml", "a list: must be keys with values"),
        ("a: [", "my.yaml", "while parsing"),
        ("a..b: 1", "my.yaml", r"key 'a\.\.b': must be text without empty parts"),
        ("1: 2", "my.yaml", "key 1: must be text"),
        ("$a: 2", "my.yaml", "Invalid key"),
        ("a: 1\na.b: 2", "my.yaml", "int"),
        ("a: 1", "my.ini", "invalid or unsupported extension"),
        ("{", "my.json", "Expecting"),
    ],
)
def test_what_is_no_config_file_is_refused(content, name, message, write):
    with pytest.raises(lab.Refused, match=rf"my\.[a-z]+: no config file that can be read \(.*{message}") as seen:
        config_files.read(write(content, name), {"method"})
    assert "\n" not in str(seen.value)


# ---------------------------------------------------------------- sweeps

SWEEP = {
    "experiment": "approx_error",
    "base": {**OPTIONS, "steps": 9},
    "runs": [{"method.every": 2}, {"method": "iterand", "method.every": 3}],
    "named": "smoke",
}


def planned(config):
    asked = config.sweep
    runs = plan.resolve(asked.script, asked.named, asked.points, "v")
    ex = scripts.load(asked.script)
    return [ex.Config.of(run["config"]).method.options for run in runs]


def test_a_file_of_a_sweep(write):
    wanted = [{"rate": 0.2, "every": 2}, {"rate": 0.2, "every": 3}]
    assert planned(sweep.Config(file=write(SWEEP))) == wanted
    scripts.resolve(EXPERIMENTS["sweep"], {}, [write(SWEEP)])
    assert planned(EXPERIMENTS["sweep"].checked) == wanted


def test_a_file_for_all_runs_of_a_sweep(write):
    named = ["smoke", write(OPTIONS | {"steps": 9})]
    config = sweep.Config(experiment="approx_error", named=named, grid={"method.every": [2, 3]})
    assert planned(config) == [{"rate": 0.2, "every": 2}, {"rate": 0.2, "every": 3}]
