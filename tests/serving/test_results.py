"""Replies to files, without a network: one file's failure is its own, and names never meet."""

import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

from pfpn_tf.data import panoptic_png
from pfpn_tf.data import predictions as predictions_lib
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.serving import model as model_lib
from pfpn_tf.serving import results
from pfpn_tf.utils.errors import UserError
from tests.serving.photos import encode, photo

INFO = DatasetInfo.from_coco_categories([{"id": 7, "name": "sky", "isthing": 0}])
PIXELS = np.zeros((8, 9, 3), np.uint8)


def reply(image_bytes=b"", error=""):
    return {
        "panoptic_png": panoptic_png.encode_ids(np.ones((8, 9), int)),
        "num_segments": 1,
        "segment_ids": [1],
        "category_ids": [7],
        "is_thing": [False],
        "scores": [0.0],
        "areas": [72],
        "boxes": [[0, 0, 8, 9]],
        "error": error,
    }


def photos(folder, *names):
    for name in names:
        Image.fromarray(PIXELS).save(folder / name, "PNG")
    return [str(folder / name) for name in names]


def answer_files(paths, output, answer=reply, **options):
    """The failures."""
    model = model_lib.Model(answer, {"categories": INFO.coco_categories()})
    with results.Writer(str(output), INFO, **options) as writer:
        found = list(model.predict_files(paths, writer))
    assert len(found) == len(paths)
    return [result for result in found if isinstance(result, results.Failure)]


def predictions(output):
    content = json.loads((output / "predictions.json").read_text())
    ids = [image["id"] for image in content["images"]]
    assert ids == [annotation["image_id"] for annotation in content["annotations"]]
    files = [annotation["file_name"] for annotation in content["annotations"]]
    assert sorted(files) == sorted(os.listdir(output / "predictions"))
    return dict(zip(ids, [image["file_name"] for image in content["images"]]))


def test_failures_of_every_step_are_of_one_file(tmp_path):
    good, dark, big, wide, taken, last = photos(
        tmp_path, "good.png", "dark.png", "big.png", "wide.png", "taken.png", "last.png"
    )
    Image.fromarray(PIXELS[:, :5]).save(wide)
    for path in (dark, big):
        with open(path, "ab") as f:
            f.write(os.path.basename(path).encode())
    missing, folder = str(tmp_path / "missing.png"), str(tmp_path)
    out = tmp_path / "out"
    (out / "pictures" / "taken_overlay.png").mkdir(parents=True)

    def answer(content):
        if content.endswith(b"big.png"):
            raise results.Refused("there is no memory for it")
        return reply(error="it is dark" if content.endswith(b"dark.png") else "")

    paths = [good, missing, folder, dark, big, wide, taken, last]
    failures = answer_files(paths, out, answer, replies=True)
    assert [failure.path for failure in failures] == paths[1:-1]
    reasons = [failure.reason for failure in failures]
    assert reasons[:2] == ["No such file or directory", "not a regular file"]
    assert reasons[2:4] == ["it is dark", "there is no memory for it"]
    assert "(8, 5)" in reasons[4] and "taken_overlay.png: Is a directory" in reasons[5]
    assert predictions(out) == {"good": "good.png", "last": "last.png"}
    for kind in ("pictures", "replies"):  # nothing of a failed file but what was there before
        names = set(os.listdir(out / kind)) - {"taken_overlay.png"}
        assert len(names) == 2 and all(name.startswith(("good", "last")) for name in names)


def test_an_error_of_the_server_leaves_what_is_done(tmp_path):
    paths = photos(tmp_path, *"abcdefghijkl")
    answered = []

    def answer(content):
        answered.append(content)
        if len(answered) == 4:
            raise ConnectionError("the server has gone")
        return reply()

    with pytest.raises(ConnectionError, match="the server has gone"):
        answer_files(paths, tmp_path / "out", answer, overlays=False)
    found = set(predictions(tmp_path / "out"))
    assert {"a", "b", "c"} <= found <= set("abcefgh")  # The last four may have been on their way.


def test_every_image_has_an_id_and_files_of_its_own(tmp_path):
    for folder in "xy":
        (tmp_path / folder).mkdir()
    names = "000000000042,1,01,001,²,a b,A B,1.jpg,a%20b,1_2".split(",") + ["n" * 250]
    paths = photos(tmp_path / "x", *(f"{name}.p" for name in names))
    paths += photos(tmp_path / "y", "1.p", "a b.p", "n" * 250 + ".p")
    out = tmp_path / "out"
    assert answer_files(paths, out) == []
    found = predictions(out)
    assert len(found) == len(paths) and len(os.listdir(out / "pictures")) == len(paths)
    assert (found[42], found[1]) == ("000000000042.p", "1.p")
    # No text is one that a reader of numbers as texts would take for another image's number.
    assert not [i for i in found if isinstance(i, str) and i.isascii() and i.isdigit()]


def test_files_of_a_link_stay_where_it_points(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.json").symlink_to(tmp_path / "real.json")
    answer_files(photos(tmp_path, "a.png"), tmp_path / "out")
    assert (tmp_path / "out" / "predictions.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["images"]


@pytest.mark.parametrize("suffix", ["webp", "tif"])
def test_formats_that_the_model_has_not_are_read_upright(suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = str(tmp_path / f"turned.{suffix}")
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(photo(40, 70)).save(path, exif=exif, **options)
    assert results.find_images([str(tmp_path)]) == [path]
    read = results.upright_pixels(results.read_image(path))
    np.testing.assert_array_equal(read, np.rot90(photo(40, 70), -1))


def test_names_with_commas(tmp_path):
    photos(tmp_path, "a,b.jpg", "c, d.jpg")
    for name in ("a,b.jpg", "c, d.jpg"):
        path = str(tmp_path / name)
        assert results.find_images([part.strip() for part in path.split(",")]) == [path]
    with pytest.raises(UserError, match="/a: no such file .* A name with a comma stands in double"):
        results.find_images([str(tmp_path / "a"), "b.jpg", str(tmp_path / "c, d.jpg")])


def test_values_without_a_fixed_range_are_refused(tmp_path):
    """Of 16 bits the upper 8 are kept; of others nobody knows which bits make the picture."""
    ramp = np.arange(0, 65536, 257).reshape(16, 16)
    for suffix in ("tif", "pgm", "png"):
        Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / f"a.{suffix}")
        read = results.upright_pixels(results.read_image(str(tmp_path / f"a.{suffix}")))
        np.testing.assert_array_equal(read[..., 1], ramp // 257)
    for dtype, tags, words in (
        (np.float32, {}, "mode F with floating-point values of 32 bits"),
        (np.int32, {}, "mode I with signed values of 32 bits"),
        (np.uint16, {339: 2}, "mode I with signed values of 16 bits"),
        ("12 bits", {}, "mode I;16 with values of 12 bits"),
    ):
        values = (ramp // 257).astype(np.uint16 if dtype == "12 bits" else dtype)
        Image.fromarray(values).save(tmp_path / "b.tif", tiffinfo=tags)
        if dtype == "12 bits":  # Pillow writes none: the file's BitsPerSample is changed.
            bits = b"\x02\x01\x03\0\x01\0\0\0"
            content = (tmp_path / "b.tif").read_bytes()
            (tmp_path / "b.tif").write_bytes(content.replace(bits + b"\x10", bits + b"\x0c"))
        with pytest.raises(ValueError, match=f"cannot be decoded: {words} .*scale them to 0..255"):
            results.read_image(str(tmp_path / "b.tif"))


def test_damaged_files_of_these_formats_are_named(tmp_path):
    content = encode(photo(40, 70), "TIFF")
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    answer = lambda content: reply(error=f"the model saw {content[4:]}")  # noqa: E731
    paths = results.find_images([str(tmp_path)])
    failures = answer_files(paths, tmp_path / "out", answer)
    assert [os.path.basename(failure.path) for failure in failures] == ["a.tif", "b.heic"]
    assert failures[0].reason.startswith("cannot be decoded: ")
    assert failures[1].reason == "the model saw b'ftypheic'"


def test_a_list_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    """Entries of images that are done would be lost; no list is better than a false one."""

    def add(writer, entry):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(predictions_lib._JsonList, "add", add)
    with pytest.raises(OSError, match="No space left") as error:
        answer_files(photos(tmp_path, "a.png"), tmp_path / "out")
    assert error.value.filename == str(tmp_path / "out" / "predictions.json")
    assert not [name for name in os.listdir(tmp_path / "out") if "json" in name or "tmp" in name]
