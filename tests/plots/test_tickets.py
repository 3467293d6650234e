"""The heat maps of tickets: their cells, what they mark, and that they can be read at every size."""

import numpy as np
import pandas as pd
import pytest
from legible import require_legible

from slth import plots


def make_shares(heads=4, layers=3):
    roles = {"query": heads, "key": heads // 2, "in": None}
    rows = [{"weight": "wte", "layer": None, "role": "wte", "head": None, "kept": 3, "size": 4}]
    rows += [
        {"weight": f"{layer}.{role}", "layer": layer, "role": role, "head": head, "kept": kept, "size": 100}
        for layer in range(layers)
        for role, count in roles.items()
        for head in ([None] if count is None else range(count))
        for kept in [10 * layer + (head or 0) + (role == "in")]
    ]
    table = pd.DataFrame(rows)
    return table.assign(share=table["kept"] / table["size"])


def make_overlaps():
    table = make_shares().rename(columns={"kept": "both"})
    return table.assign(overlap=table["both"] / 150, by_chance=0.25).drop(columns="share")


def crosses_of(axes):
    return {tuple(point) for line in axes.lines if line.get_marker() == "x" for point in line.get_xydata()}


def test_cells_are_shares_and_heads_of_fewer_are_wider():
    axes = plots.kept_share(make_shares())
    (mesh, *_) = axes.collections
    cells = np.asarray(mesh.get_array()).reshape(3, 12)
    assert cells[1] == pytest.approx(np.array([10, 11, 12, 13, 10, 10, 11, 11, 11, 11, 11, 11]) / 100)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["query", "key", "in"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]
    assert crosses_of(axes) == {(0.5, 0.5), (5.0, 0.5)}  # query 0 and key 0 of layer 0


def test_what_has_no_overlap_has_no_colour():
    table = make_overlaps()
    table.loc[table["both"] == 0, "overlap"] = np.nan
    axes = plots.ticket_overlap(table)
    cells = np.ma.masked_invalid(axes.collections[0].get_array()).reshape(3, 12)
    assert cells.mask.sum() == 1 + 2
    bar = plots.figure_of(axes).axes[1]
    assert bar.get_ylabel() == "intersection over union (0.25 by chance)"


@pytest.mark.parametrize("heads", [2, 12])
def test_heat_maps_are_legible(heads):
    for size in plots.SIZES:
        found = plots.figures(make_shares(heads, 12), layout=plots.Layout(size))
        assert found.keys() == {"kept_share"}
        require_legible(found["kept_share"])
    found = plots.figures(make_overlaps())
    assert found.keys() == {"ticket_overlap"}
    require_legible(found["ticket_overlap"])


def test_tables_without_layers_are_refused():
    table = make_shares()
    with pytest.raises(ValueError, match="the table has no rows in a layer"):
        plots.kept_share(table[table["layer"].isna()])
    with pytest.raises(ValueError, match="the table lacks the columns share"):
        plots.kept_share(table.drop(columns="share"))
