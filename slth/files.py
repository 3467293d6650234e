"""Sealed files: written whole or not at all (`slth.disk`), and no bit changed unnoticed.

A sealed file is an ordinary safetensors file, so nothing in it is ever executed. Beside its tensors it holds a manifest
(JSON, compressed, as a tensor of bytes) and one stamp in the header's metadata: kind, version and the SHA-256 of every
byte of the file but those of the digest itself. The header is thereby hashed with the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from slth.disk import clear_leftovers, write

__all__ = ["FileError", "clear_leftovers", "read", "save", "seal", "unseal", "write"]

MANIFEST = "__manifest__"  # the tensor that holds the manifest
MANIFEST_LIMIT = 1 << 24  # bytes of JSON: a small file must not unfold into a large one
_RESERVED = (MANIFEST, "__metadata__")
_KIND = re.compile(r"[a-z]+")
_STAMP = re.compile(rb'.{8}\{"__metadata__":\{"slth":"([a-z]+) ([0-9]{1,9}) ([0-9a-f]{64})"\}', re.DOTALL)
_END = re.compile(rb'"data_offsets":\[[0-9]+,([0-9]{1,18})\]')


class FileError(ValueError):
    """The bytes are no file of the wanted kind, or not the ones that were written; the message has the reason."""


# ---------------------------------------------------------------- sealed bytes


def seal(kind: str, version: int, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, Any]) -> bytes:
    """One safetensors file as bytes, the same for equal arguments (and the same zlib).

    kind is a word of lower-case letters and version an int in [0, 10^9). Tensors may be of any shape, device and
    dtype that safetensors knows, none sharing memory with another. The manifest holds JSON's own types, finite
    numbers and text keys; its keys come back sorted, so an order that matters belongs in a list.

    Raises ValueError where an argument is none of these, or the manifest is over MANIFEST_LIMIT bytes of JSON.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind={kind!r}: must be a word of lower-case letters")
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 10**9:
        raise ValueError(f"version={version!r}: must be an int in [0, 10^9)")
    if taken := [name for name in _RESERVED if name in tensors]:
        raise ValueError(f"tensor {taken[0]!r}: a reserved name")
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    contents[MANIFEST] = _bytes_tensor(zlib.compress(_to_json(manifest), 9))
    try:
        blank = safetensors.torch.save(contents, {"slth": f"{kind} {version} {'0' * 64}"})
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"tensors that safetensors cannot hold: {error}") from error
    return _stamped(blank)


def unseal(data: bytes, kind: str, versions: Collection[int]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors on the CPU, manifest) of what :func:`seal` made of them, for any of the versions given.

    Safe on any bytes: raises FileError with the reason for what is no sealed file, cut short, of another kind or an
    unknown version, changed in any bit, or holds a manifest that seal would not write.
    """
    tensors = _tensors(data)
    stamp = _STAMP.match(data)
    if stamp is None:
        raise FileError("a safetensors file, but not one of slth")
    found, version = stamp[1].decode(), int(stamp[2])
    if found != kind:
        raise FileError(f"a file of kind {found!r}: must be {kind!r}")
    if version not in versions:
        known = ", ".join(str(v) for v in sorted(versions))
        raise FileError(f"version {version} of kind {kind!r}: must be {known}, which this slth knows")
    if _digest(data, stamp) != stamp[3]:
        raise FileError("damaged: a bit flipped, for its digest is not that of its content")
    if MANIFEST not in tensors:
        raise FileError(f"no manifest: there must be a tensor {MANIFEST!r}")
    return tensors, _manifest(tensors.pop(MANIFEST))


def save(
    path: str | os.PathLike[str],
    kind: str,
    version: int,
    tensors: Mapping[str, torch.Tensor],
    manifest: Mapping[str, Any],
) -> None:
    """Seal and write. Raises ValueError as :func:`seal` and OSError as :func:`write` do."""
    write(path, seal(kind, version, tensors, manifest))


def read(
    path: str | os.PathLike[str], kind: str, versions: Collection[int]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read and unseal. Raises FileError as :func:`unseal` does, with the path, and OSError where it cannot be read."""
    data = Path(path).read_bytes()
    try:
        return unseal(data, kind, versions)
    except FileError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from error


# ---------------------------------------------------------------- stamp


def _stamped(blank: bytes) -> bytes:
    """The file with the digest of all its other bytes in the place of the blank one."""
    stamp = _STAMP.match(blank)
    if stamp is None:
        raise AssertionError("safetensors no longer writes the metadata first")
    view = memoryview(blank)
    return b"".join((view[: stamp.start(3)], _digest(blank, stamp), view[stamp.end(3) :]))


def _digest(data: bytes, stamp: re.Match[bytes]) -> bytes:
    view = memoryview(data)
    digest = hashlib.sha256(view[: stamp.start(3)])
    digest.update(view[stamp.end(3) :])
    return digest.hexdigest().encode()


# ---------------------------------------------------------------- tensors


def _bytes_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _tensors(data: bytes) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except Exception as error:  # whatever safetensors and torch make of arbitrary bytes
        reason = (str(error) or type(error).__name__).splitlines()[0]  # torch goes on with frames of its own
        raise FileError(_why_unreadable(data, reason)) from error
    return tensors


def _why_unreadable(data: bytes, reason: str) -> str:
    if not _STAMP.match(data):
        return f"not a safetensors file, or cut short at its very beginning ({len(data)} bytes): {reason}"
    body = 8 + int.from_bytes(data[:8], "little")
    if len(data) < body:
        return f"cut short or damaged: {len(data)} bytes, its header alone has {body}"
    whole = body + max((int(end) for end in _END.findall(data[:body])), default=0)
    if len(data) < whole:
        return f"cut short or damaged: {len(data)} bytes of {whole}"
    return f"damaged: {reason}"


# ---------------------------------------------------------------- manifest


def _to_json(manifest: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(dict(manifest), allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"manifest: must be JSON: {error}") from error
    if len(text) > MANIFEST_LIMIT:
        raise ValueError(f"manifest: {len(text)} bytes of JSON, must be at most {MANIFEST_LIMIT}")
    return text.encode()


def _manifest(packed: torch.Tensor) -> dict[str, Any]:
    if packed.dtype != torch.uint8:
        raise FileError(f"manifest of {packed.dtype}: must be bytes")
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed.numpy().tobytes(), MANIFEST_LIMIT + 1)
    except zlib.error as error:
        raise FileError(f"manifest: cannot be decompressed: {error}") from error
    if len(text) > MANIFEST_LIMIT:
        raise FileError(f"manifest: over {MANIFEST_LIMIT} bytes of JSON when decompressed")
    if not unpacker.eof or unpacker.unused_data:
        raise FileError("manifest: its compressed bytes end too soon or too late")
    try:
        manifest = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FileError(f"manifest: not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise FileError(f"manifest: JSON of a {type(manifest).__name__}, must be an object")
    return manifest


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
