"""pfpn_tf.load: what a program gets for an image."""

import json
import pathlib
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

import pfpn_tf
from pfpn_tf.data import panoptic_png, synthetic
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.serving import model as model_lib
from pfpn_tf.utils.errors import UserError
from tests.data import tiny
from tests.serving.photos import encode, photo


@pytest.fixture(scope="module")
def model(saved_model):
    return pfpn_tf.load(saved_model)


@pytest.fixture
def pixels():
    return photo(60, 90)


@pytest.fixture(scope="module")
def result(model):
    return model(photo(60, 90))


@pytest.fixture(scope="module")
def known():
    """A map of 4x6 pixels: a cat of 2x3 on grass, the last row void."""
    ids = np.full([4, 6], 9, np.int32)
    ids[1:3, 2:5] = 300
    ids[3] = 0
    reply = {
        "panoptic_png": panoptic_png.encode_ids(ids),
        "num_segments": 2,
        "segment_ids": [300, 9, 0],
        "category_ids": [5, 7, 0],
        "is_thing": [True, False, False],
        "scores": [0.75, 0.5, 0.0],
        "areas": [6, 12, 0],
        "boxes": [[1, 2, 3, 5], [0, 0, 3, 6], [0, 0, 0, 0]],
    }
    info = DatasetInfo.from_coco_categories(tiny.CATEGORIES)
    return model_lib.Result("cat.png", b"", reply, info)


def test_a_thing_and_stuff(known):
    cat, grass = known.segments
    assert (cat.category, cat.category_id, cat.is_thing, cat.score) == ("cat", 5, True, 0.75)
    assert (grass.category, grass.category_id) == ("grass", 7)
    assert (grass.is_thing, grass.score) == (False, 0.5)
    assert cat.box == (1, 2, 3, 5) and cat.area == cat.mask().sum() == 6
    assert repr(cat) == "<cat 300: 6 pixels, box (1, 2, 3, 5), score 0.75>"
    assert repr(grass) == "<grass 9: 12 pixels, box (0, 0, 3, 6), score 0.50>"
    assert repr(known) == "<cat.png: 2 segments on 6 x 4 pixels>"


def test_the_lines_of_the_readme(saved_model, pixels, tmp_path, monkeypatch, capsys):
    readme = pathlib.Path(pfpn_tf.__file__).parents[1] / "README.md"
    lines = readme.read_text(encoding="utf-8").partition("## Use it from Python\n")[2]
    code = textwrap.dedent(lines.partition("\n## ")[0])
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels).save("photo.jpg")
    exec(code.replace("models/panoptic/1", saved_model), {})
    assert Image.open("overlay.png").size and (tmp_path / "out" / "predictions.json").exists()
    assert " pixels, box (" in capsys.readouterr().out


def test_every_kind_of_image_gives_the_same(model, result, pixels, tmp_path):
    image = Image.fromarray(pixels)
    image.save(tmp_path / "photo.png")
    kinds = [tmp_path / "photo.png", str(tmp_path / "photo.png"), encode(pixels), image]
    for other in model(kinds):
        np.testing.assert_array_equal(other.ids, result.ids)
    grey = pixels[..., 0]
    np.testing.assert_array_equal(model(grey).ids, model(np.stack([grey] * 3, -1)).ids)


def test_an_image_of_pillow_is_turned_as_its_file_is(model, pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    of_path, of_image = model([tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")])
    assert of_image.ids.shape == of_path.ids.shape == (90, 60)
    assert of_image.draw().size == of_path.draw().size


def test_an_export_answers_as_the_run_directory(run_dir, result, pixels):
    np.testing.assert_array_equal(pfpn_tf.load(pathlib.Path(run_dir))(pixels).ids, result.ids)


def test_files(model, result, pixels, tmp_path):
    result.save(tmp_path / "one")
    found = json.loads((tmp_path / "one" / "predictions.json").read_text())
    png = (tmp_path / "one" / "predictions" / found["annotations"][0]["file_name"]).read_bytes()
    np.testing.assert_array_equal(panoptic_png.decode_ids(png, "png"), result.ids)
    picture = Image.open(next((tmp_path / "one" / "pictures").iterdir()))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(result.draw()))

    model_lib.save(model([pixels, pixels[:, ::-1].copy()]), tmp_path / "two")
    assert len(list((tmp_path / "two" / "predictions").iterdir())) == 2


def test_contact_sheet(model, pixels, tmp_path):
    """Columns of images, rows of photo, truth and prediction."""
    synthetic.make_dataset(tmp_path, 1, 3, sides=(40, 60))
    truth = str(tmp_path / "annotations" / "panoptic_val.json")
    paths = sorted((tmp_path / "val").iterdir())
    found = model(paths)
    sheet = np.asarray(model_lib.contact_sheet(found, truth))
    without = np.asarray(model_lib.contact_sheet(found))
    assert sheet.shape[1] == without.shape[1] >= 3 * 320
    row = len(sheet) - len(without)
    assert len(sheet) == 3 * row - 8, "8 pixels between the rows"
    np.testing.assert_array_equal(sheet[: row - 8, :300], without[: row - 8, :300], "photos")
    np.testing.assert_array_equal(sheet[8 - row :], without[8 - row :], "predictions")
    alone = np.asarray(model_lib.contact_sheet(found[:1], truth))
    assert alone.shape[1] > 2 * alone.shape[0]
    with pytest.raises(UserError, match="has no annotation of an image with the name image"):
        model_lib.contact_sheet([model(pixels)], truth)


def test_to_supervision(known, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "supervision", None)
        with pytest.raises(UserError, match="pip install supervision"):
            known.to_supervision()
    pytest.importorskip("supervision", reason="a package that users may have")
    detections = known.to_supervision()
    assert detections.xyxy.tolist() == [[2, 1, 5, 3]] and detections.confidence.tolist() == [0.75]
    assert list(detections["class_name"]) == ["cat"] and detections.class_id.tolist() == [5]
    np.testing.assert_array_equal(detections.mask[0], known.ids == 300)


@pytest.mark.parametrize(
    "image, message",
    [
        ("nowhere.jpg", "nowhere.jpg: No such file"),
        (b"no image", "image: "),
        (np.zeros([4, 4, 3], np.float32), r"must be uint8 .* not float32 \[4, 4, 3\]"),
        (np.zeros([4, 4, 4], np.uint8), r"not uint8 \[4, 4, 4\]"),
        (7, "not a int"),
        (np.zeros([0, 4, 3], np.uint8), "The image cannot be used .*empty"),
        (Image.fromarray(np.zeros([4, 4], np.uint16)), "must have 8 bits a channel, not mode I"),
        (Image.fromarray(np.zeros([4, 4], np.float32)), "must have 8 bits a channel, not mode F"),
    ],
)
def test_an_image_that_is_none(model, image, message):
    with pytest.raises(UserError, match=message):
        model(image)
    for function in (model_lib.contact_sheet, lambda found: model_lib.save(found, "nowhere")):
        with pytest.raises(UserError, match="There is no result"):
            function([])


def test_what_cannot_be_loaded(saved_model, tmp_path):
    parent = pathlib.Path(saved_model).parent
    for folder, hint in ((tmp_path, "Give a run directory, or"), (parent, "Is it .*/1?")):
        with pytest.raises(UserError, match=f"{folder} holds no saved_model.pb. {hint}"):
            pfpn_tf.load(folder)
    with pytest.raises(UserError, match="is no run directory, so checkpoint and settings"):
        pfpn_tf.load(saved_model, score_threshold=0.2)
