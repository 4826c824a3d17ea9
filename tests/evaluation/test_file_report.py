"""The report page about prediction files."""

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from pfpn_tf.data import panoptic_png
from pfpn_tf.evaluation.score_files import PanopticFiles
from tests.data import tiny


@pytest.fixture
def files(tmp_path):
    """Ground truth of three images; predictions without the things, but for the last image."""
    images = [
        (40, 60, [(5, 0, 4, 8, 30, 40)]),
        (36, 50, [(20, 0, 2, 2, 20, 20)]),
        (30, 44, [(5, 0, 1, 1, 9, 9)]),
    ]
    content = tiny.make(tmp_path / "gt", images)
    shutil.copytree(tmp_path / "gt/panoptic", tmp_path / "pred/panoptic")
    for annotation in content["annotations"][:2]:
        name = tmp_path / "pred/panoptic" / annotation["file_name"]
        ids = panoptic_png.read(str(name.parent), name.name, 0, "").astype(np.int32)
        tiny.save_ids(name, np.where(ids > 2, 1, ids))
        annotation["segments_info"] = [s for s in annotation["segments_info"] if s["id"] <= 2]
    predicted = json.dumps({"annotations": content["annotations"]})
    (tmp_path / "pred/panoptic.json").write_text(predicted)
    return tmp_path


def paths(files):
    names = "gt/panoptic.json", "gt/panoptic", "pred/panoptic.json", "pred/panoptic"
    return [str(files / name) for name in names]


def score(files, max_images=0, **options):
    return PanopticFiles(*paths(files), max_images).score(1, **options)


def test_report_of_files(files):
    plain = score(files)
    metrics = score(files, output_dir=str(files / "out"), image_dir=str(files / "gt/images"))
    assert metrics == plain
    page = (files / "out/report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6  # all three at either end
    worst, best = page.index("<h2 id='worst'>"), page.index("<h2 id='best'>")
    assert page.index("Image 12: PQ 100.0", best) < page.index("Image 10", best)
    assert page.index("Image 12: PQ 100.0", worst) > page.index("Image 11", worst)
    assert "<td>cat</td><td>sky</td>" in page  # the largest mistake
    assert cv2.imread(str(files / "out/confusion.png")) is not None


def test_photos_are_optional_but_not_wrong(files):
    score(files, output_dir=str(files / "out"))
    assert (files / "out/report.html").exists()
    with pytest.raises(ValueError, match="Image 10: .*0.png does not exist; leave --image_dir out"):
        score(files, output_dir=str(files / "out"), image_dir=str(files / "pred"))
    with pytest.raises(ValueError, match="--image_dir=nowhere"):
        score(files, output_dir=str(files / "out"), image_dir="nowhere")


@pytest.mark.parametrize("hw, turned", [((60, 40), True), ((40, 60), False)])
def test_photos_are_turned_as_their_maps_are(files, hw, turned):
    """A photo with an EXIF orientation may be annotated upright or as it is stored."""
    path, exif = files / "gt/images/0.png", Image.Exif()
    exif[0x112] = 6
    stored = Image.open(path)
    stored.save(path, exif=exif.tobytes())
    photo = PanopticFiles(*paths(files))._photo(str(path.parent), 10, hw)
    expected = np.array(stored.convert("RGB"))
    np.testing.assert_array_equal(photo[..., ::-1], np.rot90(expected, -1) if turned else expected)


def test_first_images_only(files):
    metrics = score(files, max_images=1)
    assert metrics["notes"] == []  # the other predictions are no mistake
    counts = metrics["panoptic"]["per_class"]
    assert (counts["5"]["fn"], counts["5"]["tp"], counts["20"]["fn"]) == (1, 0, 0)
    assert score(files, max_images=99) == score(files)
