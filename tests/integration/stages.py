"""The stages of the forward pass one by one, ours beside the arrays of a reference."""

import numpy as np
import tensorflow as tf

from pfpn_tf.data import preprocess
from pfpn_tf.model import box_head, detections, mask_head, rpn
from pfpn_tf.structures import Proposals

PHOTO = "data/coco_samples/panoptic/val2017/000000142238.jpg"


def network_input(photo, config):
    """From the bytes of a JPEG: [1, H, W, 3], content size and original size."""
    data = config.data
    image = preprocess.decode_image(tf.constant(photo))
    original_hw = tf.shape(image)[:2]
    hw = preprocess.resized_hw(original_hw, data.eval_min_side, data.eval_max_side, data.resize)
    image = preprocess.resize_image(image, hw, data.resize)
    image = preprocess.normalize(image, data.pixel_mean, data.pixel_std)
    image = preprocess.pad_to(image, preprocess.padded_hw(hw, data.size_divisor))
    return image[tf.newaxis], hw, original_hw


def forward(model):
    """The stages one by one, in the order of `PanopticFPN.call`, and the whole: one graph for
    photos of all sizes.

    From the proposals on, each stage gets the reference's input, so that it answers for itself.
    """
    config = model.config

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([1, None, None, 3]),
            tf.TensorSpec([1, 2], tf.int32),
            tf.TensorSpec([1, 1000, 4], name="proposals"),
            tf.TensorSpec([1, None, 4], name="detected_boxes"),
            tf.TensorSpec([1, None], tf.int32, name="detected_classes"),
        ],
    )
    def run(images, image_hw, boxes, detected, classes):
        pyramid = model.fpn(model.backbone(images))
        logits, deltas = model.rpn_head(pyramid)
        anchors = rpn.pyramid_anchors(pyramid, config, tf.float32)
        proposals = rpn.propose(logits, deltas, anchors, image_hw, config, training=False)
        pooled = model._pool(pyramid, boxes, box_head.POOLED_SIZE)
        class_logits, box_deltas = model.box_head(pooled)
        given = Proposals(boxes, tf.zeros([1, 1000]), tf.ones([1, 1000], tf.bool))
        found = detections.detect(given, class_logits, box_deltas, image_hw, config)
        mask_pooled = model._pool(pyramid, detected, mask_head.POOLED_SIZE)
        mask_logits = model.mask_head(mask_pooled, classes)
        return dict(
            pyramid=pyramid, logits=logits, deltas=deltas, anchors=anchors, proposals=proposals,
            pooled=pooled, class_logits=class_logits, box_deltas=box_deltas, found=found,
            mask_pooled=mask_pooled, mask_logits=mask_logits, semantic=model.semantic_head(pyramid),
            whole=model(images, image_hw),
        )  # fmt: skip

    return run


class Stages:
    """All stages of one photo.

    Args:
      run: `forward` of a network with the reference's weights.
      golden: the reference's arrays by name, boxes and deltas with x before y.
      images: [1, H, W, 3] input of the network. image_hw: its content size.
    """

    def __init__(self, run, golden, images, image_hw):
        self.golden, self.images, self.hw = golden, images.numpy(), tuple(image_hw.numpy())
        boxes, detected = (yxyx(golden[n])[None] for n in ("proposal_boxes", "det_boxes_resized"))
        classes = golden["det_classes"].astype(np.int32)[None]
        self.outputs = run(images, image_hw[None], boxes, detected, classes)

    def __getitem__(self, name):
        return self.outputs[name]

    def close(self, name, ours, tolerance):
        """Compares with a sampled array of the reference; `ours` is in its C, H, W order."""
        index, value = self.golden[f"{name}_idx"], self.golden[f"{name}_val"]
        assert ours.size == np.prod(self.golden[f"{name}_shape"])
        assert_close(name, ours.reshape(-1)[index], value, tolerance)

    def check_rpn(self, level, objectness_tolerance, delta_tolerance):
        """The RPN's outputs and anchors of a level."""
        height, width = self["pyramid"][level].shape[1:3]
        logits = self["logits"][level].numpy().reshape(height, width, 3)
        self.close(f"rpn_obj_{level}", logits.transpose(2, 0, 1), objectness_tolerance)
        deltas = self["deltas"][level].numpy().reshape(height, width, 3, 4)[..., [1, 0, 3, 2]]
        self.close(f"rpn_delta_{level}", deltas.transpose(2, 3, 0, 1), delta_tolerance)
        anchors = self["anchors"][level].numpy()
        assert len(anchors) == self.golden[f"anchors_{level}_n"]
        np.testing.assert_array_equal(anchors[:50], yxyx(self.golden[f"anchors_{level}_first50"]))

    def proposal_order(self, tolerance_px):
        """Checks that the proposals are the same set; returns which of the reference's each is."""
        proposals = self["proposals"]
        assert proposals.valid.numpy().all()
        ours, expected = proposals.boxes[0].numpy(), yxyx(self.golden["proposal_boxes"])
        distance = np.abs(ours[:, None] - expected[None]).max(-1)
        nearest = distance.argmin(1)
        assert len(set(nearest)) == len(expected), "two of ours match one of the reference"
        assert_close("proposal boxes", distance.min(1), 0.0, tolerance_px)
        assert (np.diff(proposals.logits[0].numpy()) <= 0).all()
        return nearest


def assert_close(name, ours, expected, tolerance):
    difference = np.abs(np.asarray(ours, np.float64) - expected).max()
    print(f"{name}: max difference {difference:.2g} (tolerance {tolerance:.2g})")
    assert difference <= tolerance


def yxyx(boxes):
    return np.ascontiguousarray(boxes[:, [1, 0, 3, 2]])


def chw(x):
    return np.moveaxis(np.asarray(x)[0], -1, 0)
