"""tools/predict.py on a folder: results, odd names, bad files, exit codes."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
from PIL import Image
import pytest

from pfpn_tf.evaluation import coco_format
from pfpn_tf.serving import predictor, results

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def save_photo(path, height, width, seed=0, **kwargs):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(path, **kwargs)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    save_photo(folder / "000000000042.jpg", 60, 90)
    save_photo(folder / "with spaces ünï.PNG", 50, 40, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    save_photo(folder / "turned.jpg", 40, 70, 2, exif=exif)
    save_photo(folder / "web.webp", 30, 44, 3)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def tool_run(photos, saved_model, tmp_path_factory):
    """The tool as a user starts it, once."""
    output = tmp_path_factory.mktemp("predictions") / "new folder"
    command = [sys.executable, os.path.join(ROOT, "tools", "predict.py")]
    command += [f"--saved_model={saved_model}", f"--images={photos}", f"--output_dir={output}"]
    return subprocess.run(command, capture_output=True, text=True), output


def test_tool_skips_bad_files_and_says_so(tool_run):
    done, _ = tool_run
    assert done.returncode == 1, done.stderr
    skipped = [line for line in done.stderr.splitlines() if line.startswith("Skipped")]
    assert len(skipped) == 2 and "Traceback" not in done.stderr
    assert "broken.jpg: no size in the header of the image" in skipped[0]
    assert "empty.png: not a JPEG, PNG, GIF or BMP image" in skipped[1]
    assert "Wrote 4 of 6" in done.stdout


def test_files_are_complete_coco_panoptic(tool_run):
    _, output = tool_run
    content = coco_format.load_panoptic_json(str(output / "predictions.json"), "prediction", with_categories=True)
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}
    assert sizes == {
        "000000000042.jpg": (60, 90), "turned.jpg": (70, 40), "web.webp": (30, 44), "with spaces ünï.PNG": (50, 40)
    }
    assert [image["id"] for image in content["images"]][0] == 42
    for image, annotation in zip(content["images"], content["annotations"]):
        assert annotation["image_id"] == image["id"]
        ids = coco_format.read_panoptic_png(str(output / "predictions"), annotation["file_name"], image["id"], "")
        assert ids.shape == (image["height"], image["width"])
        assert annotation["segments_info"], "the tiny network finds something everywhere"
        for segment in annotation["segments_info"]:
            ys, xs = np.nonzero(ids == segment["id"])
            assert segment["area"] == len(ys)
            assert segment["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}


def test_overlays_are_pictures_of_the_upright_image(tool_run):
    _, output = tool_run
    assert len(list((output / "pictures").iterdir())) == 4
    picture = cv2.imdecode(np.fromfile(output / "pictures" / "turned_overlay.png", np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (3 * 70, 3 * 40, 3)


def test_run_directory_gives_the_same_maps(run_dir, photos, tool_run, tmp_path):
    model = predictor.load_run(run_dir)
    path = str(photos / "000000000042.jpg")
    assert predictor.predict_files(model, [path], str(tmp_path), overlays=False) == []
    with open(tmp_path / "predictions.json") as f:
        ours = json.load(f)["annotations"][0]
    with open(tool_run[1] / "predictions.json") as f:
        theirs = json.load(f)["annotations"][0]
    assert [s["category_id"] for s in ours["segments_info"]] == [s["category_id"] for s in theirs["segments_info"]]
    assert not (tmp_path / "pictures").exists()


def test_files_are_found_once_and_in_order(photos):
    jpegs = results.find_images([str(photos / "*.jpg")])
    assert [os.path.basename(p) for p in jpegs] == ["000000000042.jpg", "broken.jpg", "turned.jpg"]
    assert results.find_images([jpegs[2], str(photos / "*.jpg")])[0] == jpegs[2]
    assert len(results.find_images([jpegs[2], str(photos / "*.jpg")])) == 3
    with pytest.raises(ValueError, match="no such file"):
        results.find_images([str(photos / "missing*.jpg")])


def test_same_name_twice_is_numbered():
    names = results.unique_names(["a/x.jpg", "b/x.jpg", "b/X.png"])
    assert list(names.values()) == ["x", "x_2", "X_3"]


@pytest.mark.parametrize("content", ["directory", "parent"])
def test_directory_without_saved_model(content, saved_model, tmp_path):
    directory = str(tmp_path) if content == "directory" else os.path.dirname(saved_model)
    with pytest.raises(ValueError, match="no saved_model.pb" + ("." if content == "directory" else ".*Is it.*1")):
        predictor.load_saved_model(directory)
