"""Every good, odd and bad file of the reference data as a request to the loaded export.

What is right comes from elsewhere: Pillow decodes and resizes, and the network and the fusion run
eagerly.
"""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pfpn_tf.model import layers, panoptic_fpn
from pfpn_tf.postprocess import fusion
from pfpn_tf.runs import restore, run_directory
from pfpn_tf.serving import results
from tests.reference import preprocess as reference
from tests.serving.test_images import good_and_odd


@pytest.fixture(scope="module")
def eager(run_dir):
    """Function of pixels to a `PanopticResult`, without pfpn_tf/serving and its graphs."""
    config, info = run_directory.load_run(run_dir)
    network = panoptic_fpn.build_for_dataset(config.model, info)
    restore.restore_for_inference(network, run_dir)
    # An export folds, too, which rounds weights anew. These random heads give logits in the
    # hundreds, so one rounding in the backbone would move a probability by 1e-4.
    layers.fold_frozen_norms(network)
    settings = fusion.fusion_settings(info, config.model)
    data = config.data

    def predict(pixels):
        h, w = pixels.shape[:2]
        hw = reference.resized_hw((h, w), data.eval_min_side, data.eval_max_side)
        hw = [max(1, side) for side in hw]
        resized = np.asarray(Image.fromarray(pixels).resize(hw[::-1], Image.BILINEAR))
        padded = np.zeros([-(-side // 32) * 32 for side in hw] + [3], np.float32)
        padded[: hw[0], : hw[1]] = (resized - np.float32(data.pixel_mean)) / data.pixel_std
        outputs = network(tf.constant(padded[None]), tf.constant([hw]), training=False)
        outputs = tf.nest.map_structure(lambda value: value[0], outputs)
        return fusion.fuse_image(outputs, tf.constant(hw), tf.constant([h, w]), settings)

    return predict


def test_good_and_odd_files_get_right_answers(test_data, loaded, eager):
    folder, entries = good_and_odd(test_data)
    for entry in entries:
        name, content = entry["file"], (folder / entry["file"]).read_bytes()
        reply = loaded.signatures["serving_default"](image_bytes=tf.constant([content]))
        reply = {key: value[0].numpy() for key, value in reply.items()}
        ids = results.decode_ids(reply["panoptic_png"])
        assert list(ids.shape[::-1]) == entry["upright_size"], name
        expected = eager(results.upright_pixels(content))
        assert np.mean(ids != expected.panoptic_ids) < 1e-3, name
        count = int(reply["num_segments"])
        assert count == expected.num_segments, name
        for column in ("segment_ids", "category_ids", "is_thing"):
            ours, theirs = reply[column][:count], getattr(expected, column)[:count]
            np.testing.assert_array_equal(ours, theirs, f"{name}: {column}")
        # Pillow rounds some pixels of a resized image to the next level. No instance hangs on one
        # of them, but the mean over the few cells of a narrow image may.
        allowed = np.where(reply["is_thing"][:count], 1e-4, 2e-2)
        assert (np.abs(reply["scores"][:count] - expected.scores[:count]) < allowed).all(), name
        areas = np.abs(reply["areas"][:count] - expected.areas[:count])
        assert (areas <= 1e-3 * ids.size).all(), name


def test_pixels_beyond_the_limit_are_refused(loaded):
    """The same limit for files and for pixels; just below it, both are answered."""
    image = np.zeros([1, 1500, 2000, 3], np.uint8)
    assert loaded.signatures["panoptic"](images=image)["panoptic_ids"].shape == (1, 1500, 2000)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        loaded.signatures["panoptic"](images=np.zeros([1, 1501, 2000, 3], np.uint8))
