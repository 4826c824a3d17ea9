"""From photos to panoptic maps, the way an evaluation asks for: by one network or two, and with the
semantic branch looking at several sizes and mirror images.

Shapes: B images · H, W padded size · h, w original size · D detections · S semantic classes ·
H4, W4 padded size / 4.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf import structures
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.postprocess import fusion, instances, segment_table, semantic_labels

# What decides how a photo becomes an input.
_PREPROCESSING = (
    "eval_min_side",
    "eval_max_side",
    "pixel_mean",
    "pixel_std",
    "size_divisor",
    "resize",
)


class ImageOutputs(NamedTuple):
    """What the network says about one image, or a batch of them.

    Attributes:
      panoptic: `PanopticResult`; None without both branches.
      labels: [h, w] semantic class per pixel, S where undefined; None without a semantic branch.
      detections: `Detections` in original pixels, from `place_instances`; None without an instance
        branch.
    """

    panoptic: Optional[structures.PanopticResult] = None
    labels: Optional[tf.Tensor] = None
    detections: Optional[structures.Detections] = None


class Network(NamedTuple):
    """A network and the settings it was trained with."""

    config: config_lib.Config
    model: tf.keras.Model


class Inference:
    """Forward passes and fusion of an evaluation.

    With several views of the semantic branch (--semantic_scales, --semantic_flip) their class
    probabilities are averaged at 1/4 of the input of scale 1. Probabilities, because logits are
    defined up to a constant at each pixel only, and that differs from view to view. The logarithm
    of the mean then takes the place of the logits: a single view gives the labels it gives alone.

    Attributes:
      settings: for each input, the settings by which it is made; the first one is that of `config`.
    """

    def __init__(
        self,
        config: config_lib.Config,
        info: DatasetInfo,
        model: tf.keras.Model,
        semantic: Optional[Network] = None,
    ):
        """Plans the inputs.

        Args:
          config: settings of the evaluation and of `model`.
          info: the dataset.
          model: the network; with `semantic` only its instances count.
          semantic: a second network, for the semantic branch.
        """
        self._config = config
        self._model = model
        self._semantic_model = semantic.model if semantic else model
        self._two_networks = semantic is not None
        self._fusion = fusion.fusion_settings(info, config.model)
        self.settings: List[config_lib.Config] = [config]
        self._views: List[Tuple[int, bool]] = []  # which input, and whether mirrored
        self._frame = 0
        if config.model.task == "instance":
            return
        own = semantic.config if semantic else config
        self._frame = self._input(config, own, 1.0)
        flips = (False, True) if config.eval.semantic_flip else (False,)
        for scale in config.eval.semantic_scales:
            position = self._input(config, own, scale)
            self._views += [(position, flip) for flip in flips]

    def _input(self, config, own, scale):
        """Position in `settings` of the input that network `own` wants at a scale."""
        wanted = {name: getattr(own.data, name) for name in _PREPROCESSING}
        for side in ("eval_min_side", "eval_max_side"):
            wanted[side] = max(round(scale * wanted[side]), 32)
        made = config.replace(**wanted)
        if made not in self.settings:
            self.settings.append(made)
        return self.settings.index(made)

    def __call__(
        self, inputs: Sequence[Tuple[tf.Tensor, tf.Tensor]], original_hw: tf.Tensor
    ) -> ImageOutputs:
        """In graph.

        Args:
          inputs: as many as `settings`, made by them: images [B, H, W, 3], normalised and zero in
            the padding, and their content size, [B, 2] int32.
          original_hw: [B, 2] int32.

        Returns:
          Batched `ImageOutputs`; maps are padded with 0 to the largest original size.
        """
        images, image_hw = inputs[0]
        outputs = structures.InferenceOutputs()
        if self._config.model.task != "semantic" or (self._frame, False) in self._views:
            outputs = self._model(images, image_hw, training=False)
        if self._views:
            own = None if self._two_networks else outputs.semantic_logits
            outputs = outputs._replace(semantic_logits=self._semantic_logits(inputs, own))
        _, semantic_hw = inputs[self._frame]
        return batch_outputs(outputs, image_hw, original_hw, self._fusion, semantic_hw)

    def _semantic_logits(self, inputs, known):
        """[B, H4, W4, S] in the frame of scale 1; `known` are those of its plain view, if
        computed.
        """
        frame_images, frame_hw = inputs[self._frame]
        size = tf.shape(frame_images)[1:3] // semantic_labels.SEMANTIC_STRIDE
        probs = []
        for position, flip in self._views:
            images, image_hw = inputs[position]
            is_plain = (position, flip) == (self._frame, False)
            if flip:
                # The content from left to right; the padding stays where it is.
                images = tf.reverse_sequence(images, image_hw[:, 1], seq_axis=2, batch_axis=0)
            is_known = known is not None and is_plain
            logits = known if is_known else self._semantic_model.semantic_logits(images)
            if len(self._views) == 1 and is_plain:
                return logits
            probs.append(resample(tf.nn.softmax(logits), image_hw, size, frame_hw, flip))
        mean = tf.add_n(probs) / len(probs)
        # A logarithm of 0 would turn into not-a-number where fusion weighs it with 0.
        return tf.math.log(tf.maximum(mean, 1e-30))


def resample(
    maps: tf.Tensor, image_hw: tf.Tensor, size: tf.Tensor, frame_hw: tf.Tensor, flip: bool
) -> tf.Tensor:
    """Brings maps at 1/4 of one input bilinearly to 1/4 of another input of the same photo.

    Where the cells of both coincide, values do not change by a bit, nor do they between mirror
    images whose width is a multiple of 4. Padded cells do not count: a cell without content gets
    the value of the last cell with content.

    Args:
      maps: [B, h4, w4, S] of an input with content size `image_hw`, [B, 2].
      size: [2] H4, W4 to bring it to. frame_hw: [B, 2] content size there.
      flip: whether the input of `maps` was mirrored.

    Returns:
      [B, H4, W4, S].
    """
    stride = semantic_labels.SEMANTIC_STRIDE
    image_hw, frame_hw = tf.cast(image_hw, tf.float64), tf.cast(frame_hw, tf.float64)
    for axis in (0, 1):
        centre = tf.cast(tf.range(size[axis]), tf.float64)[None] + 0.5  # [1, n], in cells
        position = centre * image_hw[:, axis, None] / frame_hw[:, axis, None]  # [B, n]
        if flip and axis == 1:
            position = image_hw[:, 1, None] / stride - position
        last = tf.math.ceil(image_hw[:, axis, None] / stride) - 1.0  # cell with content, [B, 1]
        position = tf.clip_by_value(position - 0.5, tf.zeros_like(last), last)
        low = tf.floor(position)
        share = tf.cast(position - low, maps.dtype)  # of the cell after `low`
        share = share[:, :, None, None] if axis == 0 else share[:, None, :, None]
        high = tf.cast(tf.minimum(low + 1.0, last), tf.int32)
        before = tf.gather(maps, tf.cast(low, tf.int32), axis=1 + axis, batch_dims=1)
        after = tf.gather(maps, high, axis=1 + axis, batch_dims=1)
        maps = before * (1.0 - share) + after * share
    return maps


def batch_outputs(
    outputs: structures.InferenceOutputs,
    image_hw: tf.Tensor,
    original_hw: tf.Tensor,
    settings: fusion.FusionSettings,
    semantic_hw: tf.Tensor,
) -> ImageOutputs:
    """Instances, labels and panoptic maps at original size, in graph.

    Args:
      outputs: of the network, batched.
      image_hw: [B, 2] int32. original_hw: [B, 2] int32.
      settings: from `fusion.fusion_settings`.
      semantic_hw: [B, 2] int32 content size of what the semantic branch saw.

    Returns:
      Batched `ImageOutputs`; maps are padded with 0 to the largest original size.
    """
    has_instances = outputs.detections is not None
    has_semantics = outputs.semantic_logits is not None
    padded_hw = tf.reduce_max(original_hw, 0)
    both_hw = tf.stack([image_hw, semantic_hw], 1)  # [B, 2, 2]

    def one_image(image_outputs, hw, full_hw):
        instance_hw, labels_hw = hw[0], hw[1]
        found = {}
        if has_instances:
            detections = image_outputs.detections
            found["detections"] = instances.place_instances(detections, instance_hw, full_hw)
        if has_semantics:
            rest = padded_hw - full_hw
            padding = [[0, rest[0]], [0, rest[1]]]
            logits = image_outputs.semantic_logits
            labels = semantic_labels.semantic_labels(logits, labels_hw, full_hw)
            found["labels"] = tf.pad(tf.cast(labels, tf.int32), padding)
        if has_instances and has_semantics:
            result = fusion.fuse_image(image_outputs, instance_hw, full_hw, settings, labels)
            ids = tf.pad(result.panoptic_ids, padding)
            found["panoptic"] = result._replace(panoptic_ids=ids)
        return found

    signature: Dict[str, Any] = {}
    if has_instances:
        signature["detections"] = tf.nest.map_structure(
            lambda part: tf.TensorSpec(part.shape[1:], part.dtype), outputs.detections
        )
    if has_semantics:
        signature["labels"] = tf.TensorSpec([None, None], tf.int32)
    if has_instances and has_semantics:
        signature["panoptic"] = segment_table.result_signature(outputs)
    found = fusion.map_images(one_image, outputs, both_hw, original_hw, signature)
    return ImageOutputs(**found)
