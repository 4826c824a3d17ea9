"""The TFRecord format: feature keys, writing, parsing, and random access by an index.

The keys are those of the TF Object Detection API and the TF Model Garden where these have one,
with the same meaning; `image/object/class/label` is the dataset's own category id.

Shapes: N instances of one record (crowds included) · S panoptic segments.
"""

import hashlib
import os
import re
import struct
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.data.panoptic_png import encode_grey
from pfpn_tf.data.record import Record
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import matching

# key -> ([] for one value per record or None for a list, type)
FEATURES: Dict[str, Tuple[Optional[List[int]], tf.DType]] = {
    # The photo as stored: JPEG or PNG bytes, whose pixels are height x width.
    "image/height": ([], tf.int64),
    "image/width": ([], tf.int64),
    "image/source_id": ([], tf.string),  # the image id, as text
    "image/filename": ([], tf.string),
    "image/key/sha256": ([], tf.string),
    "image/format": ([], tf.string),
    "image/encoded": ([], tf.string),
    # Instances. Boxes in 0..1 as elsewhere; bbox_px holds the same as y1, x1, y2, x2 in pixels,
    # free of the rounding that a division brings. Masks are PNGs of the image's size, 0 and 1.
    "image/object/bbox/xmin": (None, tf.float32),
    "image/object/bbox/xmax": (None, tf.float32),
    "image/object/bbox/ymin": (None, tf.float32),
    "image/object/bbox/ymax": (None, tf.float32),
    "image/object/bbox_px": (None, tf.float32),
    "image/object/class/label": (None, tf.int64),
    "image/object/class/text": (None, tf.string),
    "image/object/is_crowd": (None, tf.int64),
    "image/object/area": (None, tf.float32),
    "image/object/id": (None, tf.int64),
    "image/object/mask": (None, tf.string),
    # One-channel PNG of category indices (categories.py), 255 void.
    "image/segmentation/class/encoded": ([], tf.string),
    "image/segmentation/class/format": ([], tf.string),
    # The panoptic PNG as it is, ids R + 256 G + 256^2 B, and its segments_info; bbox is x, y, w, h.
    # Of an image without annotations the PNG is empty, the one above all void.
    "image/panoptic/encoded": ([], tf.string),
    "image/panoptic/segment/id": (None, tf.int64),
    "image/panoptic/segment/category_id": (None, tf.int64),
    "image/panoptic/segment/area": (None, tf.int64),
    "image/panoptic/segment/bbox": (None, tf.float32),
    "image/panoptic/segment/iscrowd": (None, tf.int64),
}

# Written first, as a message of its own of less than 128 bytes, from which an index is read.
_HEAD = ("image/height", "image/width")


def encode_example(record: Record, info: DatasetInfo) -> bytes:
    """A serialized tf.train.Example with the keys of `FEATURES`."""
    h, w = record.hw
    instances, segments = record.instances, record.segments
    xywh = np.array([i.bbox_xywh for i in instances], np.float64).reshape(-1, 4)
    x1, y1 = xywh[:, 0], xywh[:, 1]
    x2, y2 = x1 + xywh[:, 2], y1 + xywh[:, 3]
    values = {
        "image/height": h,
        "image/width": w,
        "image/source_id": str(record.image_id),
        "image/filename": record.file_name,
        "image/key/sha256": hashlib.sha256(record.image_bytes).hexdigest(),
        "image/format": record.image_format,
        "image/encoded": record.image_bytes,
        "image/object/bbox/xmin": x1 / w,
        "image/object/bbox/xmax": x2 / w,
        "image/object/bbox/ymin": y1 / h,
        "image/object/bbox/ymax": y2 / h,
        "image/object/bbox_px": np.stack([y1, x1, y2, x2], -1).ravel(),
        "image/object/class/label": [i.category_id for i in instances],
        "image/object/class/text": [info.by_id[i.category_id].name for i in instances],
        "image/object/is_crowd": [int(i.iscrowd) for i in instances],
        "image/object/area": [i.area for i in instances],
        "image/object/id": [i.id for i in instances],
        "image/object/mask": [encode_grey(i.mask) for i in instances],
        "image/segmentation/class/encoded": encode_grey(record.category_map),
        "image/segmentation/class/format": "png",
        "image/panoptic/encoded": record.panoptic_png,
        "image/panoptic/segment/id": [s.id for s in segments],
        "image/panoptic/segment/category_id": [s.category_id for s in segments],
        "image/panoptic/segment/area": [int(s.area) for s in segments],
        "image/panoptic/segment/bbox": [v for s in segments for v in s.bbox_xywh],
        "image/panoptic/segment/iscrowd": [int(s.iscrowd) for s in segments],
    }
    assert values.keys() == FEATURES.keys()
    # A protobuf map has no order of its own, but messages may be concatenated: the head comes
    # first.
    parts = (
        tf.train.Features(feature={key: _feature(key, values[key]) for key in keys})
        for keys in (_HEAD, [key for key in FEATURES if key not in _HEAD])
    )
    return b"".join(
        tf.train.Example(features=part).SerializeToString(deterministic=True) for part in parts
    )


def decode_example(serialized: tf.Tensor) -> Dict[str, tf.Tensor]:
    """Parses one record; images stay encoded.

    Args:
      serialized: [] string.

    Returns:
      Every key of `FEATURES`: scalars, or [N] / [S] lists; `image/object/bbox_px` is [N, 4] yxyx
      pixels and `image/panoptic/segment/bbox` [S, 4] x, y, w, h.
    """
    parsed = tf.io.parse_single_example(
        serialized,
        {
            key: (
                tf.io.FixedLenFeature([], dtype)
                if shape == []
                else tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)
            )
            for key, (shape, dtype) in FEATURES.items()
        },
    )
    for key in ("image/object/bbox_px", "image/panoptic/segment/bbox"):
        parsed[key] = tf.reshape(parsed[key], [-1, 4])
    return parsed


class RecordIndex(NamedTuple):
    """Where the records of a split are, in file order.

    Attributes:
      files: paths.
      file_index: [n] int32 into `files`.
      offsets: [n] int64 byte offset in the file.
      hw: [n, 2] int32 image sizes.
    """

    files: List[str]
    file_index: np.ndarray
    offsets: np.ndarray
    hw: np.ndarray

    def __len__(self):
        return len(self.offsets)


def read_index(pattern: str, flag: str = "train_records") -> RecordIndex:
    """Finds every record of the files that match `pattern`, reading only their first bytes.

    Args:
      pattern: one glob, or several separated by commas.
      flag: the flag named in errors.

    Raises:
      UserError: nothing matches, a shard of a set is missing, or a file is no complete TFRecord.
    """
    files = matching_files(pattern, flag)
    file_index, offsets, sizes = [], [], []
    for i, path in enumerate(files):
        for offset, hw in _scan(path):
            file_index.append(i)
            offsets.append(offset)
            sizes.append(hw)
    if not offsets:
        raise UserError(f"--{flag}={pattern}: the files hold no record.")
    return RecordIndex(
        files,
        np.array(file_index, np.int32),
        np.array(offsets, np.int64),
        np.array(sizes, np.int32),
    )


def read_record(index: RecordIndex, position: tf.Tensor) -> tf.Tensor:
    """The serialized record at `position` ([] int), in graph: a seek, not a scan."""
    dataset = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.gather(index.files, tf.gather(index.file_index, position))[None],
        compression_type="",
        buffer_size=tf.constant(1 << 17, tf.int64),
        byte_offsets=tf.gather(index.offsets, position)[None],
    )
    dataset = tf.data.experimental.from_variant(dataset, tf.TensorSpec([], tf.string))
    return dataset.take(1).get_single_element()


def shard_path(prefix: str, shard: int, num_shards: int) -> str:
    return f"{prefix}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def matching_files(pattern: str, flag: str) -> List[str]:
    """The files that one glob or several, separated by commas, match.

    Raises:
      UserError: there is none, or a shard of a set is missing; names the flag.
    """
    files = []
    for part in filter(None, pattern.split(",")):
        found = _of_one_split(part, [f for f in matching(part) if os.path.isfile(f)])
        if not found:
            raise UserError(
                f"--{flag}={pattern}: no file matches {os.path.abspath(part)};"
                " tools/create_tfrecords.py writes such files."
            )
        files += found
    if not files:
        raise UserError(
            f"--{flag} is empty; give a glob of TFRecords, e.g. data/coco/train-*.tfrecord."
        )
    sets: Dict[Tuple[str, int], Set[int]] = {}
    for path in files:
        match = re.fullmatch(r"(.*)-(\d+)-of-(\d+)(\..*)?", path)
        if match:
            sets.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    prefixes = [prefix for prefix, _ in sets]
    twice = next((p for p in prefixes if prefixes.count(p) > 1), None)
    if twice:
        raise UserError(
            f"--{flag}={pattern}: {twice}-* are the shards of two conversions, of"
            f" {' and of '.join(str(count) for p, count in sets if p == twice)} shards; remove one."
        )
    for (prefix, count), shards in sets.items():
        missing = sorted(set(range(count)) - shards)
        if missing:
            raise UserError(
                f"--{flag}={pattern}: {len(missing)} of the {count} shards are missing, first "
                f"{shard_path(prefix, missing[0], count)}."
            )
    return files


def _of_one_split(pattern, files):
    """The files of split `train` for .../train-*, where that also matches those of train-small."""
    prefix = pattern.partition("*")[0]
    own = [f for f in files if re.fullmatch(r"-?\d+-of-\d+(\..*)?", f[len(prefix) :])]
    return own or files


def _scan(path):
    """Yields (offset, (height, width)) of each record of a TFRecord file."""
    size = os.path.getsize(path)
    offset = 0
    with open(path, "rb") as f:
        while offset < size:
            f.seek(offset)
            start = f.read(12 + 2 + 128)
            length = struct.unpack("<Q", start[:8])[0] if len(start) >= 12 else size
            end = offset + 12 + length + 4  # length and its checksum, the record, its checksum
            if end > size:
                raise UserError(
                    f"{path}: no TFRecord, or cut off at byte {size}: the record at {offset} ends"
                    f" at {end}."
                )
            hw = _parsed_hw(start[12 : 14 + start[13]]) if length > 1 else None
            if hw is None:  # Another tool's record, in an order of its own.
                f.seek(offset + 12)
                hw = _parsed_hw(f.read(length))
            if hw is None:
                raise UserError(
                    f"{path}: the record at {offset} is damaged or not tools/create_tfrecords.py's;"
                    " convert the split again."
                )
            yield offset, hw
            offset = end


def _parsed_hw(serialized):
    """Height and width of a record, or of the message at its head; None if it has none."""
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
        return tuple(feature[key].int64_list.value[0] for key in _HEAD)
    except (DecodeError, IndexError):
        return None


def _feature(key, value):
    shape, dtype = FEATURES[key]
    values = [value] if shape == [] else list(value)
    if dtype == tf.string:
        values = [v.encode() if isinstance(v, str) else v for v in values]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if dtype == tf.int64:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
