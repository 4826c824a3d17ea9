"""The whole network: Panoptic FPN, or Mask R-CNN or Semantic FPN on the same parts.

Shapes: B images · H, W padded size · A anchors of all levels · N proposals · R sampled RoIs ·
F RoIs for masks · D detections · K thing classes · S semantic classes.
"""

from typing import Optional, Union

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.model import box_head, detections, mask_head, rpn, targets
from pfpn_tf.model.deeplab_head import DeepLabV3Head
from pfpn_tf.model.fpn import FPN, branch_pyramids
from pfpn_tf.model.resnet import ResNet
from pfpn_tf.model.semantic_head import SemanticHead
from pfpn_tf.model.symmetric_decoder import SymmetricDecoder
from pfpn_tf.ops.roi_align import multilevel_roi_align
from pfpn_tf.structures import GroundTruth, InferenceOutputs, TrainOutputs
from pfpn_tf.utils.errors import UserError


class PanopticFPN(tf.keras.Model):
    """Backbone and FPN shared by an instance branch (Mask R-CNN) and a semantic branch.

    Args:
      config: settings of the model.
      num_thing_classes: K.
      num_semantic_classes: S.
      for_xla: whether XLA compiles the training pass. It then consists of operations that XLA has,
        with shapes that follow from the batch's shape alone; outside XLA the others are faster.
    """

    def __init__(
        self,
        config: config_lib.Model,
        num_thing_classes: int,
        num_semantic_classes: int,
        for_xla: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.config = config
        self.num_thing_classes = num_thing_classes
        self.num_semantic_classes = num_semantic_classes
        self.for_xla = for_xla
        self.has_instances = config.task in ("panoptic", "instance")
        self.has_semantics = config.task in ("panoptic", "semantic")
        self.backbone = ResNet(
            config.backbone,
            config.backbone_norm,
            config.stride_in_1x1,
            config.freeze_stages,
            config.output_stride,
            config.backbone_recompute,
            name="backbone",
        )
        self.fpn = build_decoder(config)
        if self.has_instances:
            num_anchors = len(config.anchor_aspect_ratios)
            branch_channels = config.fpn_channels // config.fpn_groups
            self.rpn_head = rpn.RPNHead(branch_channels, num_anchors, name="rpn_head")
            self.box_head = box_head.BoxHead(
                config.box_fc_channels, num_thing_classes, name="box_head"
            )
            self.mask_head = mask_head.MaskHead(
                config.mask_channels, num_thing_classes, config.head_norm, name="mask_head"
            )
        if self.has_semantics:
            self.semantic_head = build_semantic_head(config, num_semantic_classes)

    def build(self, input_shape=None):
        """Creates every variable by running each part on a few pixels."""
        with tf.init_scope():
            pyramid = self.fpn(self.backbone(tf.zeros([1, 64, 64, 3])))
            instance_pyramid, semantic_pyramid = branch_pyramids(pyramid, self.config.fpn_groups)
            if self.has_instances:
                channels = instance_pyramid["p6"].shape[-1]
                self.rpn_head({"p6": instance_pyramid["p6"]})
                self.box_head(
                    tf.zeros([1, 1, box_head.POOLED_SIZE, box_head.POOLED_SIZE, channels])
                )
                self.mask_head(
                    tf.zeros([1, 1, mask_head.POOLED_SIZE, mask_head.POOLED_SIZE, channels]),
                    tf.zeros([1, 1], tf.int32),
                )
            if self.has_semantics:
                self.semantic_head(semantic_pyramid)
        self.built = True

    @tf.autograph.experimental.do_not_convert  # nothing here needs it; tracing takes a sixth
    def call(
        self,
        images: tf.Tensor,
        image_hw: tf.Tensor,
        ground_truth: Optional[GroundTruth] = None,
        seed: Optional[tf.Tensor] = None,
        training: bool = False,
        mask_score_threshold: Optional[tf.Tensor] = None,
    ) -> Union[TrainOutputs, InferenceOutputs]:
        """The forward pass.

        Args:
          images: [B, H, W, 3] normalised RGB, zero-padded; H, W multiples of 32.
          image_hw: [B, 2] int32 content size.
          ground_truth: labels. With them, or in training, the output is what the losses need.
          seed: [B, 2] int32 stateless seeds of the sampling; with ground truth only.
          training: whether norms gather statistics.
          mask_score_threshold: [] float64; inference only. Detections with a lower score need no
            mask: they may get zeros. None: all get theirs.

        Returns:
          `TrainOutputs` or `InferenceOutputs`; a branch that the task lacks is None there.
        """
        pyramid, semantic_pyramid = self._pyramids(images, training)
        if training or ground_truth is not None:
            return self._train(pyramid, semantic_pyramid, image_hw, ground_truth, seed, training)
        return self._infer(pyramid, semantic_pyramid, image_hw, mask_score_threshold)

    def _train(
        self, pyramid, semantic_pyramid, image_hw, ground_truth, seed, training
    ) -> TrainOutputs:
        """What the losses need."""
        outputs = TrainOutputs()
        if self.has_semantics:
            logits = self.semantic_head(semantic_pyramid, training=training)
            outputs = outputs._replace(semantic_logits=logits)
        if not self.has_instances:
            return outputs
        if ground_truth is None:
            raise ValueError("training=True needs ground_truth.")

        logits, deltas = self.rpn_head(pyramid)
        anchors = rpn.pyramid_anchors(pyramid, self.config, logits["p2"].dtype)
        proposals = rpn.propose(
            logits, deltas, anchors, image_hw, self.config, training=True, for_xla=self.for_xla
        )
        rpn_targets = targets.rpn_targets(
            rpn.all_levels(anchors, axis=0), ground_truth, seed, self.config
        )
        roi_targets = targets.roi_targets(
            proposals, ground_truth, self.num_thing_classes, seed, self.config, self.for_xla
        )
        rois = self._pool(pyramid, roi_targets.boxes, box_head.POOLED_SIZE, self.for_xla)
        class_logits, box_deltas = self.box_head(rois)
        rois = self._pool(pyramid, roi_targets.mask_boxes, mask_head.POOLED_SIZE, self.for_xla)
        return outputs._replace(
            objectness_logits=rpn.all_levels(logits, axis=1),
            anchor_deltas=rpn.all_levels(deltas, axis=1),
            rpn_targets=rpn_targets,
            class_logits=class_logits,
            box_deltas=box_head.deltas_of_class(box_deltas, roi_targets.class_ids),
            mask_logits=self.mask_head(rois, roi_targets.mask_class_ids, training=training),
            roi_targets=roi_targets,
        )

    def _infer(self, pyramid, semantic_pyramid, image_hw, mask_score_threshold) -> InferenceOutputs:
        """What fusion needs."""
        found = None
        if self.has_instances:
            logits, deltas = self.rpn_head(pyramid)
            anchors = rpn.pyramid_anchors(pyramid, self.config, logits["p2"].dtype)
            proposals = rpn.propose(logits, deltas, anchors, image_hw, self.config, training=False)
            rois = self._pool(pyramid, proposals.boxes, box_head.POOLED_SIZE)
            class_logits, box_deltas = self.box_head(rois)
            found = detections.detect(proposals, class_logits, box_deltas, image_hw, self.config)
            found = self._with_masks(pyramid, found, mask_score_threshold)
        if not self.has_semantics:
            return InferenceOutputs(found)
        if found is not None:
            # One branch after the other: side by side they need half as much memory again.
            with tf.control_dependencies([found.mask_logits]):
                semantic_pyramid = {k: tf.identity(x) for k, x in semantic_pyramid.items()}
        return InferenceOutputs(found, self.semantic_head(semantic_pyramid))

    def _with_masks(self, pyramid, found, score_threshold):
        """The detections with masks; those below the threshold get zeros where that saves time."""
        boxes, class_ids, num_rows = found.boxes, found.class_ids, found.boxes.shape[1]
        if score_threshold is not None:
            reached = tf.cast(found.scores, tf.float64) >= score_threshold
            # Scores fall, so these rows lead. At least one: a group norm cannot normalise nothing.
            needed = tf.reduce_max(tf.math.count_nonzero(reached, axis=1, dtype=tf.int32))
            needed = tf.maximum(needed, 1)
            boxes, class_ids = boxes[:, :needed], class_ids[:, :needed]
        masks = self.mask_head(self._pool(pyramid, boxes, mask_head.POOLED_SIZE), class_ids)
        masks = tf.pad(masks, [[0, 0], [0, num_rows - tf.shape(masks)[1]], [0, 0], [0, 0]])
        masks = tf.ensure_shape(masks, [None, num_rows, None, None])
        return found._replace(mask_logits=masks)

    def semantic_logits(self, images: tf.Tensor) -> tf.Tensor:
        """The semantic branch alone, at inference: [B, H, W, 3] -> [B, H / 4, W / 4, S]."""
        _, semantic_pyramid = self._pyramids(images, training=False)
        return self.semantic_head(semantic_pyramid)

    def _pyramids(self, images, training):
        """Features for the instance branch and for the semantic branch."""
        pyramid = self.fpn(self.backbone(images, training=training), training=training)
        return branch_pyramids(pyramid, self.config.fpn_groups)

    def _pool(self, pyramid, boxes, size, for_xla=False):
        """RoI features. [B, R, 4] -> [B, R, size, size, C]"""
        ratio, level_rule = self.config.roi_sampling_ratio, self.config.roi_level_rule
        return multilevel_roi_align(pyramid, boxes, size, ratio, for_xla, level_rule)


def build_decoder(config: config_lib.Model) -> tf.keras.layers.Layer:
    """What turns c2..c5 into the pyramid: {"c2": ..., "c5"} -> {"p2": ..., "p5"} and more."""
    if config.decoder == "symmetric":
        return SymmetricDecoder(config.backbone, name="symmetric_decoder")
    if config.decoder == "none":
        return BackboneLevels(name="backbone_levels")
    return FPN(config.fpn_channels, config.head_norm, name="fpn")


class BackboneLevels(tf.keras.layers.Layer):
    """The place of the decoder in a network without one: c2..c5 under the names p2..p5."""

    def call(self, features, training=False):
        del training  # it makes no difference
        return {f"p{level[1:]}": x for level, x in features.items()}


def build_semantic_head(config: config_lib.Model, num_classes: int) -> tf.keras.layers.Layer:
    """The semantic branch: a pyramid -> logits [B, H / 4, W / 4, S]."""
    if config.semantic_head == "deeplabv3":
        return DeepLabV3Head(num_classes, config.output_stride, name="semantic_head")
    return SemanticHead(
        config.semantic_channels,
        num_classes,
        config.semantic_aggregation,
        config.semantic_convs_per_stage,
        name="semantic_head",
    )


def build_for_dataset(
    config: config_lib.Model, info: DatasetInfo, for_xla: bool = False
) -> PanopticFPN:
    """`build_model` with the classes of a dataset."""
    num_semantic_classes = info.num_semantic_classes(config.semantic_targets)
    return build_model(config, info.num_thing_classes, num_semantic_classes, for_xla)


def build_model(
    config: config_lib.Model,
    num_thing_classes: int,
    num_semantic_classes: int,
    for_xla: bool = False,
) -> PanopticFPN:
    """A `PanopticFPN` with all its variables created.

    Raises:
      UserError: the dataset lacks what the task needs.
    """
    if config.task != "semantic" and num_thing_classes == 0:
        raise UserError(
            f"--task={config.task} needs thing classes, and the dataset has none; use"
            " --task=semantic."
        )
    model = PanopticFPN(config, num_thing_classes, num_semantic_classes, for_xla)
    model.build()
    return model
