"""Sealed files: written atomically (`slth.disk`) and protected by a checksum against any changed bit.

A sealed file is an ordinary safetensors file, so reading it executes no code. Besides its tensors it holds a manifest
(JSON, compressed, stored as a tensor of bytes) and, in the metadata of the header, a stamp: the kind of file, its
version and the SHA-256 of all bytes of the file, header included, except the digest itself.
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
MANIFEST_LIMIT = 1 << 24  # bytes of JSON, so that a small file cannot decompress to a huge one
_RESERVED = (MANIFEST, "__metadata__")
_KIND = re.compile(r"[a-z]+")
_STAMP = re.compile(rb'.{8}\{"__metadata__":\{"slth":"([a-z]+) ([0-9]{1,9}) ([0-9a-f]{64})"\}', re.DOTALL)
_END = re.compile(rb'"data_offsets":\[[0-9]+,([0-9]{1,18})\]')


class FileError(ValueError):
    """A file is of the wrong kind or version, or damaged; the message says which."""


# ---------------------------------------------------------------- sealed bytes


def seal(kind: str, version: int, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, Any]) -> bytes:
    """Encode tensors and a manifest as the bytes of one sealed file.

    Equal arguments give equal bytes, for the same version of zlib.

    Args:
        kind: a word of lower-case letters.
        version: an int in [0, 10^9).
        tensors: of any shape, device and dtype that safetensors supports; no two may share memory.
        manifest: JSON types, with text keys and finite numbers, at most MANIFEST_LIMIT bytes of JSON. Its keys are
            sorted: an order that matters belongs in a list.

    Raises:
        ValueError: if an argument is not as above.
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
    """Decode the bytes of a sealed file. Returns (tensors on the CPU, manifest).

    Safe on untrusted bytes. Raises FileError, with the reason, for bytes that are no sealed file, truncated, of
    another kind, of a version not in `versions` or damaged, and for a manifest that :func:`seal` would not write.
    """
    tensors = _tensors(data)
    stamp = _STAMP.match(data)
    if stamp is None:
        raise FileError("a safetensors file, but not one of slth")
    actual, version = stamp[1].decode(), int(stamp[2])
    if actual != kind:
        raise FileError(f"a file of kind {actual!r}: must be {kind!r}")
    if version not in versions:
        known = ", ".join(str(v) for v in sorted(versions))
        raise FileError(f"version {version} of kind {kind!r}: must be {known}, which this slth knows")
    if _digest(data, stamp) != stamp[3]:
        raise FileError("damaged: its content does not match its checksum")
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
    """Write a sealed file. Raises ValueError as :func:`seal` does and OSError as :func:`write` does."""
    write(path, seal(kind, version, tensors, manifest))


def read(
    path: str | os.PathLike[str], kind: str, versions: Collection[int]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a sealed file. Raises FileError, with the path, as :func:`unseal` does, and OSError if it is unreadable."""
    data = Path(path).read_bytes()
    try:
        return unseal(data, kind, versions)
    except FileError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from error


# ---------------------------------------------------------------- stamp


def _stamped(blank: bytes) -> bytes:
    """Replace the blank digest in a file by the digest of all other bytes."""
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
    except Exception as error:  # arbitrary bytes may raise any type in safetensors and torch
        reason = (str(error) or type(error).__name__).splitlines()[0]  # torch appends its own stack trace
        raise FileError(_why_unreadable(data, reason)) from error
    return tensors


def _why_unreadable(data: bytes, reason: str) -> str:
    if not _STAMP.match(data):
        return f"not a safetensors file, or cut short at its very beginning ({len(data)} bytes): {reason}"
    body = 8 + int.from_bytes(data[:8], "little")
    if len(data) < body:
        return f"cut short or damaged: {len(data)} bytes, its header alone has {body}"
    size = body + max((int(end) for end in _END.findall(data[:body])), default=0)
    if len(data) < size:
        return f"cut short or damaged: {len(data)} bytes of {size}"
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
