"""The whole network in all its forms, on a tiny backbone."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.structures import GroundTruth
from tests import precision, tiny

K, S = 4, 6
TINY = {
    **tiny.SETTINGS,
    "anchor_sizes": config_lib.Model().anchor_sizes,
    "rpn_post_nms_top_k": 40,
    "rpn_samples_per_image": 32,
    "score_threshold": 0.0,
}
IMAGE_HW = [[64, 90], [50, 96]]


def tiny_model(**settings):
    config = config_lib.Config().replace(**{**TINY, **settings})
    return panoptic_fpn.build_model(config.model, K, S)


@pytest.fixture(scope="module")
def model():
    tf.keras.utils.set_random_seed(0)
    return tiny_model()


def images(dtype=np.float32):
    x = np.random.normal(size=(2, 64, 96, 3)).astype(dtype)
    for image, (height, width) in zip(x, IMAGE_HW):
        image[height:] = 0
        image[:, width:] = 0
    return tf.constant(x)


def ground_truth(num_instances=3, dtype=np.float32):
    boxes = np.zeros((2, num_instances, 4), dtype)
    class_ids = np.full((2, num_instances), -1, np.int32)
    masks = np.zeros((2, num_instances, 64, 96), np.uint8)
    for b in range(2):
        for i in range(num_instances - b):  # the second image has one instance less
            top, left = 4 * i, 20 * i + 3
            boxes[b, i] = top, left, top + 30, left + 25
            class_ids[b, i] = i % K
            masks[b, i, top : top + 30, left : left + 25] = 1
    semantic = np.random.randint(0, S, size=(2, 64, 96)).astype(np.uint8)
    return GroundTruth(*map(tf.constant, (boxes, class_ids, masks, semantic)))


SEED = tf.constant([[1, 2], [3, 4]])
IMAGE_SPECS = tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, 2], tf.int32)


def train(model, gt=None, x=None):
    return model(
        images() if x is None else x,
        tf.constant(IMAGE_HW),
        gt or ground_truth(),
        SEED,
        training=True,
    )


def test_training_needs_ground_truth(model):
    with pytest.raises(ValueError, match="training=True needs ground_truth"):
        model(images(), tf.constant(IMAGE_HW), seed=SEED, training=True)


@pytest.fixture(scope="module")
def train_graph(model):
    """`train` of the model in one graph for all sizes."""
    ground_truth_specs = GroundTruth(
        boxes=tf.TensorSpec([None, None, 4]),
        class_ids=tf.TensorSpec([None, None], tf.int32),
        masks=tf.TensorSpec([None, None, None, None], tf.uint8),
        semantic=tf.TensorSpec([None, None, None], tf.uint8),
    )
    function = tf.function(
        lambda x, hw, gt, seed: model(x, hw, gt, seed, training=True),
        input_signature=[*IMAGE_SPECS, ground_truth_specs, tf.TensorSpec([None, 2], tf.int32)],
        autograph=False,
    )
    return lambda gt: function(images(), tf.constant(IMAGE_HW), gt, SEED)


@pytest.mark.both_stacks
def test_inference(model):
    """Eagerly, and in one graph for all sizes."""
    function = tf.function(lambda x, hw: model(x, hw), input_signature=IMAGE_SPECS, autograph=False)
    x, hw = images(), tf.constant(IMAGE_HW)
    for outputs in (model(x, hw), function(x, hw)):
        found = outputs.detections
        assert found.boxes.shape == (2, 10, 4)
        assert found.mask_logits.shape == (2, 10, 28, 28)
        assert outputs.semantic_logits.shape == (2, 16, 24, S)
        assert (found.boxes.numpy().max(axis=1)[:, 2:] <= np.array(IMAGE_HW)).all()
        assert all(np.isfinite(t).all() for t in tf.nest.flatten(outputs))
    outputs = function(tf.zeros([1, 32, 160, 3]), tf.constant([[32, 160]]))
    assert outputs.semantic_logits.shape == (1, 8, 40, S)
    assert outputs.detections.boxes.shape == (1, 10, 4)


@pytest.mark.parametrize("how", ["eager", "graph"])
def test_training(how, model, train_graph):
    outputs = train_graph(ground_truth()) if how == "graph" else train(model)
    num_anchors = 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)
    assert outputs.objectness_logits.shape == (2, num_anchors)
    assert outputs.anchor_deltas.shape == (2, num_anchors, 4)
    assert outputs.rpn_targets.labels.shape == (2, num_anchors)
    assert outputs.class_logits.shape == (2, 16, K + 1)
    assert outputs.box_deltas.shape == (2, 16, 4)
    assert outputs.mask_logits.shape[2:] == (28, 28)
    assert outputs.mask_logits.shape[:2] == outputs.roi_targets.mask_class_ids.shape
    assert outputs.semantic_logits.shape == (2, 16, 24, S)
    background = outputs.roi_targets.class_ids.numpy() == K
    assert background.any() and not outputs.box_deltas.numpy()[background].any()


@pytest.mark.parametrize("num_instances", [0, 1])
def test_training_without_instances(num_instances, train_graph):
    """M = 0, and M = 1 whose only row is padding in the second image."""
    outputs = train_graph(ground_truth(num_instances))
    assert (outputs.roi_targets.class_ids.numpy()[1] >= K).any()
    assert np.isfinite(outputs.class_logits).all()


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_tasks(task):
    model = tiny_model(task=task)
    outputs, targets = model(images(), tf.constant(IMAGE_HW)), train(model)
    has_instances = task == "instance"
    assert (outputs.detections is not None) == has_instances
    assert (outputs.semantic_logits is None) == has_instances
    assert (targets.class_logits is not None) == has_instances
    assert (targets.rpn_targets is not None) == has_instances
    assert (targets.semantic_logits is None) == has_instances
    names = " ".join(v.name for v in model.variables)
    assert ("semantic_head" in names) != has_instances
    assert ("rpn_head" in names) == ("mask_head" in names) == has_instances


def test_a_grouped_pyramid_gives_each_branch_its_half():
    """Table 3d: the second half's output convolution has no part in the instance branch."""
    model = tiny_model(fpn_channels=64, fpn_groups=2)
    assert model.rpn_head.conv.kernel.shape == (3, 3, 32, 32)
    conv = model.fpn.output_convs["p2"]
    with tf.GradientTape(persistent=True) as tape:
        outputs = train(model)
        instance = tf.reduce_sum(outputs.class_logits**2) + tf.reduce_sum(outputs.mask_logits**2)
        instance += tf.reduce_sum(outputs.objectness_logits**2)
        semantic = tf.reduce_sum(outputs.semantic_logits**2)
    first, last = slice(32), slice(32, 64)
    for loss, own, other in ((instance, first, last), (semantic, last, first)):
        gradient = tape.gradient(loss, conv.kernel).numpy()
        assert np.abs(gradient[..., own]).max() > 0
        assert not gradient[..., other].any()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"task": "panoptic"}, marks=pytest.mark.both_stacks),
        {"decoder": "symmetric"},
        {"decoder": "none", "semantic_head": "deeplabv3", "output_stride": 8},
        {"decoder": "none", "semantic_head": "deeplabv3", "output_stride": 16},
        {"semantic_convs_per_stage": 2, "semantic_aggregation": "concat"},
    ],
)
def test_every_trainable_variable_has_a_gradient(settings):
    """In all variants; each gives semantic logits at stride 4."""
    model = tiny_model(**{"task": "semantic", **settings})
    with tf.GradientTape() as tape:
        outputs = train(model)._replace(rpn_targets=None, roi_targets=None)
        loss = tf.add_n([tf.reduce_sum(tf.square(x)) for x in outputs if x is not None])
    assert outputs.semantic_logits.shape == (2, 16, 24, S)
    gradients = tape.gradient(loss, model.trainable_variables)
    missing = [v.name for v, g in zip(model.trainable_variables, gradients) if g is None]
    assert not missing
    assert all(np.isfinite(tf.convert_to_tensor(g)).all() for g in gradients)


def test_the_padding_of_an_image_does_not_depend_on_its_neighbour(model):
    """An image alone gives what it gives in a batch."""
    x = images()
    both = model(x, tf.constant(IMAGE_HW)).detections
    for b in range(2):
        alone = model(x[b : b + 1], tf.constant(IMAGE_HW[b : b + 1])).detections
        np.testing.assert_allclose(alone.scores[0], both.scores[b], atol=1e-5)
        np.testing.assert_allclose(alone.boxes[0], both.boxes[b], atol=1e-2)


@pytest.mark.parametrize(
    "policy, dtype",
    [("float64", tf.float64), ("mixed_bfloat16", tf.float32), ("mixed_float16", tf.float32)],
)
def test_every_float_that_comes_out_is_in_the_precision_of_the_variables(policy, dtype):
    numpy_dtype = dtype.as_numpy_dtype
    with precision.policy(policy):
        model, x = tiny_model(), images(numpy_dtype)
        outputs = train(model, ground_truth(dtype=numpy_dtype), x)
        found = model(x, tf.constant(IMAGE_HW))
    assert all(v.dtype == dtype for v in model.variables)
    for tensor in tf.nest.flatten((outputs, found)):
        assert not tensor.dtype.is_floating or tensor.dtype == dtype
        assert np.isfinite(tensor).all()
