"""The exported model against the network in this process."""

import concurrent.futures
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.runs import run_directory
from pfpn_tf.serving import batches, exporter
from pfpn_tf.serving import module as module_lib
from pfpn_tf.serving import results
from tests.serving.photos import encode, photo


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        if value.dtype == tf.string:
            np.testing.assert_array_equal(actual[name], value, name)
        else:
            np.testing.assert_allclose(actual[name], value, atol=2e-4, rtol=1e-4, err_msg=name)


SIGNATURES = ("panoptic", "semantic", "network")


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("batch, hw", [(1, (90, 130)), (2, (75, 60))])
def test_export_equals_in_process(name, batch, hw, loaded, in_process):
    images = tf.constant(np.stack([np.roll(photo(*hw), 9 * i, 1) for i in range(batch)]))
    expected = getattr(in_process, name)(images)
    assert_same(loaded.signatures[name](images=images), expected)


def test_batch_of_bytes_equals_single_images(loaded):
    """Sizes and formats mixed: two images of one padded size, one wider, one upright, all between
    each other."""
    serve = loaded.signatures["serving_default"]
    sizes = [(90, 130), (20, 200), (62, 90), (120, 70), (90, 130)]
    contents = [encode(photo(*hw), "JPEG" if i == 2 else "PNG") for i, hw in enumerate(sizes)]
    batch = serve(image_bytes=tf.constant(contents))
    for i, (content, hw) in enumerate(zip(contents, sizes)):
        single = serve(image_bytes=tf.constant([content]))
        assert single["num_segments"][0] >= 2
        ids = results.decode_ids(batch["panoptic_png"][i].numpy())
        assert ids.shape == hw
        np.testing.assert_array_equal(ids, results.decode_ids(single["panoptic_png"][0].numpy()))
        assert_same({k: v[i] for k, v in batch.items()}, {k: v[0] for k, v in single.items()})


@pytest.mark.parametrize(
    "most_pixels, calls",
    [
        (10**9, [[0, 2, 3, 5], [1, 4]]),
        (3 * 64 * 96, [[0, 2, 3], [5], [1, 4]]),
        (2 * 64 * 96, [[0, 2], [3, 5], [1], [4]]),
        (1, [[0], [2], [3], [5], [1], [4]]),
    ],
)
@pytest.mark.parametrize("graph", [False, True])
def test_images_of_one_size_run_together_up_to_a_number_of_pixels(most_pixels, calls, graph):
    sizes = tf.constant([(64, 96), (96, 96), (64, 96), (64, 96), (96, 96), (64, 96)])
    seen = []

    def function(places):
        if not graph:
            seen.append(places.numpy().tolist())
        return {"place": places, "text": tf.strings.as_string(places)}

    signature = {"place": tf.TensorSpec([], tf.int32), "text": tf.TensorSpec([], tf.string)}
    run = lambda hw: batches.by_padded_size(function, hw, most_pixels, signature)  # noqa: E731
    result = (tf.function(run) if graph else run)(sizes)
    assert graph or seen == calls
    assert result["place"].numpy().tolist() == [0, 1, 2, 3, 4, 5]
    assert result["text"].numpy().tolist() == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_groups_of_many_images_take_little_memory():
    """A hundred thousand places in under a second: nothing is quadratic in their number."""
    signature = tf.TensorSpec([], tf.int32)
    sizes = tf.constant([(32, 32), (32, 64)] * 50_000)
    result = batches.by_padded_size(lambda places: places, sizes, 2**30, signature)
    np.testing.assert_array_equal(result, np.arange(100_000))


@pytest.mark.parametrize("count", [0, 65])
def test_the_number_of_images_is_limited(count, loaded):
    message = f"a request must have 1 to 64 images, this one has.*{count}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        loaded.signatures["serving_default"](image_bytes=tf.constant([b"x"] * count, tf.string))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        loaded.signatures["panoptic"](images=tf.zeros([count, 2, 2, 3], tf.uint8))


def test_png_and_table_agree_with_the_pixels(loaded):
    image = photo(90, 130)
    reply = loaded.signatures["serving_default"](image_bytes=tf.constant([encode(image)]))
    pixels = loaded.signatures["panoptic"](images=image[None])
    ids = results.decode_ids(reply["panoptic_png"][0].numpy())
    np.testing.assert_array_equal(ids, pixels["panoptic_ids"][0])
    count = int(reply["num_segments"][0])
    assert count >= 2
    np.testing.assert_array_equal(reply["segment_ids"][0, :count], np.arange(count) + 1)
    for i in range(count):
        ys, xs = np.nonzero(ids == i + 1)
        assert int(reply["areas"][0, i]) == len(ys)
        box = [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
        np.testing.assert_array_equal(reply["boxes"][0, i], box)
    for name in ("segment_ids", "category_ids", "is_thing", "scores", "areas", "boxes"):
        assert reply[name].shape[1] == 40 and not np.any(reply[name][0, count:])


@pytest.mark.parametrize("hw", [(1, 1), (1, 300), (250, 3), (33, 32)])
def test_odd_sizes(hw, loaded):
    reply = loaded.signatures["panoptic"](images=photo(*hw)[None])
    assert reply["panoptic_ids"].shape == (1, *hw)


@pytest.mark.parametrize("name", ["serving_default", "serving_rest", "serving_instances"])
def test_a_bad_image_leaves_the_others_of_its_batch_alone(name, loaded):
    serve = loaded.signatures[name]
    good = encode(photo(40, 50))
    alone = serve(image_bytes=tf.constant([good]))
    assert alone["error"][0] == b""
    bad = {
        b"": b"the file is empty",
        b"GIF87a": b"no size in",
        good[:-40]: b"the pixel data are damaged",
    }
    batch = serve(image_bytes=tf.constant([good, *bad, good]))
    for i, reason in enumerate(bad.values(), 1):
        assert batch["error"][i].numpy().startswith(reason)
        for column, values in batch.items():
            empty = tf.reduce_all(values[i] == tf.zeros_like(values[i]))
            assert column == "error" or empty, column
    for i in (0, -1):
        assert_same({k: v[i] for k, v in batch.items()}, {k: v[0] for k, v in alone.items()})
    none = serve(image_bytes=tf.constant([b"", b"x"]))
    assert none["scores"].shape[0] == 2 and np.all(none["error"].numpy() != b"")


@pytest.mark.parametrize("name", SIGNATURES)
def test_images_without_pixels_are_refused(loaded, name):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Image empty or too large"):
        loaded.signatures[name](images=tf.zeros([2, 0, 30, 3], tf.uint8))


def test_answers_do_not_depend_on_what_else_is_asked(loaded):
    """A kernel that keeps values of one call between its steps mixes up requests."""
    images = [photo(64 + 2 * i, 96)[None] for i in range(6)]

    def ask(i):
        answer = loaded.signatures["network"](images=tf.constant(images[i % len(images)]))
        return {name: value.numpy() for name, value in answer.items()}

    alone = [ask(i) for i in range(len(images))]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, answer in enumerate(pool.map(ask, range(400))):
            for name, value in alone[i % len(images)].items():
                np.testing.assert_array_equal(answer[name], value, f"{name} of request {i}")


def test_metadata_and_asset_say_the_same(loaded, saved_model):
    text = loaded.signatures["metadata"](request=tf.constant(["", "x"]))["metadata_json"]
    assert text.shape == (2,)
    metadata = json.loads(text[0].numpy())
    assert [c["id"] for c in metadata["categories"]] == [2, 5, 8, 11, 14, 17, 20]
    assert metadata["fusion_score_threshold"] == 0.05
    with open(os.path.join(saved_model, "assets", "metadata.json"), encoding="utf-8") as f:
        assert json.load(f) == metadata


def test_bfloat16_weights_are_kept_as_they_are_used(run_dir, monkeypatch):
    """The same answers from half as many bytes."""
    images = photo(70, 90)[None]
    kept = exporter.load_module(run_dir, precision="bfloat16")
    monkeypatch.setattr(exporter, "_round_weights", lambda network: None)
    rounded_at_use = exporter.load_module(run_dir, precision="bfloat16")
    for name, expected in rounded_at_use.network(images).items():
        np.testing.assert_array_equal(kept.network(images)[name], expected, err_msg=name)

    def num_bytes(module):
        return sum(weight.dtype.size * weight.shape.num_elements() for weight in module.weights)

    assert num_bytes(kept) < 0.55 * num_bytes(rounded_at_use)


def test_no_half_written_export(in_process, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        exporter.export(in_process, str(tmp_path / "m" / "1"))
    assert os.listdir(tmp_path / "m") == []


def test_existing_export_is_not_overwritten(in_process, saved_model):
    with pytest.raises(ValueError, match="exists already"):
        exporter.export(in_process, saved_model)


def test_the_default_signature_of_mask_rcnn_gives_instances(run_dir):
    config, info = run_directory.load_run(run_dir)
    for task, instances in (("panoptic", False), ("semantic", False), ("instance", True)):
        module = module_lib.PanopticModule(lambda *_: None, [], config.replace(task=task), info)
        default = module.functions["serving_default"]
        assert (default is module.serving_instances) is instances
        assert (default is module.serving_default) is not instances


def test_table_too_narrow_is_refused(run_dir):
    with pytest.raises(ValueError, match="max_segments=10.*16 or more"):
        exporter.load_module(run_dir, settings={"max_segments": 10})
