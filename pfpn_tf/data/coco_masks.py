"""COCO's `segmentation`: the only place that reads, checks and writes polygons and RLE.

pycocotools trusts its input: RLE that does not cover the image leaves memory as it was, and
polygons far outside take it by the gigabyte. So all of them are checked here before it sees them.

Shapes: h, w image size · n runs of an RLE.
"""

from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from pfpn_tf.data.coco_json import DataError, number, shown, whole_number

_MAX_SIZES_OUTSIDE = 10  # of the image, that polygons may reach beyond it


def decode_mask(segmentation: Any, hw: Tuple[int, int], where: str) -> np.ndarray:
    """The pixels of polygons, or of RLE compressed or not.

    Args:
      segmentation: of a COCO annotation.
      hw: size of its image.
      where: opening of an error message: file and annotation.

    Returns:
      [h, w] uint8, 0 or 1.

    Raises:
      DataError: it is malformed, or does not fit the image.
    """
    if isinstance(segmentation, list) and segmentation:
        problem = next(filter(None, (polygon_problem(p, hw) for p in segmentation)), None)
        if problem:
            raise DataError(f"{where}: {problem}.")
        return _decode_polygons(segmentation, hw)
    if not isinstance(segmentation, dict):
        box = "" if segmentation else "; a box alone cannot train masks"
        raise DataError(
            f"{where}: the segmentation must be polygons or RLE, not {shown(segmentation)}{box}."
        )
    runs = rle_runs(segmentation, hw, where)
    values = np.arange(len(runs)) % 2  # The first run is of pixels outside the mask.
    columns = np.repeat(values.astype(np.uint8), runs)
    return np.ascontiguousarray(columns.reshape(hw[::-1]).T)  # [w, h] -> [h, w]


def good_polygons(segmentation: Any, hw: Tuple[int, int]) -> Any:
    """Of a list of polygons those without a fault, if there are any; else the segmentation."""
    if not isinstance(segmentation, list):
        return segmentation
    return [p for p in segmentation if polygon_problem(p, hw) is None] or segmentation


def polygon_problem(polygon: Any, hw: Tuple[int, int]) -> Optional[str]:
    """What is wrong with a polygon x1, y1, x2, y2, ...; None if nothing is."""
    if not isinstance(polygon, list):
        return f"a polygon must be a list of coordinates, not {shown(polygon)}"
    if any(isinstance(value, (list, dict)) for value in polygon):
        return f"a polygon must be x1, y1, x2, y2, ... in one list, not {shown(polygon)}"
    if len(polygon) < 6 or len(polygon) % 2:
        return f"a polygon needs at least three x, y pairs, one has {len(polygon)} coordinates"
    values = [number(v) for v in polygon]
    if None in values:
        return f"a polygon has the coordinate {shown(polygon[values.index(None)])}"
    for side, coordinates in zip(hw, (values[1::2], values[::2])):
        for value in coordinates:
            assert value is not None
            if not -_MAX_SIZES_OUTSIDE * side <= value <= (_MAX_SIZES_OUTSIDE + 1) * side:
                return (
                    f"a polygon has the coordinate {value:g}, more than {_MAX_SIZES_OUTSIDE} sizes"
                    f" outside the image of {hw[1]}x{hw[0]} (width x height)"
                )
    return None


def reaches_outside(segmentation: Any, hw: Tuple[int, int], tolerance_px: float) -> bool:
    """Whether checked polygons reach further than that outside the image. RLE cannot."""
    if isinstance(segmentation, dict):
        return False
    for polygon in segmentation:
        values = np.array([number(v) for v in polygon]).reshape(-1, 2)
        beyond = np.maximum(-values, values - (hw[1], hw[0]))
        if beyond.max() > tolerance_px:
            return True
    return False


def _decode_polygons(polygons, hw):
    from pycocotools import mask as mask_utils

    parts = mask_utils.frPyObjects([[float(v) for v in p] for p in polygons], *hw)
    return np.ascontiguousarray(mask_utils.decode(mask_utils.merge(parts)))


def rle_runs(rle: Dict[str, Any], hw: Tuple[int, int], where: str) -> np.ndarray:
    """The lengths of the runs of RLE, compressed or not.

    Args, Raises: as `decode_mask`.

    Returns:
      [n] int64, which add up to h w.
    """
    size, counts = rle.get("size"), rle.get("counts")
    sides = [whole_number(v) for v in size] if isinstance(size, (list, tuple)) else []
    if len(sides) != 2 or None in sides:
        raise DataError(f'{where}: the segmentation has no "size", height and width.')
    if tuple(sides) != tuple(hw):
        raise DataError(
            f"{where}: the mask has size {sides}, the image {list(hw)} (height, width)."
        )
    if isinstance(counts, (str, bytes)):
        text = counts if isinstance(counts, bytes) else counts.encode("utf-8", "surrogatepass")
        runs = _compressed_runs(text)
    else:
        whole = [whole_number(v) for v in counts] if isinstance(counts, list) else []
        fits = all(v is not None and 0 <= v <= hw[0] * hw[1] for v in whole)
        runs = np.array(whole, np.int64) if whole and fits else None
    if runs is None:
        raise DataError(f"{where}: the segmentation's counts are no RLE: {shown(counts)}.")
    if runs.size == 0 or runs.min() < 0 or runs.sum() != hw[0] * hw[1]:
        raise DataError(f"{where}: the segmentation's counts do not add up to its size {sides}.")
    return runs


def _compressed_runs(counts: bytes) -> Optional[np.ndarray]:
    """The runs of COCO's compressed RLE; None if it is none.

    Each character holds five bits of a number, low ones first, and whether more follow. From the
    fourth number on it is the difference to the number two before.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # Seven characters hold any run of an image.
        return None
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= ((codes[ends] & 16) != 0) * (np.int64(1) << (5 * lengths))  # Negative ones.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def encode_rle(mask: np.ndarray) -> Dict[str, Any]:
    """The compressed RLE of a mask [h, w] of 0 and 1, as JSON takes it."""
    from pycocotools import mask as mask_utils

    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode()}


def tight_xywh(mask: np.ndarray) -> Optional[List[int]]:
    """The smallest box x, y, width, height around the pixels of a mask; None if it has none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    y, x = int(rows[0]), int(columns[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
