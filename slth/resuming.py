"""Sealed files from which work goes on, read only by what wrote them: one format for all that is resumed.

Each stores an identity (the settings and whatever else the content depends on) beside its content (`slth.files`). So a
file that was changed by accident, and one of other settings, are told apart, and the latter says in what it differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from slth import files

#: (tensors, manifest) of a file.
Content = tuple[dict[str, torch.Tensor], dict[str, Any]]


class Damaged(ValueError):
    """The bytes are not those that were written; `reason` says why, the message names the file too."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class Foreign(ValueError):
    """A whole file of another identity; `differences` has at least one line."""

    def __init__(self, path: Path, differences: list[str]) -> None:
        super().__init__(f"{path}: of other settings ({'; '.join(differences)})")
        self.differences = differences


class Identity(Protocol):
    """What a file's content depends on."""

    @property
    def digest(self) -> str:
        """One word for it all: the same for equal identities."""

    def to_json(self) -> dict[str, Any]:
        """The whole, as a file stores it."""

    def differences(self, other: Any) -> list[str]:
        """Say in what the identity of a file, as it was stored, differs from this one: empty if they are equal.

        other: what `to_json` gave, or None of a file that holds a digest alone. May raise any error if `other` is
        malformed.
        """


def save(
    path: Path,
    kind: str,
    version: int,
    identity: Identity,
    tensors: Mapping[str, torch.Tensor],
    manifest: Mapping[str, Any],
) -> None:
    """Write a file of this identity whole, or leave what was there. Raises as `slth.files.save` does."""
    own = {"identity": identity.digest, "began": identity.to_json()}
    files.save(path, kind, version, tensors, {**manifest, **own})


def read(path: Path, kind: str, version: int, identity: Identity) -> Content:
    """What :func:`save` wrote. Raises Damaged, or Foreign for another identity, and OSError where it cannot be read."""
    try:
        tensors, manifest = files.unseal(path.read_bytes(), kind, [version])
    except files.FileError as error:
        raise Damaged(path, str(error)) from error
    if manifest.get("identity") == identity.digest:
        return tensors, manifest
    try:
        differences = identity.differences(manifest.get("began"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(path, f"does not say what wrote it ({type(error).__name__}: {error})") from error
    if differences:
        raise Foreign(path, differences)
    return tensors, manifest
