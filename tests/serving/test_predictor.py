"""tools/predict.py on a folder and a video: results, odd names, bad files, exit codes."""

import base64
import json
import os
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

import pfpn_tf
from pfpn_tf.data import coco_json, panoptic_png
from pfpn_tf.serving import predictor, results
from pfpn_tf.utils.errors import UserError
from tests import processes
from tests.serving.photos import photo


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(60, 90)).save(folder / "000000000042.jpg")
    Image.fromarray(photo(50, 40, 1)).save(folder / "with spaces ünï.PNG")
    Image.fromarray(photo(40, 70, 2)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(photo(30, 44, 3)).save(folder / "web.webp")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def tool_run(photos, saved_model, tmp_path_factory):
    """The tool as a user starts it, once."""
    output = tmp_path_factory.mktemp("predictions") / "new folder"
    flags = f"--saved_model={saved_model}", f"--images={photos}", f"--output_dir={output}"
    return processes.call("tools/predict.py", *flags, expect=1), output


def test_tool_skips_bad_files_and_says_so(tool_run):
    done, _ = tool_run
    skipped = [line for line in done.stderr.splitlines() if line.startswith("Skipped")]
    assert len(skipped) == 2
    assert "broken.jpg: no size in the header of the image" in skipped[0]
    assert "empty.png: the file is empty" in skipped[1]
    assert "Wrote 4 of 6" in done.stdout


def test_files_are_complete_coco_panoptic(tool_run):
    _, output = tool_run
    path = str(output / "predictions.json")
    content = coco_json.load_panoptic_json(path, "prediction", with_categories=True)
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}
    assert sizes == {
        "000000000042.jpg": (60, 90),
        "turned.jpg": (70, 40),
        "web.webp": (30, 44),
        "with spaces ünï.PNG": (50, 40),
    }
    assert [image["id"] for image in content["images"]][0] == 42
    for image, annotation in zip(content["images"], content["annotations"]):
        assert annotation["image_id"] == image["id"]
        folder = str(output / "predictions")
        ids = panoptic_png.read(folder, annotation["file_name"], image["id"], "")
        assert ids.shape == (image["height"], image["width"])
        assert annotation["segments_info"], "the tiny network finds something everywhere"
        for segment in annotation["segments_info"]:
            ys, xs = np.nonzero(ids == segment["id"])
            assert segment["area"] == len(ys)
            x, y = xs.min(), ys.min()
            assert segment["bbox"] == [x, y, xs.max() + 1 - x, ys.max() + 1 - y]
        assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}


def test_overlays_are_pictures_of_the_upright_image(tool_run):
    _, output = tool_run
    assert len(list((output / "pictures").iterdir())) == 4
    content = np.fromfile(output / "pictures" / "turned_overlay.png", np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert picture.shape == (8 * 70, 8 * 40, 3)


def test_the_reply_is_that_of_the_rest_signature(photos, loaded, saved_model, tmp_path):
    path = str(photos / "000000000042.jpg")
    model = predictor.load(saved_model)
    with results.Writer(str(tmp_path), model.info, overlays=False, replies=True) as writer:
        (result,) = model.predict_files([path], writer)
    assert result.file_name == "000000000042.jpg"
    np.testing.assert_array_equal(result.ids, model(path).ids)
    assert not (tmp_path / "pictures").exists()
    written = json.loads((tmp_path / "replies" / "000000000042.json").read_text())
    (row,) = written["predictions"]
    content = (photos / "000000000042.jpg").read_bytes()
    own = loaded.signatures["serving_rest"](image_bytes=[content])
    png = row.pop("panoptic_png_bytes")["b64"]
    assert base64.b64decode(png) == own.pop("panoptic_png_bytes")[0].numpy()
    assert row.pop("error") == own.pop("error")[0].numpy().decode() == ""
    assert row == {name: value[0].numpy().tolist() for name, value in own.items()}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A file of five frames that differ, and the frames as they are read."""
    path = tmp_path_factory.mktemp("video") / "a street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12.0, (90, 61))
    for seed in range(5):
        writer.write(photo(61, 90, seed))
    writer.release()
    return path, list(predictor.Video(str(path)).frames())


def test_tool_predicts_a_video_frame_by_frame(video, saved_model, loaded, tmp_path):
    path, frames = video
    flags = f"--saved_model={saved_model}", f"--video={path}", f"--output_dir={tmp_path}"
    done = processes.call("tools/predict.py", "--save_predictions", *flags)
    assert "Wrote 5 frames" in done.stdout
    overlay = predictor.Video(str(tmp_path / "a street_overlay.mp4"))
    assert (overlay.num_frames, overlay.frames_per_second) == (5, 12)
    written = json.loads((tmp_path / "predictions.json").read_text())
    names = [annotation["file_name"] for annotation in written["annotations"]]
    assert names == [f"a street_{i:06d}.png" for i in range(5)]
    maps = []
    for name, frame in zip(names, frames):
        ids = results.decode_ids((tmp_path / "predictions" / name).read_bytes())
        expected = loaded.signatures["panoptic"](images=frame[None])["panoptic_ids"][0]
        np.testing.assert_array_equal(ids, expected)
        maps.append(ids.tobytes())
    assert len(set(maps)) == 5, "frames that differ"
    drawn = next(overlay.frames())
    assert drawn.shape == (8 * frames[0].shape[0], 8 * frames[0].shape[1], 3)


def test_a_video_that_fails_leaves_nothing(video, saved_model, tmp_path, monkeypatch):
    path, frames = video
    model = predictor.load(saved_model)
    answer, answered = model.answer, []

    def fail_at_last(image):
        answered.append(image)
        if len(answered) == len(frames):
            raise RuntimeError("the network broke")
        return answer(image)

    monkeypatch.setattr(model, "answer", fail_at_last)
    with pytest.raises(RuntimeError, match="the network broke"):
        predictor.predict_video(model, predictor.Video(str(path)), "x", str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_what_is_no_video_is_refused(photos, tmp_path):
    with pytest.raises(ValueError, match="--video=.*no such file"):
        predictor.Video(str(tmp_path / "missing.mp4"))
    with pytest.raises(ValueError, match="is no video that OpenCV can read"):
        predictor.Video(str(photos / "notes.txt"))


def test_files_are_found_once_and_in_order(photos):
    jpegs = results.find_images([str(photos / "*.jpg")])
    assert [os.path.basename(p) for p in jpegs] == ["000000000042.jpg", "broken.jpg", "turned.jpg"]
    assert results.find_images([jpegs[2], str(photos / "*.jpg")])[0] == jpegs[2]
    assert len(results.find_images([jpegs[2], str(photos / "*.jpg")])) == 3
    with pytest.raises(ValueError, match="no such file"):
        results.find_images([str(photos / "missing*.jpg")])


def test_same_name_twice_is_numbered():
    odd = ["a\nb.jpg", os.fsdecode(b"\xe4.jpg"), os.fsdecode(b"\xf6.jpg"), "\u00fc" * 127 + ".png"]
    for name, expected in zip(
        results.unique_names(odd).values(), ["a_b", "\ufffd", "\ufffd_2", "\u00fc" * 100]
    ):
        assert name == expected
    names = results.unique_names(["a/x.jpg", "b/x.jpg", "b/X.png"])
    assert list(names.values()) == ["x", "x_2", "X_3"]


@pytest.mark.parametrize("damage", ["empty graph", "cut graph", "no variables"])
def test_a_damaged_export_is_named(damage, saved_model, tmp_path):
    copy = tmp_path / "1"
    shutil.copytree(saved_model, copy)
    if damage == "no variables":
        shutil.rmtree(copy / "variables")
    else:
        os.truncate(copy / "saved_model.pb", 0 if damage == "empty graph" else 1000)
    message = (
        f"{copy} cannot be loaded; it is damaged or incomplete. Copy or export it again. \\(.+"
    )
    with pytest.raises(UserError, match=message) as error:
        pfpn_tf.load(copy)
    assert "\n" not in str(error.value) and "experimental_io_device" not in str(error.value)


def test_what_does_not_fit_together_is_refused_before_the_work(photos, tmp_path):
    flags = "tools/predict.py", "--saved_model=none", f"--images={photos}", "--output_dir=none"
    done = processes.call(*flags, "--checkpoint=best", expect=2)
    assert "--checkpoint cannot be changed in an exported model" in done.stderr
    done = processes.call(*flags, "--nosave_predictions", expect=2)
    assert "--nosave_predictions is of --video" in done.stderr
    truth = tmp_path / "panoptic.json"
    categories = [{"id": 1, "name": "sky", "isthing": 0}]
    truth.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    sheet = f"--contact_sheet={tmp_path / 'sheet.png'}", f"--panoptic_json={truth}"
    done = processes.call(*flags, *sheet, expect=2)
    assert f"{truth} has no annotation of an image with the name 0000" in done.stderr
