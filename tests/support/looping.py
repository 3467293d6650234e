"""A search in the loop that may be stopped, for the tests of `slth.fit` and of its checkpoints."""

import pytest
import regression
import torch
from regression import batches, evaluate, loss, wrapped
from torch.utils.data import DataLoader, Dataset

import slth
from slth.search import controls

STEPS, SAVE_EVERY = 24, 5


class Stopped(Exception):
    """What ends a run in the middle."""


class Noisy(Dataset):
    """Examples with noise from torch's own generator, as an augmentation would add it."""

    def __len__(self):
        return 90

    def __getitem__(self, index):
        return regression.INPUTS[index] + 0.01 * torch.randn(16), regression.OUTPUTS[index]


def loader():
    """Shuffled batches of 16, six an epoch, the last one smaller."""
    return DataLoader(Noisy(), batch_size=16, shuffle=True)


def fit(model, data=batches, steps=STEPS, loss=loss, **options):
    options = {"lr": 0.02, "progress": False, "evaluate": evaluate, "every": 7} | options
    return slth.fit(model, data, loss, steps, **options)


def until(step, data=batches):
    """Batches of a run that ends before a step."""

    def batch(number):
        if number == step:
            raise Stopped
        return data(number)

    return batch


def interrupted(model, path, step=13, **options):
    """Run up to a step, leaving the checkpoint of before."""
    with pytest.raises(Stopped):
        fit(model, until(step), checkpoint=path, save_every=SAVE_EVERY, **options)


def sparse():
    """Weights under a mask that stays."""
    model = wrapped()
    controls.train_weights(model)
    return model
