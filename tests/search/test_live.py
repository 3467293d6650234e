"""What fit tells a tracker while it goes on."""

import pytest
import torch
from looping import fit, interrupted, loader
from regression import assert_same, net, state, wrapped
from stepping import Replayer
from tables import one_case

import slth
from slth.search import EdgePopup

STEPS = 24


class Log(list):
    """Keeps what it is called with; what it does to torch's own generator must not matter."""

    def __call__(self, numbers, step):
        torch.manual_seed(step)
        self.append((step, numbers))

    def curve(self, name):
        return {step: numbers[name] for step, numbers in self if name in numbers}


def rows(result, name):
    return {row["step"]: row[name] for row in result.rows if name in row}


def test_it_is_told_what_the_rows_hold_and_more():
    log = Log()
    result = fit(wrapped(keep=0.4), method=EdgePopup(schedule="linear", arrival=0.5), log=log, warmup=0.25, lr=0.02)
    assert [step for step, _ in log] == list(range(1, STEPS + 1))
    for name in ("train_loss", "error"):
        assert log.curve(name) == rows(result, name)
    rates = list(log.curve("lr").values())
    assert rates[:6] == pytest.approx([0.02 * n / 6 for n in range(1, 7)])
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[-1] == pytest.approx(0.0002)
    keeps = list(log.curve("keep").values())
    assert keeps[0] == 1.0
    assert keeps == sorted(keeps, reverse=True)
    assert keeps[12:] == pytest.approx([0.4] * 12, abs=1e-3)
    assert min(log.curve("steps_per_s").values()) > 0


def test_a_long_run_is_told_of_a_hundred_times_and_at_evaluations():
    log = Log()
    fit(net(), steps=250, every=25, log=log)
    assert list(log.curve("train_loss")) == list(range(2, 251, 2))
    assert list(log.curve("error")) == list(range(25, 251, 25))
    assert "train_loss" not in dict(log)[25]
    assert not log.curve("keep")  # of a plain model


def test_results_and_checkpoints_do_not_depend_on_it(tmp_path):
    found = []
    for log in (None, Log()):
        model, path = wrapped(dropout=0.3), tmp_path / str(len(found))
        result = fit(model, loader(), every=1, log=log, checkpoint=path)
        found.append((state(model), result.rows, path.read_bytes()))
    assert_same(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_a_run_that_goes_on_tells_what_is_new(tmp_path):
    whole, log = fit(wrapped()), Log()
    interrupted(wrapped(), tmp_path / "search.checkpoint")
    result = fit(wrapped(), checkpoint=tmp_path / "search.checkpoint", log=log)
    assert result.resumed_at == 10
    assert log.curve("train_loss") == {step: v for step, v in rows(whole, "train_loss").items() if step > 10}


def test_an_error_of_it_ends_the_run_which_can_go_on(tmp_path):
    def full(numbers, step):
        if step == 12:
            raise OSError("no space left")

    path, model = tmp_path / "search.checkpoint", wrapped()
    with pytest.raises(RuntimeError, match=r"^tiny: log raised OSError at step 12: no space left$") as caught:
        fit(model, checkpoint=path, save_every=4, log=full, name="tiny")
    assert isinstance(caught.value.__cause__, OSError)
    whole = wrapped()
    fit(whole)
    model = wrapped()
    assert fit(model, checkpoint=path).resumed_at == 12  # stored before the tracker is called
    assert_same(state(model), state(whole))


@pytest.mark.parametrize("recorder", [None, Replayer], ids=["device", "recording"])
def test_it_is_called_between_steps_of_a_device(by_device, recorder):
    by_device(recorder() if recorder else None)
    log = Log()
    result = fit(wrapped(), log=log)
    assert log.curve("train_loss") == rows(result, "train_loss")
    assert all(type(value) is float for _, numbers in log for value in numbers.values())


@one_case
@pytest.mark.parametrize("log", [3, lambda numbers: None, "wandb"])
def test_what_cannot_be_called_is_refused(log):
    with pytest.raises(ValueError, match=r"^log=.*: must be a function \(numbers by name, steps done\)"):
        slth.fit(net(), None, None, 1, log=log)


def test_tensorboard_holds_the_curves(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard.SummaryWriter(tmp_path) as writer:
        result = fit(wrapped(), log=lambda numbers, step: [writer.add_scalar(*one, step) for one in numbers.items()])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"train_loss", "lr", "keep", "steps_per_s", "error"} <= {*events.Tags()["scalars"]}
    shown = {event.step: event.value for event in events.Scalars("error")}
    assert shown == pytest.approx(rows(result, "error"))
