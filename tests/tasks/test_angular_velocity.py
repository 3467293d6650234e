import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import one_case

from slth.attention import MultiHeadAttention
from slth.tasks.angular_velocity import LEARNABLE, PAPER, Setting, Training, _adamw, predict, sample, train_target


def target(**kwargs):
    options = {"d_in": 2, "d_out": 1, "heads": 1, "hidden": 8, "dtype": torch.float64}
    return MultiHeadAttention(**{**options, **kwargs})


@contextmanager
def torch_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# sequences


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.sampled_from([torch.float32, torch.float64]))
def test_shapes_and_dtypes(count, length, d_in, dtype):
    drawn = sample(count, length, d_in, seed=0, dtype=dtype)
    assert drawn.inputs.shape == (count, length + 1, d_in)
    assert drawn.velocities.shape == (count, math.ceil(d_in / 2))
    assert drawn.inputs.dtype == drawn.velocities.dtype == dtype


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(0, 70), st.integers(0, 70), st.integers(1, 7), st.integers(0, 9)
)
def test_more_sequences_and_more_points_only_append(count, length, more, longer, d_in, seed):
    small = sample(count, length, d_in, seed=seed)
    large = sample(count + more, length + longer, d_in, seed=seed)
    assert torch.equal(small.inputs, large.inputs[:count, : length + 1])
    assert torch.equal(small.velocities, large.velocities[:count])


def test_long_sequences_start_like_short_ones():
    small, large = sample(3, 8, 2, seed=0), sample(3, 8192, 2, seed=0)
    assert torch.equal(small.inputs, large.inputs[:, :9])


@pytest.mark.parametrize("setting", [PAPER, LEARNABLE, Setting(1.0, 2 * math.pi, -3.0)])
def test_points_are_where_the_task_says(setting):
    inputs, targets = sample(2000, 5, 4, seed=1, setting=setting)
    assert torch.equal(inputs[:, 0], torch.full((2000, 4), setting.token, dtype=torch.float64))
    x = torch.view_as_complex(inputs[:, 1:].unflatten(-1, (2, 2)))  # (count, T, planes)
    assert torch.allclose(x.abs(), torch.ones(()).double())
    assert torch.allclose(x[:, 1:] / x[:, :-1], torch.exp(1j * targets)[:, None])
    phase = x[:, 0].angle() % (2 * math.pi)  # x_0 has the phase, which lies in [0, phase_max]
    assert phase.max() <= setting.phase_max + 1e-6
    assert phase.max() >= 0.99 * setting.phase_max
    assert 0.99 * setting.omega_max <= targets.max() < setting.omega_max
    assert -0.99 * setting.omega_max >= targets.min() > -setting.omega_max


@pytest.mark.parametrize("d_in", [2, 4, 64])
def test_points_have_norm_root_of_planes(d_in):
    points = sample(50, 9, d_in, seed=0).inputs[:, 1:]
    assert torch.allclose(points.norm(dim=-1), torch.tensor(math.sqrt(d_in / 2)).double())


@pytest.mark.parametrize("d_in", [1, 3, 5])
def test_odd_width_is_the_next_even_one_cut_off(d_in):
    odd, even = sample(7, 4, d_in, seed=0), sample(7, 4, d_in + 1, seed=0)
    assert torch.equal(odd.inputs, even.inputs[..., :-1])
    assert torch.equal(odd.velocities, even.velocities)


def test_seeds_splits_and_planes_are_independent():
    draws = [sample(500, 1, 6, seed=seed, split=split) for seed in (0, 1) for split in ("train", "validation", "test")]
    columns = torch.cat(
        [torch.cat((d.velocities, d.inputs[:, 1, ::2]), dim=1) for d in draws], dim=1
    )  # omega, cos(phase)
    correlation = torch.corrcoef(columns.T) - torch.eye(columns.shape[1])
    assert correlation.abs().max() < 0.25


def test_float32_is_float64_rounded():
    single, double = sample(20, 1000, 2, seed=0, dtype=torch.float32), sample(20, 1000, 2, seed=0)
    assert torch.equal(single.inputs, double.inputs.float())
    assert torch.equal(single.velocities, double.velocities.float())


# training


@pytest.mark.parametrize("heads", [1, 3])
def test_predict_is_the_output_at_the_regression_token(heads):
    model = target(d_in=4, d_out=2, heads=heads, hidden=3)
    inputs = sample(20, 7, 4, seed=0, setting=LEARNABLE).inputs
    assert torch.allclose(predict(model, inputs), model(inputs)[:, 0], atol=1e-12, rtol=0)


def test_one_head_learns_the_learnable_setting():
    untrained = train_target(target(), length=4, seed=0, setting=LEARNABLE, training=Training(epochs=0))
    report = train_target(target(), length=4, seed=0, setting=LEARNABLE)
    assert report.variance == untrained.variance == pytest.approx(LEARNABLE.omega_max**2 / 3, rel=0.03)
    assert max(report.validation_mse, report.test_mse) < 0.05 * report.variance
    assert untrained.test_mse > 0.5 * report.variance


def test_control_the_papers_setting_is_hardly_learned_at_length_4():
    report = train_target(target(), length=4, seed=0)
    assert report.variance == pytest.approx(math.pi**2 / 3, rel=0.03)
    assert 0.9 * report.variance < report.test_mse < report.variance


def test_report_measures_the_model_as_it_is_left():
    model = target(d_in=4, d_out=2)
    report = train_target(model, length=5, seed=3, setting=LEARNABLE, training=Training(samples=300, epochs=2))
    for split, reported in (("validation", report.validation_mse), ("test", report.test_mse)):
        inputs, targets = sample(300, 5, 4, seed=3, split=split, setting=LEARNABLE)
        error = (model(inputs)[:, 0] - targets).square().mean().item()
        assert error == pytest.approx(reported)
    assert report.variance == pytest.approx((targets - targets.mean(dim=0)).square().mean().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_is_the_same_with_one_thread_or_two(dtype):
    results = []
    for threads in (1, 2):
        with torch_threads(threads):
            model = target(dtype=dtype, d_in=4, d_out=2, heads=2)
            report = train_target(
                model, length=4, seed=0, setting=LEARNABLE, training=Training(samples=50_000, batch=50_000, epochs=2)
            )
            results.append((report, model.state_dict()))
            assert torch.get_num_threads() == threads
    (report, weights), (other_report, other_weights) = results
    assert report == other_report
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert all(weight.dtype == dtype for weight in weights.values())


def test_training_takes_one_thread_and_gives_the_others_back_after_an_error(monkeypatch):
    def fail(*_):
        raise RuntimeError(f"{torch.get_num_threads()} thread")

    monkeypatch.setattr("slth.tasks.angular_velocity.predict", fail)
    with torch_threads(2):
        with pytest.raises(RuntimeError, match=r"^1 thread$"):
            train_target(target(), length=4, seed=0, training=Training(samples=10))
        assert torch.get_num_threads() == 2


def test_training_draws_nothing_from_torchs_generator():
    before = torch.get_rng_state()
    reports = [
        train_target(target(), length=4, seed=seed, training=Training(samples=100, epochs=1)) for seed in (0, 0, 1)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert reports[0] == reports[1] != reports[2]


def test_the_order_of_the_sequences_differs_by_epoch_and_holds_each_once():
    from slth.tasks.angular_velocity import _shuffled

    first, second = _shuffled(1000, 0, 0), _shuffled(1000, 0, 1)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(1000))


# bad input


@one_case
@pytest.mark.parametrize(
    ("name", "value"),
    [("count", 0), ("count", 1.5), ("length", 0), ("length", 2.5), ("d_in", 0), ("split", "dev")],
)
def test_sample_names_bad_input(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must be"):
        sample(**{"count": 1, "length": 4, "d_in": 2, "seed": 0, name: value})


@one_case
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("omega_max", 0.0),
        ("omega_max", 3.2),
        ("omega_max", math.nan),
        ("phase_max", -0.1),
        ("phase_max", 6.3),
        ("phase_max", math.nan),
        ("token", math.inf),
        ("token", math.nan),
    ],
)
def test_setting_names_bad_input(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: must"):
        Setting(**{name: value})


@one_case
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("samples", 0),
        ("epochs", -1),
        ("batch", 0),
        ("lr", 0.0),
        ("lr", math.inf),
        ("weight_decay", -1.0),
        ("weight_decay", math.nan),
    ],
)
def test_training_names_bad_input(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: must be"):
        Training(**{name: value})


def test_train_target_names_bad_input_and_leaves_the_model():
    model = target()
    with pytest.raises(ValueError, match=r"^length=0: must be"):
        train_target(model, length=0, seed=0)
    assert torch.equal(model.query, target().query)


def test_the_steps_are_those_of_torchs_adamw():
    models = [target(d_in=4, d_out=2, heads=2) for _ in range(2)]
    inputs = sample(50, 4, 4, seed=0).inputs
    step = _adamw(list(models[0].parameters()), Training(lr=0.2, weight_decay=0.1))
    optimizer = torch.optim.AdamW(models[1].parameters(), lr=0.2, weight_decay=0.1)
    for _ in range(5):
        step(predict(models[0], inputs).square().sum())
        optimizer.zero_grad()
        predict(models[1], inputs).square().sum().backward()
        optimizer.step()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    assert not torch.equal(models[0].query, target(d_in=4, d_out=2, heads=2).query)


@pytest.mark.parametrize(("widths", "match"), [((3, 1), "d_in=3: must be even"), ((4, 1), "d_out=1: must be .* = 2")])
def test_train_target_refuses_models_of_other_widths(widths, match):
    with pytest.raises(ValueError, match=match):
        train_target(target(d_in=widths[0], d_out=widths[1]), length=4, seed=0)
