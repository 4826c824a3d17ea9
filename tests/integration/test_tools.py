"""The command-line tools one after the other, as a user runs them, on a few small drawn scenes."""

import json

import cv2
import pytest

from pfpn_tf.data import synthetic
from tests.processes import call

pytestmark = pytest.mark.both_stacks


def test_from_photos_to_predictions(tmp_path):
    data, records, run = tmp_path / "dataset", tmp_path / "records", tmp_path / "run"
    synthetic.make_dataset(data, 1, 2, sides=(48, 80))
    done = call(
        "tools/create_tfrecords.py",
        "--split=val",
        f"--output_dir={records}",
        f"--image_dir={data}/val",
        f"--panoptic_json={data}/annotations/panoptic_val.json",
        f"--instances_json={data}/annotations/instances_val.json",
        "--num_workers=1",
    )
    assert "val: 2 images" in done.stdout
    # TensorFlow's, the addons' and gRPC's start-up noise stays off the terminal.
    lines = [line for line in done.stderr.splitlines() if not line.startswith("val")]
    page, recipe = records / "dataset.html", records / "recipe.flags"
    assert lines == [f"Look at {page}; then train with --flagfile={recipe}."]
    settings = [
        f"--flagfile={recipe}",  # the two photos serve for both
        "--flagfile=configs/base/tiny.flags",
        "--backbone_norm=frozen_bn",  # group norm takes twice as long to trace
        "--head_norm=none",
        "--train_min_sides=64",
        "--train_max_side=96",
        "--eval_min_side=64",
        "--eval_max_side=96",
        "--global_batch_size=2",
        "--train_steps=2",
        "--steps_per_loop=1",
        "--lr_decay_steps=",
        "--image_interval_steps=0",
        "--distribution=cpu",
    ]
    call("tools/show_data.py", *settings, f"--output_dir={tmp_path}/shown", "--num_images=2")
    assert len(list((tmp_path / "shown").glob("*.png"))) == 2

    call("tools/train.py", *settings, f"--run_dir={run}")
    done = call("tools/eval.py", f"--run_dir={run}", f"--metrics_json={tmp_path}/metrics.json")
    assert "PQ" in done.stdout and "mIoU" in done.stdout
    assert "panoptic" in json.loads((tmp_path / "metrics.json").read_text())

    call("export/export_saved_model.py", f"--run_dir={run}", f"--export_dir={tmp_path}/model/1")
    call(
        "tools/predict.py",
        f"--saved_model={tmp_path}/model/1",
        f"--images={data}/val",
        f"--output_dir={tmp_path}/predicted",
    )
    predictions = json.loads((tmp_path / "predicted" / "predictions.json").read_text())
    photos = sorted((data / "val").iterdir())
    assert len(predictions["annotations"]) == len(photos) == 2
    for photo, annotation in zip(photos, predictions["annotations"]):
        png = cv2.imread(str(tmp_path / "predicted" / "predictions" / annotation["file_name"]))
        assert png.shape == cv2.imread(str(photo)).shape
