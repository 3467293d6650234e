"""Encode masks: as one bit per entry, or by an entropy coder, which is shorter if few or most entries are kept.

The entropy coder is a range coder (Martin 1979) of two symbols. Masks are cut into chunks, each coded separately with
its own share of ones, so that all cores can work. The coder uses integers only: it gives the same bytes on any machine.

The coded bytes are a table of two little-endian uint32 per chunk (its number of ones, its number of bytes), then the
bytes of the chunks in order. A chunk whose bits are all equal takes no bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from slth.threads import in_parallel

CHUNK = 1 << 20  # bits coded together
_SLACK = 16  # bytes that a coded chunk may take in excess of one bit per entry

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# ---------------------------------------------------------------- one bit per entry


def pack(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pack masks (bool, any shapes), flattened and concatenated, to uint8 (ceil(bits / 8),).

    The lowest index is the lowest bit; the last byte is padded with zeros. Raises ValueError for other dtypes.

    >>> pack([torch.tensor([True, False, True]), torch.tensor([True])]).tolist()
    [13]
    """
    flat = _flat(masks)
    if any(mask.size % 8 for mask in flat):
        flat = [np.concatenate(flat)]
    return torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *(np.packbits(m, bitorder="little") for m in flat)]))


def unpack(packed: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Unpack the result of :func:`pack` to flat masks (bool) of the given sizes.

    Raises ValueError unless packed is uint8, has exactly the length that these sizes need, and is padded with zeros.
    """
    data, total = _as_bytes(packed), _total(sizes)
    if data.size != -(-total // 8):
        raise ValueError(f"{data.size} bytes: must be {-(-total // 8)} for {total} bits")
    if total % 8 and data[-1] >> (total % 8):
        raise ValueError(f"bits set behind the last of {total}: must be zeros")
    return _split(np.unpackbits(data, count=total, bitorder="little").view(np.bool_), sizes)


# ---------------------------------------------------------------- entropy coder


def encode(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Encode masks (bool, any shapes) with the entropy coder, as uint8 (bytes,).

    This takes about n H(ones / n) bits for each chunk of n <= CHUNK entries. Raises ValueError for other dtypes.
    """
    flat = _flat(masks)
    chunks = [mask[start:stop] for mask in flat for start, stop in _chunks(mask.size)]
    table = np.zeros((len(chunks), 2), "<u4")
    coded = [np.empty(0, np.uint8)] * len(chunks)

    def work(which: slice) -> None:
        for i in range(which.start, which.stop):
            ones = np.count_nonzero(chunks[i])
            coded[i] = _encode(chunks[i], ones)
            table[i] = ones, coded[i].size

    in_parallel(work, len(chunks))
    return torch.from_numpy(np.concatenate([table.reshape(-1).view(np.uint8), *coded]))


def decode(coded: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Decode the result of :func:`encode` to flat masks (bool) of the given sizes.

    Raises ValueError unless coded is uint8 and a possible result for these sizes. Damaged bytes may also give wrong
    masks, of the right sizes and with the right number of ones per chunk: this needs a checksum to detect.
    """
    data, total = _as_bytes(coded), _total(sizes)
    count = sum(-(-size // CHUNK) for size in sizes)
    if data.size < 8 * count:
        raise ValueError(f"{data.size} bytes: must be at least {8 * count} for masks of {total} bits")
    table, body = data[: 8 * count].view("<u4").reshape(count, 2).astype(np.int64), data[8 * count :]
    if table[:, 1].sum() != body.size:
        raise ValueError(f"{body.size} bytes of chunks: must be {table[:, 1].sum()}")
    bits = np.empty(total, np.bool_)
    chunks = _cut(bits, sizes)
    ends = np.cumsum(table[:, 1])

    def work(which: slice) -> None:
        for i in range(which.start, which.stop):
            ones, length = table[i]
            if ones > chunks[i].size or (length == 0) != (ones in (0, chunks[i].size)):
                raise ValueError(f"chunk {i}: {ones} ones of {chunks[i].size} bits in {length} bytes cannot be")
            _decode(body[ends[i] - length : ends[i]], ones, chunks[i])
            if np.count_nonzero(chunks[i]) != ones:
                raise ValueError(f"chunk {i}: damaged, its bits are not the {ones} ones that it should hold")

    in_parallel(work, count)
    return _split(bits, sizes)


# The coder's state is an interval [low, low + span) of 64 bits, shifted up by 16 whenever span falls below 2^48. Its
# lower part, in proportion to the share of ones (in units of 2^-32), codes a one. Share >= 2^-20, as chunks are short.
_32, _48 = np.uint64(32), np.uint64(48)
_LEAST = np.uint64(1 << 48)
_WHOLE = np.uint64((1 << 64) - 1)


@njit(cache=True, nogil=True)
def _encode(bits, ones):  # type: ignore[no-untyped-def]  # pragma: no cover
    if ones == 0 or ones == bits.size:
        return np.empty(0, np.uint8)
    share = (np.uint64(ones) << _32) // np.uint64(bits.size)
    out = np.empty(bits.size // 8 + _SLACK, np.uint8)
    low, span, at = np.uint64(0), _WHOLE, 0
    for bit in bits:
        bound = (span >> _32) * share
        rise = bound * np.uint64(not bit)  # no branch, as the bit is unpredictable
        low += rise
        span = bound if bit else span - bound
        if low < rise:
            _carry(out, at)
        while span < _LEAST:
            at = _put(out, at, low)
            low <<= np.uint64(16)
            span <<= np.uint64(16)
    last = low + (_LEAST - np.uint64(1))  # its first 16 bits, followed by zeros, are in the interval
    if last < low:
        _carry(out, at)
    at = _put(out, at, last)
    while out[at - 1] == 0:  # the decoder appends zeros; some byte is not 0, as not all bits of the mask are ones
        at -= 1
    return out[:at].copy()


@njit(cache=True, nogil=True)
def _put(out, at, low):  # type: ignore[no-untyped-def]  # pragma: no cover
    out[at] = low >> np.uint64(56)
    out[at + 1] = (low >> _48) & np.uint64(255)
    return at + 2


@njit(cache=True, nogil=True)
def _carry(out, at):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add one to the number written so far; this cannot overflow, as the first interval is the whole range."""
    at -= 1
    while out[at] == 255:
        out[at] = 0
        at -= 1
    out[at] += 1


@njit(cache=True, nogil=True)
def _decode(coded, ones, bits):  # type: ignore[no-untyped-def]  # pragma: no cover
    if ones == 0 or ones == bits.size:
        bits[:] = ones > 0
        return
    share = (np.uint64(ones) << _32) // np.uint64(bits.size)
    code, span, at = np.uint64(0), _WHOLE, 0
    for _ in range(4):
        code = (code << np.uint64(16)) | _next(coded, at)
        at += 2
    for i in range(bits.size):
        bound = (span >> _32) * share
        bits[i] = code < bound
        if code < bound:
            span = bound
        else:
            code -= bound
            span -= bound
        while span < _LEAST:
            code = (code << np.uint64(16)) | _next(coded, at)
            span <<= np.uint64(16)
            at += 2


@njit(cache=True, nogil=True)
def _next(coded, at):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The next two bytes as a number, with zeros after the end."""
    high = coded[at] if at < coded.size else np.uint8(0)
    low = coded[at + 1] if at + 1 < coded.size else np.uint8(0)
    return (np.uint64(high) << np.uint64(8)) | np.uint64(low)


# ---------------------------------------------------------------- shapes


def _flat(masks: Sequence[torch.Tensor]) -> list[Bools]:
    for mask in masks:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask of {mask.dtype}: must be torch.bool")
    return [mask.detach().cpu().reshape(-1).numpy() for mask in masks]


def _as_bytes(tensor: torch.Tensor) -> Bytes:
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError(f"bits of {tensor.dtype}, shape {tuple(tensor.shape)}: must be torch.uint8 with one axis")
    out: Bytes = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return out


def _total(sizes: Sequence[int]) -> int:
    if bad := [size for size in sizes if isinstance(size, bool) or not isinstance(size, int) or size < 0]:
        raise ValueError(f"size {bad[0]!r}: must be an int >= 0")
    return sum(sizes)


def _chunks(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]


def _cut(bits: Bools, sizes: Sequence[int]) -> list[Bools]:
    """The chunks, as views, of concatenated masks of these sizes."""
    offsets = np.cumsum([0, *sizes]).tolist()
    return [
        bits[offset + start : offset + stop]
        for offset, size in zip(offsets, sizes, strict=False)
        for start, stop in _chunks(size)
    ]


def _split(bits: Bools, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Split concatenated masks, each with its own memory."""
    offsets = np.cumsum([0, *sizes]).tolist()
    return [torch.from_numpy(bits[a:b].copy()) for a, b in itertools.pairwise(offsets)]
