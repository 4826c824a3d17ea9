"""Random damages of a small dataset's files: what is left is converted and scored.

Damage number n is the same every time. Each has to end in records that hold together or in a
`UserError` of one line, with nothing half-written and no growth of memory.
"""

import io
import json
import random
import shutil

import numpy as np
from PIL import Image

from pfpn_tf.data import coco_masks, convert
from pfpn_tf.evaluation import score_files
from pfpn_tf.utils import process
from pfpn_tf.utils.errors import UserError
from tests.data import exports, tiny

IMAGES = [(24, 36, [(5, 0, 2, 3, 9, 12), (20, 1, 10, 20, 15, 28)]), (16, 12, [(20, 0, 3, 2, 9, 9)])]
MAX_GROWTH_KIB = 400_000
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 0.5, 5.0, 255, 65536, 2**24, 2**31, 2**63, 2**70, -(2**40)),
    *(1e308, float("nan"), float("inf"), -float("inf"), "", "0", "1", "5.0", "-1", "nan", "²", "x"),
    *("a\\b", "../x", "a/b", "\0", "a\nb", "\ud800", "#102030", "9" * 400, "x" * 5000, [], {}),
    *(
        [[]],
        [1],
        [1, 2, 3, 4],
        ["1"] * 6,
        {"size": [24, 36]},
        {"size": [24, 36], "counts": "0" * 50},
    ),
    *([[1, 1, 9, 1, 9, 9]], [[1e9] * 6], [[0] * 6], {"size": [24, 36], "counts": [864]}),
]


def make(folder):
    """The dataset, with a polygon and both kinds of RLE in instances.json."""
    tiny.make(folder, IMAGES)
    dataset, path = tiny.open_dataset(folder, instances=True), folder / "instances.json"
    content = json.loads(path.read_text())
    _, crowd, last = content["annotations"]
    last["segmentation"] = coco_masks.encode_rle(dataset.read(1).instances[0].mask)
    mask = dataset.read(0).instances[1].mask
    crowd["segmentation"] = {"size": list(mask.shape), "counts": exports.runs(mask)}
    path.write_text(json.dumps(content))


def damage(folder, number):
    """Damages one to three things of the dataset in `folder`; says which."""
    rng = random.Random(number)
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice(["panoptic.json"] * 3 + ["instances.json"] * 3 + ["panoptic/0.png"] * 2)
        path = folder / name
        if name.endswith(".json") and rng.random() < 0.8:
            try:
                content = json.loads(path.read_bytes())
            except ValueError:  # Damaged before.
                continue
            done.append(f"{name}: {_damage_value(rng, content)}")
            path.write_text(json.dumps(content))
        elif name.endswith(".png") and rng.random() < 0.5:
            done.append(f"{name}: {_damage_image(rng, path)}")
        else:
            changed, what = _damage_bytes(rng, path.read_bytes())
            done.append(f"{name}: {what}")
            path.write_bytes(changed)
    return "; ".join(done)


def _damage_value(rng, content):
    """Changes one entry somewhere in a JSON value."""
    places = []

    def visit(node, path):
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key, path + [key]))
            if isinstance(node[key], (dict, list)):
                visit(node[key], path + [key])

    visit(content, [])
    node, key, path = rng.choice(places)
    kind = rng.choice(["set", "set", "set", "drop", "copy", "text"])
    if kind == "drop":
        del node[key]
    elif kind == "copy":
        other, at, _ = rng.choice(places)
        node[key] = json.loads(json.dumps(other[at]))
    elif kind == "text":
        node[key] = json.dumps(node[key])
    else:
        node[key] = rng.choice(VALUES)
    return f"{kind} {path}"


def _damage_image(rng, path):
    try:
        image = Image.open(path).convert("RGB")
    except Exception:  # Damaged before.
        return "nothing"
    kind = rng.choice(
        ["L", "P", "1", "RGBA", "LA", "CMYK", "webp", "bmp", "tiff", "size", "pixels"]
    )
    pixels = np.array(image)
    if kind == "pixels":
        y, x = rng.randrange(pixels.shape[0]), rng.randrange(pixels.shape[1])
        color = [rng.choice(values) for values in ([0, 1, 20], [0, 5], [0, 1])]
        pixels[y : y + 4, x : x + 4] = color
    elif kind == "size":
        pixels = np.pad(pixels, ((0, rng.randrange(3)), (1, 0), (0, 0)))
    file = io.BytesIO()
    suffix = kind if kind in ("webp", "bmp", "tiff") else "tiff" if kind == "CMYK" else "png"
    mode = kind if kind in ("L", "P", "1", "RGBA", "LA", "CMYK") else "RGB"
    Image.fromarray(pixels).convert(mode).save(file, suffix)
    path.write_bytes(file.getvalue())
    return kind


def _damage_bytes(rng, data):
    data = bytearray(data or b"\0")
    at = rng.randrange(len(data))
    kind = rng.choice(["flip", "cut", "insert", "header", "repeat", "empty"])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 5])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind == "header":
        data[16:24] = rng.choice(
            [rng.randbytes(8), b"\0\0\x7f\xff" * 2, b"\x7f\xff\xff\xff" * 2, bytes(8)]
        )
    elif kind == "repeat":
        data *= 2
    else:
        data.clear()
    return bytes(data), f"{kind} at {at}"


def outcome(folder, number):
    """Converts and scores the damaged dataset; "converted" or the errors, once they are checked."""
    rng = random.Random(-number)
    allow_mismatch, skip_bad = rng.random() < 0.5, rng.random() < 0.5
    output = folder / "out"
    errors = []

    def attempt(function):
        try:
            return function()
        except UserError as error:
            assert "\n" not in str(error) and 10 < len(str(error)) < 2000, repr(error)
            errors.append(str(error))

    dataset = attempt(
        lambda: tiny.open_dataset(folder, rng.choice([True, False]), allow_mismatch=allow_mismatch)
    )
    if dataset is not None:
        counts = attempt(
            lambda: convert.convert(dataset, str(output), "train", 1, 1, skip_bad=skip_bad)
        )
        left = sorted(p.name for p in output.glob("*"))
        names = ["dataset_info.json", "dataset_statistics.json", "train-00000-of-00001.tfrecord"]
        assert left == (names if counts else []), left
        for position in range(len(dataset)) if counts else ():
            record = attempt(lambda position=position: dataset.read(position, skip_bad))
            if record is not None:
                check(record, dataset.info)
    paths = [str(folder / name) for name in ("panoptic.json", "panoptic", "good.json", "good")]
    attempt(lambda: score_files.PanopticFiles(*paths).score(1))
    return errors or ["converted"]


def check(record, info):
    """What holds of every record."""
    height, width = record.hw
    assert record.category_map.shape == record.hw
    assert set(np.unique(record.category_map)) <= {*range(len(info.categories)), 255}
    for segment in record.segments:
        of_category = record.category_map == info.category_to_index[segment.category_id]
        assert 0 < segment.area <= np.count_nonzero(of_category)
    for instance in record.instances:
        assert instance.category_id in info.category_to_class_id and instance.iscrowd in (0, 1)
        assert instance.mask.shape == record.hw and set(np.unique(instance.mask)) <= {0, 1}
        pixels = np.count_nonzero(instance.mask)
        assert 0 < pixels and abs(instance.area - pixels) <= 20 + 0.5 * pixels
        rows, columns = np.flatnonzero(instance.mask.any(1)), np.flatnonzero(instance.mask.any(0))
        x, y, w, h = instance.bbox_xywh
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.subtract([x, y, x + w, y + h], tight)).max() <= 2 + 0.05 * max(record.hw)


def test_random_damages_end_in_records_or_one_clear_line(tmp_path):
    good, work = tmp_path / "undamaged", tmp_path / "work"
    make(good)
    shutil.copy(good / "panoptic.json", good / "good.json")
    shutil.copytree(good / "panoptic", good / "good")
    converted = 0
    for number in range(60):
        shutil.copytree(good, work)
        what = damage(work, number)
        before = process.memory_kib("VmHWM") or 0
        try:
            converted += outcome(work, number) == ["converted"]
        except Exception as error:
            raise AssertionError(f"damage {number} ({what})") from error
        grown = (process.memory_kib("VmHWM") or 0) - before
        assert grown < MAX_GROWTH_KIB, f"damage {number} ({what}) takes {grown} KiB"
        shutil.rmtree(work)
    assert 5 < converted < 55  # Neither harmless nor hopeless.
