"""Decoding and comparing panoptic maps in compiled loops; needs numba and deflate (extra `eval`).

A panoptic map is large areas of one id, and its PNG, once inflated, mostly zeros: "as predicted
from the neighbours". Both loops here look at several pixels at a time and touch single ones only
where something changes. Nothing here raises: what is not a plain, intact 8-bit RGB PNG is left to
`coco_format`, whose decoder takes every kind and says what is wrong.

The first import compiles, which takes seconds; numba keeps the result on disk.

Shapes: h, w image size · n pixels.
"""

import zlib
from typing import Optional

import deflate
import numba
import numpy as np

from pfpn_tf.evaluation.panoptic_quality import Overlaps

_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_PLAIN = b"\x08\x02\x00\x00\x00"  # 8 bits, truecolour, the one compression, filters, no interlace.
_MAX_BYTES = 1 << 28  # Of an inflated map; beyond, a wrong header is more likely than an image.
_BLOCK = 16  # Pixels looked at together.
_MIN_TABLE = 1 << 10


def _compiled(*signature):
    """Decorator: compiled; with a signature, at once. Other threads run meanwhile."""
    return numba.njit(*signature, cache=True, nogil=True)


def decode(png: bytes) -> Optional[np.ndarray]:
    """Segment ids of a panoptic PNG.

    Returns:
      [h, w] uint32; None for anything unusual: another kind of PNG, unknown chunks, damage.
    """
    if png[:16] != _START or png[24:29] != _PLAIN:
        return None
    width = int.from_bytes(png[16:20], "big")
    height = int.from_bytes(png[20:24], "big")
    num_bytes = height * (1 + 3 * width)
    compressed = _image_data(png)
    if compressed is None or not 0 < width * height <= num_bytes <= _MAX_BYTES:
        return None
    try:
        filtered = deflate.zlib_decompress(compressed, num_bytes)
    except deflate.DeflateError:
        return None
    if len(filtered) != num_bytes:
        return None
    rows = np.frombuffer(filtered, np.uint8).reshape(height, -1)
    ids = np.empty((height, width), np.uint32)
    if not _unfilter(rows, ids):
        return None
    return ids


def overlaps(gt_ids: np.ndarray, pred_ids: np.ndarray) -> Overlaps:
    """`panoptic_quality.overlaps`, faster.

    Args:
      gt_ids, pred_ids: [h, w] uint32 below 2**24, contiguous.
    """
    gt, pred = gt_ids.reshape(-1), pred_ids.reshape(-1)
    size = _MIN_TABLE
    while True:
        keys, pixels = np.zeros(size, np.int64), np.zeros(size, np.int64)
        if _count(gt, pred, keys, pixels):
            break
        size *= 8
    used = np.flatnonzero(keys)
    used = used[np.argsort(keys[used])]
    pairs = keys[used] - 1
    return Overlaps(pairs >> 24, pairs & 0xFFFFFF, pixels[used])


def _image_data(png):
    """The joined IDAT chunks; None unless the file is IHDR, IDATs and IEND, all intact."""
    position, parts = 8, []
    while True:
        length = int.from_bytes(png[position : position + 4], "big")
        end = position + 8 + length
        kind = png[position + 4 : position + 8]
        if zlib.crc32(png[position + 4 : end]) != int.from_bytes(png[end : end + 4], "big"):
            return None
        if len(png) < end + 4:  # Cut off, and the rest happened to fit.
            return None
        if kind == b"IDAT":
            parts.append(png[position + 8 : end])
        elif kind == b"IEND":
            return b"".join(parts)
        elif position != 8:
            return None
        position = end + 4


@_compiled()
def _add(a, b):
    """Sum of three bytes each, modulo 256."""
    low, high = np.uint32(0x7F7F7F), np.uint32(0x808080)
    return np.uint32(((a & low) + (b & low)) ^ ((a ^ b) & high))


@_compiled()
def _mean(a, b):
    """Mean of three bytes each, rounded down."""
    return np.uint32((a & b) + (((a ^ b) & 0xFEFEFE) >> 1))


@_compiled()
def _paeth(left, up, corner):
    """Of three bytes each, the neighbour nearest to left + up - corner: PNG's fourth filter."""
    if left == corner:
        return up
    if up == corner or left == up:
        return left
    result = 0
    for shift in (0, 8, 16):
        a, b, c = left >> shift & 255, up >> shift & 255, corner >> shift & 255
        to_left, to_up, to_corner = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        if to_left <= to_up and to_left <= to_corner:
            result |= a << shift
        elif to_up <= to_corner:
            result |= b << shift
        else:
            result |= c << shift
    return np.uint32(result)


@_compiled()
def _join(filtered, row):
    """Makes one number of the three bytes of each pixel: [1 + 3 w] uint8 to [w] uint32."""
    for x in range(len(row)):
        red, green, blue = filtered[3 * x + 1], filtered[3 * x + 2], filtered[3 * x + 3]
        row[x] = (
            np.uint32(red) | np.uint32(green) << np.uint32(8) | np.uint32(blue) << np.uint32(16)
        )


@_compiled()
def _undo_up(row, above):
    """Undoes a row's difference to the row above: [w] uint32."""
    for x in range(len(row)):
        row[x] = _add(above[x], row[x])


@_compiled()
def _undo_left(row):
    """Undoes a row's difference to the pixel on the left: [w] uint32."""
    left = np.uint32(0)
    whole = len(row) // _BLOCK
    for block in range(whole):
        changes = np.uint32(0)
        for k in range(_BLOCK):
            changes |= row[block * _BLOCK + k]
        if changes == 0:
            for k in range(_BLOCK):
                row[block * _BLOCK + k] = left
        else:
            for k in range(_BLOCK):
                left = _add(left, row[block * _BLOCK + k])
                row[block * _BLOCK + k] = left
    for x in range(whole * _BLOCK, len(row)):
        left = _add(left, row[x])
        row[x] = left


@_compiled()
def _undo_mean(row, above):
    """Undoes a row's difference to the mean of the neighbours to the left and above: [w] uint32."""
    left = np.uint32(0)
    for x in range(len(row)):
        left = _add(_mean(left, above[x]), row[x])
        row[x] = left


@_compiled()
def _undo_paeth(row, above):
    """Undoes a row's difference to the neighbour that the fourth filter chooses: [w] uint32."""
    left = corner = np.uint32(0)  # `corner` is above `left`.
    whole = len(row) // _BLOCK
    for block in range(whole):
        first = block * _BLOCK
        changes, differs = np.uint32(0), np.uint32(0)
        for k in range(_BLOCK):
            changes |= row[first + k]
            differs |= above[first + k] ^ corner
        if changes:
            for k in range(_BLOCK):
                up = above[first + k]
                left = _add(_paeth(left, up, corner), row[first + k])
                row[first + k] = left
                corner = up
        elif left == corner:  # Then the pixel above is the nearest, and remains it.
            for k in range(_BLOCK):
                row[first + k] = above[first + k]
            left = corner = above[first + _BLOCK - 1]
        elif differs == 0:  # Then the pixel on the left is.
            for k in range(_BLOCK):
                row[first + k] = left
        else:
            for k in range(_BLOCK):
                up = above[first + k]
                left = _paeth(left, up, corner)
                row[first + k] = left
                corner = up
    for x in range(whole * _BLOCK, len(row)):
        up = above[x]
        left = _add(_paeth(left, up, corner), row[x])
        row[x] = left
        corner = up


@_compiled(
    numba.boolean(numba.types.Array(numba.uint8, 2, "C", readonly=False), numba.uint32[:, ::1])
)
def _unfilter(rows, ids):
    """Undoes the filters of PNG.

    Args:
      rows: [h, 1 + 3 w] uint8, each row's filter and bytes.
      ids: [h, w] uint32, filled.

    Returns:
      Whether all filters were known.
    """
    nothing = np.zeros(ids.shape[1], np.uint32)
    for y in range(len(ids)):
        row, above = ids[y], nothing
        if y > 0:
            above = ids[y - 1]
        kind = rows[y, 0]
        _join(rows[y], row)
        if kind == 1:
            _undo_left(row)
        elif kind == 2:
            _undo_up(row, above)
        elif kind == 3:
            _undo_mean(row, above)
        elif kind == 4:
            _undo_paeth(row, above)
        elif kind != 0:
            return False
    return True


@_compiled()
def _add_run(gt_id, pred_id, length, keys, pixels):
    """Adds a run of equal pixels to the table of `_count`; 1 if the pair is new, else 0."""
    key = (np.int64(gt_id) << 24 | np.int64(pred_id)) + 1
    # The upper bits of a product with an odd number that has all kinds of bits.
    slot = (key * 0x1E3779B97F4A7C15 >> 32) & (len(keys) - 1)
    while keys[slot] != key and keys[slot] != 0:
        slot = (slot + 1) & (len(keys) - 1)
    new = keys[slot] == 0
    keys[slot] = key
    pixels[slot] += length
    return int(new)


@_compiled("boolean(uint32[::1], uint32[::1], int64[::1], int64[::1])")
def _count(gt, pred, keys, pixels):
    """Counts pairs in a hash table.

    Args:
      gt, pred: [n] uint32, n above 0.
      keys: zeros, a power of two of them; filled with pair + 1.
      pixels: zeros, as many; filled with counts.

    Returns:
      Whether the table was large enough.
    """
    room = len(keys) // 2
    start, gt_id, pred_id = 0, gt[0], pred[0]
    whole = len(gt) // _BLOCK
    for block in range(whole + 1):
        first = block * _BLOCK
        if block < whole:
            differs = np.uint32(0)
            for k in range(_BLOCK):
                differs |= (gt[first + k] ^ gt_id) | (pred[first + k] ^ pred_id)
            if differs == 0:
                continue
        for i in range(first, min(first + _BLOCK, len(gt))):
            if gt[i] != gt_id or pred[i] != pred_id:
                room -= _add_run(gt_id, pred_id, i - start, keys, pixels)
                if room < 0:
                    return False
                start, gt_id, pred_id = i, gt[i], pred[i]
    return room - _add_run(gt_id, pred_id, len(gt) - start, keys, pixels) >= 0
