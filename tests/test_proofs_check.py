"""The paper's statements hold, and the frame that says so can say the opposite."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case

import proofs_check
from proofs_check import __main__ as command
from proofs_check import check, draws, sources
from proofs_check.check import Check, Control, Statement, exists, failure_at_least, failure_at_most, missing
from proofs_check.search import ascend, distance

ROOT = Path(__file__).parents[1]

PAPER = [
    "lemma2", "lemma7", "lemma8", "theorem9", "theorem10", "theorem11", "lemma12", "lemma13", "theorem14",
]  # fmt: skip
KNOWN = command.statements()


@pytest.fixture
def few(monkeypatch):
    """Half the random sources, with bounds of the confidence that so few can give, and half the steps of a search."""
    monkeypatch.setattr(check, "CONFIDENCE", 0.9)
    monkeypatch.setitem(ascend.__kwdefaults__, "steps", 25)
    for module in (sys.modules[f"proofs_check.{name}"] for name in KNOWN):
        if hasattr(module, "SOURCES"):
            monkeypatch.setattr(module, "SOURCES", module.SOURCES // 2)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", KNOWN)
def test_statement_holds_and_its_controls_fail(name):
    require_whole(KNOWN[name](0.1))


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_statement_holds_and_its_controls_fail_on_all_cases(name):
    require_whole(KNOWN[name](1.0))


def require_whole(statement):
    assert statement.holds, "\n".join(command.rows(statement, 0.0))
    assert len(statement.checks) >= 2
    assert len(statement.controls) >= 4


def test_every_statement_of_the_paper_is_there_in_its_order():
    assert [name for name in KNOWN if name in PAPER] == PAPER


# the command

STATEMENT = """
from proofs_check.check import Check, Control, Statement

def check(share):
    return Statement("Made up", ({checks}), ({controls}))
"""


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Add a file with a statement to the package, for this test."""

    def add(checks, controls="Control('halved', 1.9),"):
        (tmp_path / "made_up.py").write_text(STATEMENT.format(checks=checks, controls=controls))
        monkeypatch.setattr(proofs_check, "__path__", [*proofs_check.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, "proofs_check.made_up", raising=False)

    yield add
    sys.modules.pop("proofs_check.made_up", None)


def test_a_new_file_is_a_new_statement(made_up, capsys):
    made_up("Check('as claimed', 100, 0.95),")
    assert list(command.statements()) != list(KNOWN)
    assert command.main(["made_up"]) == 0
    out = capsys.readouterr().out
    for part in ("Made up", "100", "0.9500", "1 of 1 controls fail: holds", "as claimed", "control: halved", "1.9"):
        assert part in out
    assert "everything holds, every control fails" in out


@one_case
@pytest.mark.parametrize(
    ("checks", "controls", "said"),
    [
        ("Check('claim', 100, 1.001),", "Control('halved', 1.9),", "DOES NOT HOLD"),
        ("Check('claim', 100, float('nan')),", "Control('halved', 1.9),", "DOES NOT HOLD"),
        ("Check('claim', 0, 0.5),", "Control('halved', 1.9),", "DOES NOT HOLD"),
        ("Check('fine', 9, 0.5), Check('claim', 9, 2.0)", "Control('halved', 1.9),", "DOES NOT HOLD"),
        ("Check('claim', 100, 0.9),", "Control('halved', 0.9),", "DOES NOT FAIL"),
        ("Check('claim', 100, 0.9),", "Control('halved', float('inf')),", "DOES NOT FAIL"),
        ("Check('claim', 100, 0.9),", "", "0 of 0 controls fail"),
    ],
)
def test_whatever_is_off_ends_with_status_1(made_up, capsys, checks, controls, said):
    made_up(checks, controls)
    assert command.main(["made_up"]) == 1
    out = capsys.readouterr().out
    assert said in out
    assert "off: Made up" in out
    assert "everything holds" not in out


def test_a_statement_that_is_off_is_not_hidden_by_one_that_holds(made_up, capsys):
    made_up("Check('claim', 100, 1.5),")
    assert command.main(["made_up", "lemma8"], share=0.1) == 1
    assert "off: Made up" in capsys.readouterr().out


def test_an_unknown_name_is_refused_before_any_work(capsys):
    assert command.main(["lemma8", "lemma99"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"'lemma99': no such statement, must be one of {', '.join(KNOWN)}\n"


def test_the_command_line_ends_with_the_status_of_main():
    asked = [sys.executable, "-m", "proofs_check", "lemma99"]
    ran = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "no such statement" in ran.stderr


# verdicts


def test_ratios_may_pass_1_by_rounding_only():
    assert Check("attained", 1, 1 + 1e-12).holds
    assert not Check("attained", 1, 1 + 1e-6).holds
    assert not Control("attained", 1 + 1e-12).fails


def test_a_statement_needs_checks_and_controls():
    check, control = Check("claim", 1, 0.5), Control("halved", 2.0)
    assert Statement("", (check,), (control,)).holds
    assert not Statement("", (check,), ()).holds
    assert not Statement("", (), (control,)).holds


@given(st.integers(1, 500))
def test_no_failure_bounds_the_probability_by_the_root(draws_made):
    assert failure_at_most(0, draws_made) == pytest.approx(1 - 0.01 ** (1 / draws_made))
    assert failure_at_least(0, draws_made) == 0
    assert failure_at_least(draws_made, draws_made) == pytest.approx(0.01 ** (1 / draws_made))


@given(st.integers(0, 100), st.integers(1, 400))
def test_bounds_enclose_the_share(failures, more):
    share = failures / (failures + more)
    assert failure_at_least(failures, failures + more) <= share <= failure_at_most(failures, failures + more)


def test_existence_counts_failures():
    assert exists("sources", [0.5] * 100, 0.1).holds
    assert exists("sources", [0.5] * 98 + [3.0, math.nan], 0.1).ratio == pytest.approx(failure_at_most(2, 100) / 0.1)
    assert not exists("sources", [0.5] * 10, 0.1).holds  # too few to tell
    assert not exists("sources", [0.5] * 80 + [1.5] * 20, 0.1).holds
    assert missing("control", [0.5] * 50 + [1.5] * 50, 0.1).fails
    assert not missing("control", [0.5] * 95 + [1.5] * 5, 0.1).fails


# draws and searches


@one_case
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (8, 4)])
def test_contractions_have_spectral_norm_at_most_1_and_reach_it(shape):
    drawn = draws.contraction(draws.starts("test", 60, *shape))
    assert torch.linalg.matrix_norm(drawn, ord=2).max() <= 1 + 1e-12
    rank_1 = draws.normal("test/column", shape[0], 1) * draws.normal("test/row", 1, shape[1])
    diagonal = torch.eye(*shape, dtype=torch.float64)
    for extreme in (rank_1, diagonal):
        assert torch.linalg.matrix_norm(draws.contraction(9 * extreme), ord=2) == pytest.approx(1)


def test_balls_and_boxes_are_kept_to_and_reached():
    x = draws.ball(draws.starts("test/ball", 60, 4, 3), 2.5)
    norms = torch.linalg.vector_norm(x, dim=-1)
    assert norms.max() == pytest.approx(2.5)
    assert norms.min() < 0.1
    assert draws.box(torch.tensor([0.0, math.pi / 2, 9.0]), 3.0).tolist()[:2] == [0.0, 3.0]
    assert draws.box(draws.starts("test/box", 60, 4), 3.0).abs().max() <= 3.0


def test_masks_keep_a_key_in_each_row_and_a_flip_is_one_bit():
    mask = draws.attention_mask("test/mask", 200, 3, 3)
    assert mask.any(-1).all()
    assert not mask.all()
    before, after = draws.mask_pair("test/mask", True, 200, 3, 3)
    assert ((before ^ after).sum(-1) == 1).all()
    assert before.any(-1).all()
    same, also = draws.mask_pair("test/mask", False, 200, 3, 3)
    assert torch.equal(same, also)


def test_names_are_streams_of_their_own():
    assert torch.equal(draws.normal("test/a", 5), draws.normal("test/a", 5))
    assert not torch.equal(draws.normal("test/a", 5), draws.normal("test/b", 5))


def test_ascent_finds_a_top_and_never_reports_less_than_it_saw():
    def hill(x, y):
        return 3 - (x - 1).square().sum(-1) - (y + 2).square()

    start = {"x": draws.normal("test/x", 8, 2), "y": draws.normal("test/y", 8)}
    found = ascend(hill, start)
    assert 2.99 < found <= 3
    assert ascend(hill, {"x": torch.ones(1, 2).double(), "y": -2 * torch.ones(1).double()}) == 3


def test_ascent_tells_of_a_nan():
    assert math.isnan(ascend(lambda x: x / 0 * 0, {"x": torch.ones(3).double()}, steps=2))


def test_distance_is_that_of_the_worst_position():
    left, right = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    right[1, 2] = torch.tensor([3.0, 4.0])
    assert distance(left, right).tolist() == [0.0, 5.0]


def test_source_widths():
    assert sources.source_widths([2, 3, 1], [100, 9], 1.0) == [2, 100, 3, 9, 1]
    assert sources.source_widths([2, 3, 1], [100, 9], 0.25) == [2, 25, 3, 6, 1]  # two units an input at least
    assert sources.hidden_for(10**6, 2, 1.0) == 2 * sources.ENOUGH
