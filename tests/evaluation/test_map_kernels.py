"""Compiled decoding and counting: equal to the plain functions, and silent about what is not
theirs.
"""

import io
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pfpn_tf.evaluation import coco_format, panoptic_quality, score_files

pytest.importorskip("numba")
pytest.importorskip("deflate")

from pfpn_tf.evaluation import map_kernels  # noqa: E402

SIZES = [(1, 1), (1, 50), (50, 1), (33, 47), (64, 128), (7, 15), (20, 16)]


def random_ids(rng, hw, kind):
    """[h, w] uint32: noise, blobs with ids of 24 bits, blobs whose ids differ in a byte, or one
    id.
    """
    if kind == "noise":
        return rng.integers(0, 2**24, hw).astype(np.uint32)
    if kind == "one id":
        return np.full(hw, 2**24 - 1, np.uint32)
    palette = {
        "blobs": rng.integers(0, 2**24, 9),
        "near": np.array([0, 1, 2, 1 << 8, 255, 65535, 65536, 2**24 - 1, 2**24 - 2]),
    }[kind]
    y, x = np.mgrid[: hw[0], : hw[1]]
    waves = sum(np.sin(y / rng.uniform(2, 9) + x / rng.uniform(-9, 9)) for _ in range(3))
    return palette[np.clip(((waves + 3) * 1.5).astype(int), 0, 8)].astype(np.uint32)


def rgb_of(ids):
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(hw, filtered, header=b"\x08\x02\x00\x00\x00", split=1, extra=b""):
    """A PNG of bytes that are filtered already; `split`: number of IDAT chunks."""
    data = zlib.compress(filtered)
    parts = [data[i * len(data) // split : (i + 1) * len(data) // split] for i in range(split)]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">II", hw[1], hw[0]) + header)
        + extra
        + b"".join(chunk(b"IDAT", part) for part in parts)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("kinds", ["0", "1", "2", "3", "4", "01234"])
@pytest.mark.parametrize("share", [0.0, 0.03, 1.0])
def test_every_filter_as_opencv(hw, kinds, share):
    """Any bytes are the result of some filter; few that are not 0 as in a real map."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        rows = rng.integers(0, 256, (hw[0], 1 + 3 * hw[1])).astype(np.uint8)
        rows[rng.random(rows.shape) >= share] = 0
        rows[:, 0] = rng.choice([int(k) for k in kinds], hw[0])
        png = png_of(hw, rows.tobytes(), split=3)
        ids = map_kernels.decode(png)
        assert ids.dtype == np.uint32
        np.testing.assert_array_equal(ids, coco_format.decode_panoptic_png(png, "map"))


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("kind", ["noise", "blobs", "near", "one id"])
def test_maps_written_by_others(hw, kind):
    rng = np.random.default_rng(1)
    for _ in range(5):
        ids = random_ids(rng, hw, kind)
        pillow = io.BytesIO()
        Image.fromarray(rgb_of(ids)).save(pillow, "PNG")
        opencv = cv2.imencode(".png", rgb_of(ids)[..., ::-1])[1].tobytes()
        for png in (pillow.getvalue(), opencv, coco_format.encode_panoptic_png(ids)):
            np.testing.assert_array_equal(map_kernels.decode(png), ids)


@pytest.mark.parametrize("hw", [*SIZES, (300, 500)])
@pytest.mark.parametrize("kinds", [("blobs", "near"), ("noise", "one id"), ("noise", "noise")])
def test_overlaps(hw, kinds):
    """Up to 150,000 pairs, hence several sizes of the table."""
    rng = np.random.default_rng(2)
    maps = [random_ids(rng, hw, kind) for kind in kinds]
    for ours, expected in zip(map_kernels.overlaps(*maps), panoptic_quality.overlaps(*maps)):
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)


def damaged():
    """name -> bytes that are not a plain, intact panoptic PNG."""
    rng = np.random.default_rng(3)
    hw = (20, 30)
    rows = np.zeros((20, 91), np.uint8)
    rows[:, 1:] = rng.integers(0, 256, (20, 90))
    plain = png_of(hw, rows.tobytes())
    unknown_filter = rows.copy()
    unknown_filter[11, 0] = 5
    idat = plain.index(b"IDAT")
    files = {
        "empty": b"",
        "signature only": plain[:8],
        "header only": plain[:33],
        "no end": plain[:-12],
        "cut in the end": plain[:-1],
        "cut in the data": plain[: len(plain) // 2],
        "wrong header checksum": plain[:30] + bytes([plain[30] ^ 1]) + plain[31:],
        "wrong data": plain[: idat + 40] + bytes([plain[idat + 40] ^ 1]) + plain[idat + 41 :],
        "unknown filter": png_of(hw, unknown_filter.tobytes()),
        "too few rows": png_of((21, 30), rows.tobytes()),
        "too many rows": png_of((19, 30), rows.tobytes()),
        "no pixels": png_of((0, 30), b""),
        "absurd size": png_of((2**31 - 1, 2**31 - 1), rows.tobytes()),
        "interlaced": png_of(hw, rows.tobytes(), header=b"\x08\x02\x00\x00\x01"),
        "unknown compression": png_of(hw, rows.tobytes(), header=b"\x08\x02\x01\x00\x00"),
        "another chunk": png_of(hw, rows.tobytes(), extra=chunk(b"gAMA", struct.pack(">I", 45455))),
        "not a PNG": b"\xff\xd8\xff\xe0" + plain[4:],
    }
    for mode in ("L", "LA", "P", "RGBA", "1", "I;16"):
        file = io.BytesIO()
        Image.fromarray(np.zeros(hw, np.uint8)).convert(mode).save(file, "PNG")
        files[f"mode {mode}"] = file.getvalue()
    return files


@pytest.mark.parametrize("name", list(damaged()))
def test_leaves_the_rest_to_the_plain_decoder(name):
    """And whatever that says, score_files says."""
    png = damaged()[name]
    assert map_kernels.decode(png) is None

    def outcome(decode):
        try:
            return decode(png, "map").tolist()
        except ValueError as error:
            return str(error)

    assert outcome(score_files._decode_compiled) == outcome(coco_format.decode_panoptic_png)


def write_scene(folder, hw=(40, 60), pred_hw=None):
    rng = np.random.default_rng(4)
    for name in ("gt", "pred"):
        (folder / name).mkdir()
        content = {"categories": [{"id": 1, "isthing": 1}, {"id": 2, "isthing": 0}]}
        content["annotations"] = []
        for i in range(12):
            ids = random_ids(np.random.default_rng(i), hw, "blobs")
            if name == "pred":
                ids = np.roll(ids, 1, 1)
                ids = ids if pred_hw is None else ids[: pred_hw[0], : pred_hw[1]]
            found = zip(*(a.tolist() for a in np.unique(ids, return_counts=True)))
            segments = [
                {"id": k, "category_id": 1 + k % 2, "area": n, "iscrowd": 0} for k, n in found if k
            ]
            # An alpha channel now and then: not decoded by the compiled loops, but scored.
            pixels = rgb_of(ids)
            if rng.random() < 0.3:
                pixels = np.dstack([pixels, np.full(ids.shape, 255, np.uint8)])
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
            content["annotations"].append(
                {"image_id": i, "file_name": f"{i}.png", "segments_info": segments}
            )
        (folder / f"{name}.json").write_text(json.dumps(content))
    return [str(folder / name) for name in ("gt.json", "gt", "pred.json", "pred")]


def test_scores_are_the_same(tmp_path, monkeypatch):
    files = write_scene(tmp_path)
    expected = score_files.score_panoptic(*files, semantic=True)
    rows = expected["panoptic"]["per_class"].values()
    assert all(sum(row[k] for row in rows) > 10 for k in ("tp", "fp", "fn"))
    monkeypatch.setattr(score_files, "_MIN_IMAGES_COMPILED", 1)
    monkeypatch.setattr(score_files, "_MIN_IMAGES_PER_PROCESS", 4)
    monkeypatch.setattr(score_files, "_IMAGES_PER_JOB", 4)
    for num_processes in (1, 3):
        found = score_files.score_panoptic(*files, semantic=True, num_processes=num_processes)
        assert found == expected


def test_size_error_is_the_same(tmp_path, monkeypatch):
    files = write_scene(tmp_path, pred_hw=(40, 59))
    messages = []
    for minimum in (1000, 1):
        monkeypatch.setattr(score_files, "_MIN_IMAGES_COMPILED", minimum)
        with pytest.raises(ValueError, match="is 40 x 59 .*is 40 x 60") as error:
            score_files.score_panoptic(*files)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_scores_without_the_packages(tmp_path, monkeypatch):
    files = write_scene(tmp_path)
    expected = score_files.score_panoptic(*files)
    monkeypatch.setattr(score_files, "_MIN_IMAGES_COMPILED", 1)
    monkeypatch.setattr(score_files, "_map_kernels", lambda: None)
    assert score_files.score_panoptic(*files) == expected
