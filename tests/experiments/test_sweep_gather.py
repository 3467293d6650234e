"""What a sweep gathers of its runs: tables, figures, a page."""

import pandas
import pytest
from sweeping import runs_of

from slth.experiments import lab, plot
from slth.experiments.lab import values
from slth.experiments.sweeps import gather, page, plan


def test_time_columns_have_names_of_their_own():
    times = ["took_s", "seconds", "seconds_mean", "tokens_per_s", "tokens_per_s_dense", "fit.tokens_per_s.dense"]
    times += ["problems_per_second_n20", "summary.seconds"]
    others = ["errors", "s", "_seconds", "loss_per_step", "bits_per_seed"]
    assert [name for name in times + others if gather.is_time(name)] == times


def test_cells_are_text_as_it_is_and_all_else_json():
    assert [plan.text(value) for value in (None, "a,b", 0.1, True, [1, 2])] == ["", "a,b", "0.1", "true", "[1, 2]"]


def errors_of(runs):
    """A table as approx_error's, with the widths of its curve as rows."""
    rows = [
        {"run_id": run.id, "hidden": hidden, "length": 4, "source": source, "side": "input", "d_in": 2}
        for run in runs
        for hidden in (4, 8)
        for source in range(3)
    ]
    table = pandas.DataFrame(rows)
    error = 2.0 ** -table["hidden"] * (1 + table["source"])
    return table.assign(error_mean=error, certificate=3 * error)


def test_seeds_and_the_tables_own_columns_are_drawn_together():
    runs = runs_of(seed=[0, 1, 2], hidden=[4, 8])
    assert list(gather.figures(runs, errors_of(runs))) == ["error_vs_width"]


def test_other_keys_are_series():
    runs = runs_of(keep=[0.3, 0.5], seed=[0, 1])
    measured = errors_of(runs).assign(keep=0.25)  # a column of the same name may hold what was measured
    for table in (errors_of(runs), measured):
        (figure,) = gather.figures(runs, table).values()
        labels = [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]  # beside the lines' ends
        assert labels == ["keep=0.3 (mean of 2 seeds)", "keep=0.5 (mean of 2 seeds)"]


def test_a_sweep_of_one_run_has_the_figures_of_the_run():
    runs = runs_of(seed=[3])
    (figure,) = gather.figures(runs, errors_of(runs)).values()
    assert "3 sources" in figure.axes[0].get_title()


def test_a_page_shows_what_is_text_as_text():
    row = {"run_id": "0", "notes": "<b>&", "status": "FAILED", '"><b>': "1"}
    html = page.page("a<b", list(row), [row], {"0": "<i>"}, {"one.svg": b"<svg/>"}).decode()
    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert '<td class="&quot;&gt;&lt;b&gt;">1</td>' in html
    assert "data:image/svg+xml;base64,PHN2Zy8+" in html


def test_a_sweeps_folder_stands_for_its_finished_runs(tmp_path):
    (tmp_path / "runs.csv").write_text("run_id,status\n00b,COMPLETED\n00c,FAILED\n00a,COMPLETED\n")
    assert plot.places(str(tmp_path)) == [tmp_path / "00b", tmp_path / "00a"]
    assert plot.places([str(tmp_path / "00a")]) == [tmp_path / "00a"]
    (tmp_path / "runs.csv").write_text("run_id,status\n00c,FAILED\n")
    with pytest.raises(lab.BadConfig, match="must be a sweep with finished runs"):
        plot.places(str(tmp_path))
    (tmp_path / "runs.csv").write_text("")
    with pytest.raises(lab.BadConfig, match=r"its runs.csv cannot be read"):
        plot.places(str(tmp_path))


def test_a_list_of_names_is_split_and_all_else_left_alone():
    assert values.unbracketed("[a, 1,0.5 ,None]") == ["a", 1, 0.5, None]
    assert [values.unbracketed(value) for value in ("a,b", 3, [1], None)] == ["a,b", 3, [1], None]
