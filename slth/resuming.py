"""Sealed files (`slth.files`) from which interrupted work resumes; one format for all of them.

Each file stores, besides its content, an identity: the settings and everything else the content depends on. So a
damaged file can be distinguished from one with other settings, and the error for the latter lists the differences.
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
    """A file was changed after it was written; `reason` says how, the message also names the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class Foreign(ValueError):
    """An intact file with another identity; `differences` lists at least one difference."""

    def __init__(self, path: Path, differences: list[str]) -> None:
        super().__init__(f"{path}: of other settings ({'; '.join(differences)})")
        self.differences = differences


class Identity(Protocol):
    """Everything on which a file's content depends."""

    @property
    def digest(self) -> str:
        """A hash of the identity, equal for equal identities."""

    def to_json(self) -> dict[str, Any]:
        """Convert the identity to JSON, for the file."""

    def differences(self, other: Any) -> list[str]:
        """List how the stored identity of a file differs from this one; empty if they are equal.

        other: the result of `to_json`, or None for a file that holds only a digest. May raise any error if `other`
        is malformed.
        """


def save(
    path: Path,
    kind: str,
    version: int,
    identity: Identity,
    tensors: Mapping[str, torch.Tensor],
    manifest: Mapping[str, Any],
) -> None:
    """Write a file with this identity atomically. Raises as `slth.files.save` does."""
    own = {"identity": identity.digest, "began": identity.to_json()}
    files.save(path, kind, version, tensors, {**manifest, **own})


def read(path: Path, kind: str, version: int, identity: Identity) -> Content:
    """Read a file that :func:`save` wrote.

    Raises Damaged for a damaged file, Foreign for one with another identity, and OSError if it cannot be read.
    """
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
