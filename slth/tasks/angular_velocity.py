"""The paper's synthetic task: predict the angular velocity of points on a circle.

Otsuka et al., arXiv 2511.04217, section 4.1 and appendix B.1: ``x_t = (cos(omega t + phase), sin(omega t + phase))``
for t = 0 .. T-1. A regression token, all zeros, comes first; the attention's output at this token should be omega. A
target is a single attention layer, trained by AdamW on 10,000 sequences. Wider inputs concatenate several such planes,
each with its own omega and phase.

At T=4 the paper's setting can hardly be learned (test MSE about 0.96 of the variance). Attention treats the points as a
set, without order, and the query of the zero token is zero, so all points have equal weights and the output is linear
in their mean. In the setting :data:`LEARNABLE` the test MSE is about 0.02 of the variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch.nn.functional import mse_loss
from torch.optim.adamw import adamw

from slth.attention import MultiHeadAttention
from slth.numbers import as_float, as_int, plain, plainly, put
from slth.threads import one_torch_thread
from slth.weights import inits

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Setting:
    """The distribution of the sequences. The defaults are the paper's.

    Attributes:
        omega_max: velocities are uniform on (-omega_max, omega_max) radians per step; in (0, pi].
        phase_max: phases are uniform on (0, phase_max) radians; in [0, 2 pi].
        token: the value of every coordinate of the regression token; finite.

    Raises:
        ValueError: a value is out of its range.
    """

    omega_max: float = math.pi
    phase_max: float = math.pi
    token: float = 0.0

    def __post_init__(self) -> None:
        put(self, **{name: plain(value) for name, value in vars(self).items()})
        if not 0 < self.omega_max <= math.pi:
            raise ValueError(f"omega_max={self.omega_max}: must lie in (0, pi]")
        if not 0 <= self.phase_max <= 2 * math.pi:
            raise ValueError(f"phase_max={self.phase_max}: must lie in [0, 2 pi]")
        if not math.isfinite(self.token):
            raise ValueError(f"token={self.token}: must be a finite number")


#: The setting of arXiv 2511.04217.
PAPER = Setting()

#: A setting that one head can learn at T=4, and only with its query: the four points span at most 3/4 of a half circle
#: and start at a known phase, and the regression token has the norm of the points, so that its query is not zero.
LEARNABLE = Setting(omega_max=math.pi / 4, phase_max=0.0, token=math.sqrt(0.5))


@dataclass(frozen=True)
class Training:
    """Hyperparameters for training a target by AdamW with a constant learning rate. The defaults are the paper's.

    Attributes:
        samples: sequences in each of the three splits, >= 1.
        epochs: passes over the training sequences, >= 0.
        batch: sequences per step, >= 1; the last step of an epoch has the remaining ones.
        lr: AdamW's learning rate, finite and > 0.
        weight_decay: AdamW's decoupled decay, finite and >= 0.

    Raises:
        ValueError: a value is out of its range.
    """

    samples: int = 10_000
    epochs: int = 25
    batch: int = 1024
    lr: float = 0.1
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        put(
            self,
            samples=as_int("samples", self.samples, 1),
            epochs=as_int("epochs", self.epochs, 0),
            batch=as_int("batch", self.batch, 1),
            lr=as_float("lr", self.lr, "(0, inf)"),
            weight_decay=as_float("weight_decay", self.weight_decay, "[0, inf)"),
        )


class Samples(NamedTuple):
    """Sequences and their angular velocities.

    Attributes:
        inputs: (count, T + 1, d_in), the regression token first. Points have norm sqrt(d_in / 2) if d_in is even.
        velocities: (count, planes) in radians per step, planes = d_in / 2, rounded up.
    """

    inputs: torch.Tensor
    velocities: torch.Tensor


@dataclass(frozen=True)
class Report:
    """Mean squared errors of a trained target in (radians per step)^2, and that of a constant prediction.

    Attributes:
        validation_mse, test_mse: on the validation and test sequences, after the last epoch.
        variance: variance of the test velocities, which is the error of the best constant prediction.
    """

    validation_mse: float
    test_mse: float
    variance: float


@plainly
def sample(
    count: int,
    length: int,
    d_in: int,
    *,
    seed: int,
    split: Split = "train",
    setting: Setting = PAPER,
    dtype: torch.dtype = torch.float64,
) -> Samples:
    """Draw sequences of the task.

    Sequence k is the same for every count and length: a larger count appends sequences, a larger length appends
    points. Splits and planes are independent of one another.

    Args:
        count: number of sequences, >= 1.
        length: T, the points after the regression token, >= 1.
        d_in: width, >= 1. An odd width is the next even one without its last coordinate. It is meant for random
            targets, since the last plane then has only the cosine to predict the velocity from.
        seed: any int.
        split: "train", "validation" or "test".
        setting: ranges of velocity and phase, and the regression token.
        dtype: dtype of inputs and velocities. Points are computed in float64 and then rounded.

    Raises:
        ValueError: an argument is out of its range.

    Source: arXiv 2511.04217, section 4.1 and appendix B.1.
    """
    for name, value in (("count", count), ("length", length), ("d_in", d_in)):
        as_int(name, value, 1)
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}: must be one of {', '.join(get_args(Split))}")

    def unit(role: str) -> torch.Tensor:  # (count, planes), uniform on (-1, 1)
        names = (f"angular_velocity/{split}/{role}/{plane}" for plane in range((d_in + 1) // 2))
        return torch.stack([inits.uniform((count,), 1.0, seed=seed, name=name) for name in names], dim=1).double()

    omega = setting.omega_max * unit("omega")
    phase = setting.phase_max * (unit("phase") + 1) / 2
    steps = torch.arange(length, dtype=torch.float64, device="cpu")[:, None]  # (T, 1)
    angles = omega[:, None] * steps + phase[:, None]  # (count, T, planes)
    points = torch.stack((angles.cos(), angles.sin()), dim=-1).flatten(-2)[..., :d_in]  # (count, T, d_in)
    token = torch.full((count, 1, d_in), setting.token, dtype=torch.float64, device="cpu")
    return Samples(torch.cat((token, points), dim=1).to(dtype), omega.to(dtype))


def predict(model: MultiHeadAttention, inputs: torch.Tensor) -> torch.Tensor:
    """Compute the model's output at the regression token: (count, T + 1, d_in) -> (count, d_out).

    It equals ``model(inputs)[:, 0]`` at 1 / (T + 1) of the cost.
    """
    qk, vo = model.merged()  # (heads, d_in, d_in), (heads, d_in, d_out)
    query = torch.einsum("bi,hij->bhj", inputs[:, 0], qk)
    weights = torch.softmax(query @ inputs.mT, dim=-1)  # (count, heads, T + 1)
    return torch.einsum("bhi,hio->bo", weights @ inputs, vo)


@plainly
def train_target(
    model: MultiHeadAttention,
    *,
    length: int,
    seed: int,
    setting: Setting = PAPER,
    training: Training = Training(),
) -> Report:
    """Train model in place on the task; the defaults are the paper's.

    It minimises the mean squared error at the regression token and reports the errors after the last epoch. It runs on
    one CPU thread in the model's dtype, whatever torch is set to, so that equal arguments give equal bits.

    Args:
        model: d_in even, d_out = d_in / 2.
        length: T, >= 1.
        seed: seed of the sequences and of their order; it does not affect the model's initial weights.
        setting: distribution of the sequences.
        training: number of sequences and hyperparameters.

    Raises:
        ValueError: length, d_in or d_out is out of its range, before anything is drawn.

    Source: arXiv 2511.04217, section 4.1 and appendix B.1.
    """
    as_int("length", length, 1)
    if model.d_in % 2:
        raise ValueError(f"d_in={model.d_in}: must be even for training, two coordinates a plane")
    if model.d_out != model.d_in // 2:
        raise ValueError(f"d_out={model.d_out}: must be d_in / 2 = {model.d_in // 2}, one velocity a plane")
    samples, batch = training.samples, training.batch
    train, validation, test = (
        sample(samples, length, model.d_in, seed=seed, split=split, setting=setting, dtype=model.query.dtype)
        for split in get_args(Split)
    )
    step = _adamw(list(model.parameters()), training)
    with one_torch_thread():
        for epoch in range(training.epochs):
            order = _shuffled(samples, seed, epoch)
            for start in range(0, samples, batch):
                rows = order[start : start + batch]
                step(mse_loss(predict(model, train.inputs[rows]), train.velocities[rows]))
        variance = test.velocities.var(dim=0, correction=0).mean().item()
        return Report(_mse(model, validation), _mse(model, test), variance)


def _adamw(weights: list[torch.nn.Parameter], training: Training) -> Callable[[torch.Tensor], None]:
    """Return a function that takes one AdamW step for a loss.

    torch.optim.AdamW takes the same steps, but imports torch's compiler, which takes longer than this whole training.
    """
    means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    counts = [torch.zeros((), device="cpu") for _ in weights]

    def step(loss: torch.Tensor) -> None:
        gradients = list(torch.autograd.grad(loss, weights))
        with torch.no_grad():
            adamw(
                list(weights),
                gradients,
                means,
                squares,
                [],
                counts,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=training.lr,
                weight_decay=training.weight_decay,
                eps=1e-8,
                maximize=False,
            )

    return step


def _shuffled(count: int, seed: int, epoch: int) -> torch.Tensor:
    """Draw a permutation of range(count), int64."""
    return inits.uniform((count,), 1.0, seed=seed, name="angular_velocity/order", stream=epoch).argsort(stable=True)


def _mse(model: MultiHeadAttention, samples: Samples) -> float:
    with torch.no_grad():
        return mse_loss(predict(model, samples.inputs), samples.velocities).item()
