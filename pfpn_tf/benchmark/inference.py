"""Speed, memory and start of the exported model.

The model is exported, then loaded by a process of its own, as a server would do it: that process
tells the time to load and to answer first, the time of an answer and the peak memory.

Without trained weights the network gets random ones, whose predictors are brought to the means and
spreads that training gives them, so that the parts after them have a crowded photo's work: with the
default settings 54 of 100 detections reach the score that fusion asks for, and 44 of these and 5
stuff regions are left as segments.

Shapes: h, w size of the image.
"""

import os
import tempfile
import time
from typing import Any, Dict, Mapping, Sequence, Tuple

import numpy as np

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import measure
from pfpn_tf.data.categories import DatasetInfo

# Standard deviations of what the predictors of a random network give; all means are 0. Those of
# objectness and deltas are about a trained network's. That of class logits makes about half of the
# detections confident.
_OBJECTNESS_SPREAD, _ANCHOR_DELTA_SPREAD = 1.0, 0.2
_CLASS_LOGIT_SPREAD, _BOX_DELTA_SPREAD = 3.0, 0.5


def benchmark_inference(
    config: config_lib.Config,
    repeats: int,
    saved_model: str = "",
    precision: str = "float32",
    batch_size: int = 1,
    image_hw: Tuple[int, int] = (800, 1333),
    with_breakdown: bool = False,
) -> Dict[str, Any]:
    """Times the signatures of an export.

    Args:
      config: the network and its sizes, if there is no `saved_model`.
      repeats: timed answers.
      saved_model: directory of an export; empty: a network of `config` with random weights.
      precision: of that network, "float32" or "bfloat16".
      batch_size: equal images in a request.
      image_hw: their size.
      with_breakdown: also tell where the time of "serving_default" goes. The floor is that of the
        network of `config`; an export does not tell its own.

    Returns:
      load_ms, first_answer_ms; "panoptic" (decoded image to panoptic map) and "serving_default"
      (JPEG to PNG) as `measure.timed`; num_segments; peak_memory_mib, of which import_memory_mib
      is TensorFlow's Python, which a server does without; image_hw, batch_size; "breakdown"
      from `breakdown.measured`, if asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        counts: Dict[str, int] = {}
        if not saved_model:
            saved_model = os.path.join(folder, "random", "1")
            counts = measure.in_fresh_process(
                export_random_network, config, saved_model, precision, image_hw
            )
        image = photo(image_hw)
        result = measure.in_fresh_process(
            answer,
            saved_model,
            repeats,
            np.stack([image] * batch_size),
            [_jpeg(image)] * batch_size,
            precision if with_breakdown else "",
            {name: batch_size * count for name, count in counts.items()},
        )
    return {**result, "image_hw": list(image_hw), "batch_size": batch_size}


def export_random_network(
    config: config_lib.Config, export_dir: str, precision: str, image_hw: Tuple[int, int]
) -> Dict[str, int]:
    """Exports a network of `config` with random weights and COCO's numbers of classes.

    Args:
      config: the network.
      export_dir: as `exporter.export` takes it.
      precision: "float32" or "bfloat16".
      image_hw: size of the photo that it will be asked about.

    Returns:
      component to its multiply-adds for that photo.
    """
    import tensorflow as tf

    from pfpn_tf.benchmark import breakdown
    from pfpn_tf.serving import exporter

    tf.keras.utils.set_random_seed(0)
    info = coco_like_info()
    network = exporter.build_network(config, info, precision)
    if network.has_instances:
        spread_predictions(network, config, image_hw)
    exporter.export(exporter.module_of(network, config, info), export_dir)
    image, hw = _network_input(config.data, image_hw)
    threshold = tf.constant(config.model.fusion_score_threshold, tf.float64)
    return breakdown.multiply_adds(
        lambda: network(image[None], hw[None], mask_score_threshold=threshold)
    )


def spread_predictions(network, config, image_hw):
    """Gives the predictors of a random network's instance branch a trained one's means and spreads.

    Args:
      network: `PanopticFPN`, changed in place.
      config: of it.
      image_hw: size of the photo on whose features means and spreads are taken.
    """
    import tensorflow as tf

    from pfpn_tf.model import box_head, fpn, rpn
    from pfpn_tf.ops import roi_align

    def spread(predictor, features, deviation):
        features = [tf.reshape(x, [-1, x.shape[-1]]) for x in features]
        features = tf.cast(tf.concat(features, 0), tf.float32)  # [n, C]
        kernel = tf.reshape(predictor.kernel, [features.shape[1], -1])  # [C, predictions]
        predictions = tf.matmul(features, kernel)
        scale = deviation / tf.math.reduce_std(predictions)
        predictor.kernel.assign(predictor.kernel * scale)
        predictor.bias.assign(-tf.reduce_mean(predictions, 0) * scale)

    image, hw = _network_input(config.data, image_hw)
    pyramid = network.fpn(network.backbone(image[None]))
    pyramid, _ = fpn.branch_pyramids(pyramid, config.model.fpn_groups)
    hidden = [network.rpn_head.conv(features) for features in pyramid.values()]
    spread(network.rpn_head.objectness, hidden, _OBJECTNESS_SPREAD)
    spread(network.rpn_head.deltas, hidden, _ANCHOR_DELTA_SPREAD)
    logits, deltas = network.rpn_head(pyramid)
    anchors = rpn.pyramid_anchors(pyramid, config.model, tf.float32)
    proposals = rpn.propose(logits, deltas, anchors, hw[None], config.model, training=False)
    head = network.box_head
    rois = roi_align.multilevel_roi_align(
        pyramid, proposals.boxes, box_head.POOLED_SIZE, config.model.roi_sampling_ratio
    )
    features = head.fc2(head.fc1(tf.reshape(rois, [rois.shape[1], -1])))
    spread(head.deltas, [features], _BOX_DELTA_SPREAD)
    spread(head.classes, [features], _CLASS_LOGIT_SPREAD)


def _network_input(data, image_hw):
    """`photo(image_hw)` as the network takes it: [H, W, 3] float32 and content size [2]."""
    import tensorflow as tf

    from pfpn_tf.data import preprocess

    hw = preprocess.resized_hw(
        tf.constant(image_hw), data.eval_min_side, data.eval_max_side, data.resize
    )
    image = preprocess.resize_image(tf.constant(photo(image_hw)), hw, data.resize)
    image = preprocess.normalize(image, data.pixel_mean, data.pixel_std)
    return preprocess.pad_to(image, preprocess.padded_hw(hw, data.size_divisor)), hw


def coco_like_info() -> DatasetInfo:
    """80 thing and 53 stuff categories."""
    return DatasetInfo.from_coco_categories(
        [{"id": i, "name": f"category {i}", "isthing": int(i <= 80)} for i in range(1, 134)]
    )


def answer(
    saved_model: str,
    repeats: int,
    images: np.ndarray,
    encoded: Sequence[bytes],
    breakdown_precision: str = "",
    counts: Mapping[str, int] = {},
) -> Dict[str, Any]:
    """Loads an export in this process and times its answers; see `benchmark_inference`.

    Args:
      saved_model: directory of the export.
      repeats: timed answers.
      images: [B, h, w, 3] uint8, for "panoptic".
      encoded: B images, for "serving_default".
      breakdown_precision: type of the convolutions, whose rate is measured for the breakdown;
        empty: no breakdown.
      counts: component to its multiply-adds.
    """
    import tensorflow as tf  # and nothing else that a server of the export would not import

    import_memory = measure.memory_mib()
    start = time.perf_counter()
    loaded = tf.saved_model.load(saved_model)
    load_ms = 1e3 * (time.perf_counter() - start)
    panoptic = loaded.signatures["panoptic"]
    images, encoded = tf.constant(images), tf.constant(encoded)

    def run():
        return panoptic(images=images)["num_segments"].numpy()

    def run_bytes():
        return loaded.signatures["serving_default"](image_bytes=encoded)["scores"].numpy()

    first_ms = 1e3 * measure.seconds(run)
    timed = measure.timed(run, repeats)
    peak = measure.peak_memory_mib()  # of one signature, as a server that is asked for one
    result: Dict[str, Any] = {
        "load_ms": round(load_ms, 1),
        "first_answer_ms": round(first_ms, 1),
        "panoptic": timed,
        "peak_memory_mib": peak,
        "import_memory_mib": import_memory,
        "serving_default": measure.timed(run_bytes, repeats),
        "num_segments": int(run()[0]),
    }
    if breakdown_precision:
        from pfpn_tf.benchmark import breakdown

        result["breakdown"] = breakdown.measured(
            run_bytes, repeats, result["serving_default"], counts, breakdown_precision
        )
    return result


def photo(hw):
    """Something with edges at all scales: [h, w, 3] uint8."""
    import cv2

    rng = np.random.default_rng(0)
    image = np.zeros((*hw, 3), np.float32)
    for cells in (4, 16, 64):
        coarse = rng.uniform(0, 85, (cells, cells * 2, 3)).astype(np.float32)
        image += cv2.resize(coarse, hw[::-1], interpolation=cv2.INTER_NEAREST)
    return image.astype(np.uint8)


def _jpeg(image):
    """[h, w, 3] uint8 -> bytes."""
    import cv2

    return cv2.imencode(".jpg", image)[1].tobytes()
