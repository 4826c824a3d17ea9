"""Every good, odd and bad file of the reference data as a request to the loaded export.

What is right comes from elsewhere: Pillow decodes and resizes, the network runs eagerly, and the
fusion is the slow one of tests/reference.
"""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pfpn_tf.model import layers, panoptic_fpn
from pfpn_tf.postprocess import fusion
from pfpn_tf.runs import restore, run_directory
from pfpn_tf.serving import results
from tests.reference import fusion as reference
from tests.reference import paste
from tests.reference import preprocess as reference_preprocess
from tests.serving.test_images import REASONS


@pytest.fixture(scope="module")
def folder(test_data):
    return test_data("data/bad_and_odd_images")


def readable(folder):
    entries = json.loads((folder / "manifest.json").read_text())
    return [e for e in entries if e["file"] not in REASONS]


@pytest.fixture(scope="module")
def eager(run_dir):
    """Function of pixels to (ids, segments), without anything of pfpn_tf/serving or its graphs."""
    config, info = run_directory.load_run(run_dir)
    network = panoptic_fpn.build_for_dataset(config.model, info)
    restore.restore_for_inference(network, run_dir)
    # An export folds, too, which rounds weights anew. These random heads give logits in the
    # hundreds, so one rounding in the backbone would move a probability by 1e-4.
    layers.fold_frozen_norms(network)
    settings = fusion.fusion_settings(info, config.model)
    data, model = config.data, config.model

    def predict(pixels):
        h, w = pixels.shape[:2]
        hw = reference_preprocess.resized_hw((h, w), data.eval_min_side, data.eval_max_side)
        hw = [max(1, side) for side in hw]
        resized = np.asarray(Image.fromarray(pixels).resize(hw[::-1], Image.BILINEAR))
        padded = np.zeros([-(-side // 32) * 32 for side in hw] + [3], np.float32)
        padded[: hw[0], : hw[1]] = (resized - np.float32(data.pixel_mean)) / data.pixel_std
        outputs = network(tf.constant(padded[None]), tf.constant([hw]), training=False)
        found = [value[0].numpy() for value in outputs.detections]
        boxes, scores, class_ids, num, mask_logits = found
        values = reference.semantic_values(outputs.semantic_logits[0], hw, (h, w))
        return reference.fuse(
            boxes[:num],
            scores[:num],
            class_ids[:num],
            mask_logits[:num],
            values.argmax(-1),
            hw,
            (h, w),
            settings.thing_category_ids,
            settings.stuff_category_ids,
            model.fusion_score_threshold,
            model.fusion_overlap_threshold,
            model.fusion_stuff_area_threshold_px,
            reference.class_scores(outputs.semantic_logits[0].numpy(), hw),
        )

    return predict


def quick_paste(probs, box, hw):
    """`paste.paste` by two matrix products; a pixel at a time takes minutes for large images."""
    mask = np.zeros(hw, bool)
    y0, x0, y1, x1 = (float(c) for c in box)
    if y1 <= y0 or x1 <= x0:
        return mask

    def weights(low, high, length):
        position = (np.arange(length) + 0.5 - low) / (high - low) * len(probs) - 0.5
        return np.maximum(1 - np.abs(position[:, None] - np.arange(len(probs))), 0)

    return weights(y0, y1, hw[0]) @ probs @ weights(x0, x1, hw[1]).T >= 0.5


def test_quick_paste_equals_the_reference():
    probs = np.random.default_rng(0).random((28, 28))
    for box in ([3.2, -4.0, 30.5, 41.0], [0.0, 0.0, 40.0, 50.0], [7.0, 7.0, 7.0, 9.0]):
        np.testing.assert_array_equal(
            quick_paste(probs, box, (40, 50)), paste.paste(probs, box, (40, 50))
        )


def test_good_and_odd_files_get_right_answers(folder, loaded, eager, monkeypatch):
    monkeypatch.setattr(paste, "paste", quick_paste)
    entries = readable(folder)
    assert len(entries) == 29
    for entry in entries:
        name, content = entry["file"], (folder / entry["file"]).read_bytes()
        reply = loaded.signatures["serving_default"](image_bytes=tf.constant([content]))
        reply = {key: value[0].numpy() for key, value in reply.items()}
        ids = results.decode_ids(reply["panoptic_png"])
        assert list(ids.shape[::-1]) == entry["upright_size"], name
        expected_ids, segments = eager(results.upright_pixels(content))
        # Where float32 and float64 disagree about a tie.
        assert np.mean(ids != expected_ids) < 1e-3, name
        count = int(reply["num_segments"])
        assert count == len(segments), name
        for i, segment in enumerate(segments):
            assert reply["segment_ids"][i] == segment["id"], name
            assert reply["category_ids"][i] == segment["category_id"], name
            assert reply["is_thing"][i] == segment["is_thing"], name
            # Pillow rounds some pixels of a resized image to the next level. No instance hangs on
            # one of them, but the mean over the few cells of a narrow image may.
            allowed = 1e-4 if segment["is_thing"] else 2e-2
            assert abs(reply["scores"][i] - segment["score"]) < allowed, name
            assert abs(reply["areas"][i] - segment["area"]) <= 1e-3 * ids.size, name


def test_bad_files_get_a_reason_and_the_others_their_answers(folder, loaded):
    serve = loaded.signatures["serving_default"]
    good = (folder / "photo_portrait.jpg").read_bytes()
    before = serve(image_bytes=tf.constant([good]))["panoptic_png"][0]
    bad = [(folder / name).read_bytes() for name in REASONS]
    batch = serve(image_bytes=tf.constant([good, *bad, good]))
    assert batch["panoptic_png"][0] == batch["panoptic_png"][-1] == before
    for i, reason in enumerate(REASONS.values(), 1):
        reason = reason.replace("40000000", "3000000")  # the limit of this export
        assert re.match(reason, batch["error"][i].numpy().decode())
        assert batch["panoptic_png"][i] == b"" and batch["num_segments"][i] == 0


def test_all_readable_files_in_one_batch(folder, loaded):
    """Many padded sizes, from one pixel to 5000 x 300; answers as if they had come alone."""
    serve = loaded.signatures["serving_default"]
    contents = [(folder / entry["file"]).read_bytes() for entry in readable(folder)]
    batch = serve(image_bytes=tf.constant(contents))
    for i, content in enumerate(contents):
        single = serve(image_bytes=tf.constant([content]))
        for name, values in single.items():
            np.testing.assert_array_equal(values[0], batch[name][i], err_msg=f"{i}: {name}")


def test_pixels_beyond_the_limit_are_refused(loaded, folder):
    """The same limit for files and for pixels; just below it, both are answered."""
    image = np.zeros([1, 1500, 2000, 3], np.uint8)
    assert loaded.signatures["panoptic"](images=image)["panoptic_ids"].shape == (1, 1500, 2000)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        loaded.signatures["panoptic"](images=np.zeros([1, 1501, 2000, 3], np.uint8))
