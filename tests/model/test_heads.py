"""Box, mask and semantic head against numpy."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.model import box_head, deeplab_head, mask_head, semantic_head
from tests.model.test_layers import numpy_layer
from tests.model.test_resnet import relu
from tests.reference.resize import resize


def randomise(model, stddev=0.2):
    for v in model.variables:
        v.assign(tf.random.normal(v.shape, stddev=stddev))


def test_box_head(maybe_graph):
    rois = np.random.normal(size=(2, 3, 7, 7, 4)).astype(np.float32)
    head = box_head.BoxHead(16, num_classes=5)
    head(rois)
    randomise(head)
    logits, deltas = maybe_graph(head)(rois)
    fc1, b1, fc2, b2, classes, bc, boxes, bb = (
        v.numpy().astype(np.float64) for v in head.variables
    )
    x = relu(relu(rois.reshape(6, -1) @ fc1 + b1) @ fc2 + b2)
    np.testing.assert_allclose(logits, (x @ classes + bc).reshape(2, 3, 6), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(deltas, (x @ boxes + bb).reshape(2, 3, 5, 4), rtol=1e-4, atol=1e-4)


def test_deltas_of_class():
    deltas = tf.reshape(tf.range(2 * 3 * 2 * 4.0), [2, 3, 2, 4])
    chosen = box_head.deltas_of_class(deltas, tf.constant([[0, 1, 2], [1, -1, 0]]))  # 2: background
    zero = [0, 0, 0, 0]
    expected = [[deltas[0, 0, 0], deltas[0, 1, 1], zero], [deltas[1, 0, 1], zero, deltas[1, 2, 0]]]
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("class_ids", [[[0, 2, 1], [2, 2, -1]], [[0, 0, 0], [1, 1, 3]]])
def test_mask_head(maybe_graph, class_ids):
    rois = np.random.normal(size=(2, 3, 14, 14, 6)).astype(np.float32)
    head = mask_head.MaskHead(6, num_classes=3)
    head(rois, tf.constant(class_ids))
    randomise(head)
    logits = maybe_graph(head)(rois, tf.constant(class_ids)).numpy()
    assert logits.shape == (2, 3, 28, 28)
    x = rois.reshape(6, 14, 14, 6)
    for conv in head.convs:
        x = relu(numpy_layer(conv, x))
    up = np.zeros((6, 28, 28, 6))
    for a in range(2):
        for b in range(2):
            up[:, a::2, b::2] = x @ head.deconv_kernel.numpy()[:, a, b].astype(np.float64)
    up = relu(up + head.deconv_bias.numpy())
    all_masks = up @ head.predictor_kernel.numpy().T + head.predictor_bias.numpy()
    for i, class_id in enumerate(np.ravel(class_ids)):
        if 0 <= class_id < 3:
            expected = all_masks[i, :, :, class_id]
            np.testing.assert_allclose(logits.reshape(6, 28, 28)[i], expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(logits).all()


def test_mask_head_gradient_reaches_only_the_predictors_of_the_classes():
    head = mask_head.MaskHead(4, num_classes=3)
    rois = tf.random.normal([1, 2, 14, 14, 4])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(head(rois, tf.constant([[2, 0]])))
    gradient = tf.convert_to_tensor(tape.gradient(loss, head.predictor_kernel)).numpy()
    assert np.abs(gradient).sum(1).astype(bool).tolist() == [True, False, True]


def test_mask_head_without_rois():
    head = mask_head.MaskHead(4, num_classes=3)
    assert head(tf.zeros([2, 0, 14, 14, 4]), tf.zeros([2, 0], tf.int32)).shape == (2, 0, 28, 28)


@pytest.mark.parametrize("convs_per_stage", [1, 2])
@pytest.mark.parametrize("aggregation", ["sum", "concat"])
def test_semantic_head(maybe_graph, aggregation, convs_per_stage):
    hw = (64, 96)
    pyramid = {
        f"p{k}": np.random.normal(size=(2, hw[0] >> k, hw[1] >> k, 6)).astype(np.float32)
        for k in range(2, 7)
    }
    head = semantic_head.SemanticHead(32, 5, aggregation, convs_per_stage)
    head(pyramid)
    randomise(head)
    logits = maybe_graph(head)(pyramid)
    merged = []
    for level, convs in head.stages.items():
        x, convs = pyramid[level], list(convs)
        for _ in range({"p2": 1, "p3": 1, "p4": 2, "p5": 3}[level]):
            for _ in range(convs_per_stage):
                x = relu(numpy_layer(convs.pop(0), x))
            if level != "p2":
                x = resize(x, (2 * x.shape[1], 2 * x.shape[2]))
        assert not convs
        merged.append(x)
    merged = sum(merged) if aggregation == "sum" else np.concatenate(merged, -1)
    expected = numpy_layer(head.predictor, merged)
    assert logits.shape == (2, 16, 24, 5)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("output_stride, rates", [(8, (12, 24, 36)), (16, (6, 12, 18))])
def test_deeplab_head(maybe_graph, output_stride, rates):
    hw = 64 // output_stride, 96 // output_stride
    c5 = np.random.normal(size=(2, *hw, 3)).astype(np.float32)
    head = deeplab_head.DeepLabV3Head(5, output_stride)
    head({"p5": c5})
    randomise(head, 0.1)
    logits = maybe_graph(head)({"p5": c5})
    assert tuple(conv.dilation for conv in head.dilated) == rates
    pooled = relu(numpy_layer(head.pooled, c5.mean(axis=(1, 2), keepdims=True)))
    views = [relu(numpy_layer(conv, c5)) for conv in (head.pointwise, *head.dilated)]
    x = np.concatenate([*views, np.broadcast_to(pooled, views[0].shape)], axis=-1)
    x = relu(numpy_layer(head.refine, relu(numpy_layer(head.merge, x))))
    x = numpy_layer(head.predictor, x)
    assert logits.shape == (2, 16, 24, 5)
    np.testing.assert_allclose(logits, resize(x, (16, 24)), atol=1e-4)
