"""What the parts of the network hand to each other.

All of them are NamedTuples, hence `tf.nest` structures: they pass through `tf.function`,
`tf.map_fn` and replicas as they are.

Shapes: B images · M padded ground-truth instances · A anchors of all levels · N proposals ·
R sampled RoIs · F RoI slots for the mask head (foreground first) · D detections · S segments ·
H, W padded size · h, w original size · K thing classes.

Boxes are [..., 4] yxyx in absolute pixels of the padded network input unless the name says
otherwise; coordinates are continuous (pixel (0, 0) covers [0, 1) x [0, 1)).
"""

from typing import Dict, NamedTuple, Optional

import tensorflow as tf


class GroundTruth(NamedTuple):
    """Training labels of a batch, padded to M instances (M may be 0).

    Attributes:
      boxes: [B, M, 4] float yxyx pixels; zeros in padded rows.
      class_ids: [B, M] int32 in 0..K-1; -1 in padded rows.
      masks: [B, M, H, W] uint8, 0 or 1, at the size of the padded input.
      semantic: [B, H, W] uint8 semantic class; 255 is void (ignored by the loss).
    """

    boxes: tf.Tensor
    class_ids: tf.Tensor
    masks: tf.Tensor
    semantic: tf.Tensor


class Proposals(NamedTuple):
    """Region proposals after NMS, by falling objectness.

    Attributes:
      boxes: [B, N, 4] float yxyx pixels, clipped to each image; zeros in invalid rows.
      logits: [B, N] float objectness before the sigmoid.
      valid: [B, N] bool; invalid rows are padding at the end.
    """

    boxes: tf.Tensor
    logits: tf.Tensor
    valid: tf.Tensor


class RpnTargets(NamedTuple):
    """Anchor targets.

    Attributes:
      labels: [B, A] int32: 1 positive, 0 negative, -1 ignored (between the thresholds or not
        sampled).
      deltas: [B, A, 4] float (dy, dx, dh, dw) towards the matched box; meaningful where the
        label is 1, zero elsewhere.
      gt_index: [B, A] int32 index of the best ground-truth box.
    """

    labels: tf.Tensor
    deltas: tf.Tensor
    gt_index: tf.Tensor


class RoiTargets(NamedTuple):
    """RoIs sampled for training the box and mask heads; foreground first, padding last.

    Attributes:
      boxes: [B, R, 4] float yxyx pixels.
      valid: [B, R] bool.
      class_ids: [B, R] int32: 0..K-1 foreground, K background, -1 padding.
      gt_index: [B, R] int32 index of the best ground-truth box.
      deltas: [B, R, 4] float targets with the box head's weights; zero off the foreground.
      mask_boxes: [B, F, 4] the first F rows of `boxes`: every foreground RoI is among them.
      mask_class_ids: [B, F] int32; -1 where the row is not foreground.
      masks: [B, F, 28, 28] float 0 or 1 targets.
    """

    boxes: tf.Tensor
    valid: tf.Tensor
    class_ids: tf.Tensor
    gt_index: tf.Tensor
    deltas: tf.Tensor
    mask_boxes: tf.Tensor
    mask_class_ids: tf.Tensor
    masks: tf.Tensor


class Detections(NamedTuple):
    """Final instances in the frame of the padded input, by falling score.

    Attributes:
      boxes: [B, D, 4] float yxyx pixels, clipped to each image.
      scores: [B, D] float in 0..1; 0 in padded rows.
      class_ids: [B, D] int32 in 0..K-1; -1 in padded rows.
      num_detections: [B] int32.
      mask_logits: [B, D, 28, 28] float, the channel of the predicted class; None before the
        mask head has run.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    class_ids: tf.Tensor
    num_detections: tf.Tensor
    mask_logits: Optional[tf.Tensor] = None


class TrainOutputs(NamedTuple):
    """What the losses need from one training forward pass.

    Attributes:
      objectness_logits: [B, A].
      anchor_deltas: [B, A, 4].
      rpn_targets: `RpnTargets`.
      class_logits: [B, R, K + 1], background last.
      box_deltas: [B, R, 4] of the ground-truth class (zeros off the foreground).
      mask_logits: [B, F, 28, 28] of the ground-truth class.
      roi_targets: `RoiTargets`.
      semantic_logits: [B, H / 4, W / 4, S].

    A task that lacks a branch leaves its fields None.
    """

    objectness_logits: Optional[tf.Tensor] = None
    anchor_deltas: Optional[tf.Tensor] = None
    rpn_targets: Optional[RpnTargets] = None
    class_logits: Optional[tf.Tensor] = None
    box_deltas: Optional[tf.Tensor] = None
    mask_logits: Optional[tf.Tensor] = None
    roi_targets: Optional[RoiTargets] = None
    semantic_logits: Optional[tf.Tensor] = None


class InferenceOutputs(NamedTuple):
    """What post-processing needs from one inference forward pass.

    Attributes:
      detections: `Detections` with mask logits, or None for a semantic-only network.
      semantic_logits: [B, H / 4, W / 4, S], or None for an instance-only network.
    """

    detections: Optional[Detections] = None
    semantic_logits: Optional[tf.Tensor] = None


class PanopticResult(NamedTuple):
    """A panoptic map with its segment table, for one image (batched: with a leading B).

    Attributes:
      panoptic_ids: [h, w] int32 segment id per pixel; 0 is void; ids run from 1.
      num_segments: [] int32.
      segment_ids: [S] int32; 0 in padded rows.
      category_ids: [S] int32, the dataset's own ids; 0 in padded rows.
      is_thing: [S] bool.
      scores: [S] float32; of stuff the mean probability of its class where it is the likeliest.
      areas: [S] int32 pixels.
      boxes: [S, 4] float32 yxyx pixels of the original image, tight around the segment.
    """

    panoptic_ids: tf.Tensor
    num_segments: tf.Tensor
    segment_ids: tf.Tensor
    category_ids: tf.Tensor
    is_thing: tf.Tensor
    scores: tf.Tensor
    areas: tf.Tensor
    boxes: tf.Tensor


Pyramid = Dict[str, tf.Tensor]
"""Feature maps by level name: "p2".."p6", level l with stride 2**l, [B, Hl, Wl, C]."""
