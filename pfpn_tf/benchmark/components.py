"""Speed of the operations that take the time: RoIAlign, group norm, fusion.

Sizes are those of an 800x1333 image: p2 is 208x336 once padded to a multiple of 32.
"""

from typing import Any, Callable, Dict

import numpy as np
import tensorflow as tf

from pfpn_tf import structures
from pfpn_tf.benchmark import measure
from pfpn_tf.model import norms
from pfpn_tf.ops.roi_align import multilevel_roi_align
from pfpn_tf.postprocess import fusion, semantic_labels

IMAGE_HW = (800, 1333)
PADDED_HW = (832, 1344)


def benchmark_roi_align(repeats: int) -> Dict[str, Any]:
    """1000 boxes pooled to 7x7 and 100 to 14x14, with and without the gradient.

    Returns:
      "forward_1000x7x7", "with_gradient_1000x7x7", ... to what `measure.timed` returns.
    """
    rng = np.random.default_rng(0)
    pyramid = {
        f"p{level}": tf.constant(_normal(rng, 1, PADDED_HW[0] >> level, PADDED_HW[1] >> level, 256))
        for level in range(2, 6)
    }
    results = {}
    for count, size in ((1000, 7), (100, 14)):
        boxes = tf.constant(random_boxes(rng, count)[None])

        def pool(pyramid, boxes=boxes, size=size):
            return multilevel_roi_align(pyramid, boxes, size, sampling_ratio=2)

        results.update(_both_directions(f"{count}x{size}x{size}", pool, pyramid, repeats))
    return results


def benchmark_group_norm(repeats: int) -> Dict[str, Any]:
    """Group norm and ReLU of 208x336x128, the largest map of the semantic branch.

    Returns:
      "forward_208x336x128" and "with_gradient_208x336x128" to what `measure.timed` returns.
    """
    x = tf.constant(_normal(np.random.default_rng(0), 1, PADDED_HW[0] >> 2, PADDED_HW[1] >> 2, 128))
    norm = norms.GroupNorm(relu=True)
    norm.build(x.shape)
    return _both_directions("208x336x128", norm, x, repeats)


def benchmark_fusion(repeats: int) -> Dict[str, Any]:
    """100 instances and 54 semantic classes fused at 800x1333, and its parts.

    The boxes have COCO-like sizes; all score above the threshold.

    Returns:
      "instances" (paste, overlap test, canvas), "semantic_labels" (4x upsampling and argmax) and
      "all" to what `measure.timed` returns; "num_segments".
    """
    rng = np.random.default_rng(0)
    count, num_stuff = 100, 53
    detections = structures.Detections(
        boxes=tf.constant(random_boxes(rng, count)),
        scores=tf.constant(np.linspace(1.0, 0.5, count), tf.float32),
        class_ids=tf.constant(rng.integers(0, 80, count), tf.int32),
        num_detections=tf.constant(count),
        mask_logits=tf.constant(_round_masks(rng, count)),
    )
    coarse = _normal(rng, 1, 13, 21, 1 + num_stuff)
    hw4 = (PADDED_HW[0] // 4, PADDED_HW[1] // 4)
    logits = tf.image.resize(coarse, hw4, "bicubic")[0] * 5.0
    settings = fusion.FusionSettings(
        np.arange(1, 81, dtype=np.int32), np.r_[-1, 100 : 100 + num_stuff].astype(np.int32)
    )
    image_hw = tf.constant(IMAGE_HW)

    @tf.function(autograph=False)
    def canvas():
        return fusion.instance_canvas(detections, image_hw, image_hw, settings)

    @tf.function(autograph=False)
    def labels():
        return semantic_labels.semantic_labels(logits, image_hw, image_hw)

    @tf.function(autograph=False)
    def fuse():
        outputs = structures.InferenceOutputs(detections, logits)
        return fusion.fuse_image(outputs, image_hw, image_hw, settings)

    return {
        "instances": measure.timed(lambda: canvas().numpy(), repeats),
        "semantic_labels": measure.timed(lambda: labels().numpy(), repeats),
        "all": measure.timed(lambda: fuse().panoptic_ids.numpy(), repeats),
        "num_segments": int(fuse().num_segments),
    }


def random_boxes(rng: np.random.Generator, count: int, hw=IMAGE_HW) -> np.ndarray:
    """Boxes of COCO-like sizes (16 to 512 pixels, small ones more often): [count, 4] yxyx."""
    sides = 2.0 ** rng.uniform(4.0, 9.0, (count, 1)) * 2.0 ** rng.uniform(-0.5, 0.5, (count, 2))
    sides = np.minimum(sides, hw)
    start = rng.uniform(0.0, 1.0, (count, 2)) * (np.array(hw) - sides)
    return np.concatenate([start, start + sides], axis=1).astype(np.float32)


def _round_masks(rng, count, size=28):
    """Logits of blobs that fill about two thirds of their boxes: [count, size, size]."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    radius = rng.uniform(0.8, 1.1, (count, 1, 1))
    return (8.0 * (radius - np.hypot(y, x))).astype(np.float32)


def _normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def _both_directions(name: str, function: Callable, inputs, repeats):
    """Times `function(inputs)` alone, and together with its gradient."""
    upstream = tf.random.stateless_normal(function(inputs).shape, [0, 0])

    @tf.function(autograph=False)
    def forward():
        return function(inputs)

    @tf.function(autograph=False)
    def with_gradient():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result = function(inputs)
        # Both are returned, so that nothing of the forward pass is pruned.
        return result, tape.gradient(result, inputs, output_gradients=upstream)

    return {
        f"forward_{name}": measure.timed(lambda: _wait(forward()), repeats),
        f"with_gradient_{name}": measure.timed(lambda: _wait(with_gradient()), repeats),
    }


def _wait(tensors):
    for tensor in tf.nest.flatten(tensors):
        tensor[(0,) * tensor.shape.rank].numpy()
