"""Mask targets against a plain reference and Detectron2's own."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.ops import masks
from tests.reference.roi_align import roi_align


@pytest.fixture(params=[False, True])
def for_xla(request):
    return request.param


def blobs(shape, seed=0):
    """Random masks whose edges are curves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    out = np.zeros(shape, np.uint8)
    for index in np.ndindex(*shape[:-2]):
        cy, cx = rng.uniform(0, shape[-2:])
        ry, rx = rng.uniform(5, 30, 2)
        out[index] = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    return out


@pytest.mark.both_stacks
def test_mask_targets(for_xla, maybe_graph):
    gt_masks = blobs([2, 3, 37, 61])
    rng = np.random.default_rng(1)
    corner = rng.uniform(-5, (30, 50), [2, 6, 2])
    boxes = np.concatenate([corner, corner + rng.uniform(1, 60, [2, 6, 2])], axis=-1)
    boxes[0, 0] = [0, 0, 37, 61]  # the whole image
    boxes[0, 1] = [3, 4, 4, 5]  # one pixel
    boxes[0, 2] = [10, 0, 12, 61]  # much wider than high
    gt_index = rng.integers(0, 3, [2, 6]).astype(np.int32)
    got = maybe_graph(lambda *a: masks.mask_targets(*a, 7, for_xla))(
        tf.constant(gt_masks), tf.constant(boxes), tf.constant(gt_index)
    )
    for b, f in np.ndindex(2, 6):
        # The mean of the mask over each cell of the box.
        value = roi_align(gt_masks[b, gt_index[b, f]][..., None], boxes[b, f], 7, 0)[..., 0]
        clear = np.abs(value - 0.5) > 1e-9
        np.testing.assert_array_equal(got[b, f].numpy()[clear], value[clear] >= 0.5)
    assert 0.05 < np.mean(got) < 0.95


def test_exactly_one_half_is_foreground(for_xla):
    """The edge of the mask cuts the box's cells of 2 x 2 pixels through the middle."""
    gt_masks = np.zeros([1, 1, 8, 12], np.uint8)
    gt_masks[..., 3:] = 1
    got = masks.mask_targets(
        tf.constant(gt_masks), tf.constant([[[0.0, 0.0, 8.0, 8.0]]]), tf.constant([[0]]), 4, for_xla
    )
    np.testing.assert_array_equal(got[0, 0], [[0, 1, 1, 1]] * 4)


def test_padding_and_no_ground_truth(for_xla, maybe_graph):
    call = maybe_graph(lambda *a: masks.mask_targets(*a, 5, for_xla))
    boxes = tf.zeros([2, 3, 4])
    for gt_masks in (tf.zeros([2, 0, 16, 24], tf.uint8), tf.zeros([2, 2, 16, 24], tf.uint8)):
        got = call(gt_masks, boxes, tf.zeros([2, 3], tf.int32))
        assert got.shape == (2, 3, 5, 5) and not got.numpy().any()


def test_an_index_without_a_mask_is_empty(for_xla):
    ones = tf.ones([1, 2, 16, 24], tf.uint8)
    boxes = tf.constant([[[1.0, 1.0, 9.0, 9.0]] * 3])
    got = masks.mask_targets(ones, boxes, tf.constant([[-1, 1, 2]]), 4, for_xla).numpy()
    assert not got[0, [0, 2]].any() and got[0, 1].all()


@pytest.mark.parametrize("forward_pass", ("", "traj1_", "traj2_", "traj3_", "after0.02_"))
def test_detectron2_mask_targets(forward_pass, for_xla, test_data):
    """Every bit, those of values at 0.5 but for rounding included."""
    golden = np.load(test_data("golden/detectron2_train/train_142238.npz"))

    def unpack(name, shape):
        return np.unpackbits(golden[name], axis=-1).reshape(-1)[: np.prod(shape)].reshape(shape)

    gt_masks = unpack("gt_masks_0_packed", golden["gt_masks_0_shape"])
    foreground = golden[f"{forward_pass}roi_classes_0"] < 80
    boxes = golden[f"{forward_pass}roi_boxes_0"][foreground][:, [1, 0, 3, 2]]
    gt_index = golden[f"{forward_pass}roi_gt_index_0"][foreground].astype(np.int32)
    got = masks.mask_targets(
        tf.constant(gt_masks[None]),
        tf.constant(boxes[None]),
        tf.constant(gt_index[None]),
        28,
        for_xla,
    )
    expected = unpack(f"{forward_pass}mask_targets_packed", [len(boxes), 28, 28])
    np.testing.assert_array_equal(got[0], expected)
