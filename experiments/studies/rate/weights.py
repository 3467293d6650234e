"""Matrices to code: Gaussian ones, and those of a checkpoint, read without executing code in it."""

from __future__ import annotations

import fnmatch
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from slth.construct.subset_sum import FloatArray
from slth.experiments.studies.checkpoints.reading import WHEEL, loaded
from slth.weights import inits

ENDINGS = (".safetensors", ".bin", ".pt", ".pth")


def gaussian(rows: int, columns: int, seed: int) -> FloatArray:
    """Draw normal weights (rows, columns) of variance 1."""
    matrix: FloatArray = inits.normal((rows, columns), 1.0, seed=seed, name="rate/gaussian").double().numpy()
    return matrix


def matrices(model: str, pattern: str, weights: int) -> dict[str, FloatArray]:
    """Read the matrices of a checkpoint whose names match a shell pattern, the first rows up to `weights` weights each.

    model: a weights file, a folder with one, or wheel:FILE for a wheel with one. Raises ValueError if there is none, or
    if no name matches.
    """
    named = {
        name: tensor
        for name, tensor in _tensors(model).items()
        if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.is_floating_point()
    }
    matching = {name: tensor for name, tensor in named.items() if fnmatch.fnmatch(name, pattern)}
    if not matching:
        raise ValueError(f"has no matrix of floats that matches {pattern!r}, but {', '.join(list(named)[:4])}")
    return {name: tensor[: max(1, weights // tensor.shape[1])].double().numpy() for name, tensor in matching.items()}


def _tensors(model: str) -> Mapping[str, object]:
    wheel = model.startswith(WHEEL)
    path = Path(model.removeprefix(WHEEL))
    if path.is_dir():
        path = next((file for end in ENDINGS for file in sorted(path.glob(f"*{end}"))), path)
    if not path.is_file():
        raise ValueError(f"must be a file, or a folder with a weights file ({', '.join(ENDINGS)})")
    try:
        name, data = _from_wheel(path) if wheel else (path.name, path.read_bytes())
        held = loaded(name, data)
    except Exception as error:  # errors of libraries for a file that is no checkpoint or contains code
        raise ValueError(f"cannot be read as weights ({type(error).__name__})") from error
    if not isinstance(held, Mapping):
        raise ValueError("holds no tensors by name")
    return held


def _from_wheel(path: Path) -> tuple[str, bytes]:
    """Return the largest weights file of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        inside = [entry for entry in wheel.infolist() if entry.filename.endswith(ENDINGS)]
        largest = max(inside, key=lambda entry: entry.file_size)
        return largest.filename, wheel.read(largest)
