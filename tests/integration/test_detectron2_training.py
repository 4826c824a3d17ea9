"""One training step, and three of SGD, against Detectron2: labels, losses, gradients, weights.

The reference takes every anchor and every proposal, so nothing is random. Its README gives the
tolerances used here: "fed" means that the reference's proposals are fed in.
"""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf import losses as losses_lib
from pfpn_tf.model import box_head, panoptic_fpn, rpn, targets
from pfpn_tf.ops import boxes as box_ops
from pfpn_tf.structures import GroundTruth, Proposals
from pfpn_tf.training import optimizer as optimizer_lib
from pfpn_tf.weights import convert, detectron2, safe_pickle
from tests import precision

# With and without oneDNN's kernels, of which double precision has none; see tools/test.sh.
both_stacks = pytest.mark.both_stacks

NUM_THINGS, NUM_SEMANTIC = 80, 54
LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask", "semantic", "total")


class Reference:
    """The reference file of one photo: arrays by name, boxes turned to yxyx."""

    def __init__(self, path):
        self.arrays = np.load(path)

    def __getitem__(self, name):
        return self.arrays[name]

    def boxes(self, name):
        return self[f"{name}_0"][:, [1, 0, 3, 2]]

    def mask_targets(self):
        """[P, 28, 28] of the foreground RoIs."""
        return np.unpackbits(self["mask_targets_packed"], axis=-1).reshape(-1, 28, 28)

    def batch(self, dtype):
        """The model's arguments in training by name, in their order."""
        pixels = self["image_bgr_0"][..., ::-1]
        image = pixels.astype(dtype) - np.array(config_lib.Data().pixel_mean, dtype)
        assert image.shape[:2] == tuple(self["padded_hw"])
        count, height, width = self["gt_masks_0_shape"]
        masks = np.unpackbits(self["gt_masks_0_packed"], axis=-1)[:, : height * width]
        ground_truth = GroundTruth(
            boxes=self.boxes("gt_boxes"),
            class_ids=self["gt_classes_0"].astype(np.int32),
            masks=masks.reshape(count, height, width),
            semantic=self["sem_seg_0"].astype(np.uint8),
        )
        batch = {
            "images": image,
            "image_hw": np.array(image.shape[:2], np.int32),
            "ground_truth": ground_truth,
            "seed": np.zeros(2, np.int32),
        }
        return tf.nest.map_structure(lambda x: tf.constant(x[np.newaxis]), batch)

    def proposals(self, prefix=""):
        """The RPN's boxes after NMS."""
        boxes, logits = self.boxes(f"{prefix}rpn_boxes"), self[f"{prefix}rpn_logits_0"]
        rows = boxes, logits, np.ones(len(boxes), bool)
        return Proposals(*(tf.constant(x[np.newaxis]) for x in rows))


class Run:
    """A model, its training step, and the reference's names for its variables."""

    def __init__(self, checkpoint, config):
        self.config = config
        self.model = panoptic_fpn.build_model(config.model, NUM_THINGS, NUM_SEMANTIC)
        checkpoint = safe_pickle.read(checkpoint)
        self.tensors, _ = convert.to_detectron2_names(checkpoint, config.model)
        self.reset()
        parameters = detectron2.parameters(self.model)
        trainable = {v.ref() for v in self.model.trainable_variables}
        self.parameters = {p.name: p for p in parameters if p.variable.ref() in trainable}
        self.variables = [p.variable for p in self.parameters.values()]
        self._step = tf.function(self._losses_and_gradients, autograph=False)
        self._forward = tf.function(self._losses, autograph=False)

    def reset(self):
        """Back to the weights of the checkpoint."""
        detectron2.load(self.model, self.tensors)

    def losses_and_gradients(self, batch, **fed):
        """Losses in the order of LOSSES, and gradients in the order of `variables`.

        Args:
          batch: the model's arguments.
          **fed: values to use in place of the results of functions: propose, rpn_targets,
            roi_targets.
        """
        losses, gradients = self._step(batch, fed)
        return np.array([losses[name] for name in LOSSES]), gradients

    def losses(self, batch, **fed):
        """The losses of `losses_and_gradients` alone."""
        losses = self._forward(batch, fed)
        return np.array([losses[name] for name in LOSSES])

    def _losses_and_gradients(self, batch, fed):
        with tf.GradientTape() as tape:
            losses = self._losses(batch, fed)
        gradients = tape.gradient(losses["total"], self.variables)
        return losses, [tf.convert_to_tensor(g) for g in gradients]

    def _losses(self, batch, fed):
        with pytest.MonkeyPatch.context() as patch:
            for module, name in (
                (rpn, "propose"),
                (targets, "rpn_targets"),
                (targets, "roi_targets"),
            ):
                if name in fed:
                    patch.setattr(module, name, lambda *_, value=fed[name], **__: value)
            outputs = self.model(*batch.values(), training=True)
        return losses_lib.panoptic_fpn_losses(outputs, batch["ground_truth"], self.config)

    def by_name(self, gradients):
        """Flat gradients by Detectron2's name, in its layout."""
        return {
            name: p.layout.to_detectron2(g.numpy()).ravel()
            for (name, p), g in zip(self.parameters.items(), gradients)
        }

    def weights(self):
        return {name: p.detectron2_value().ravel() for name, p in self.parameters.items()}

    def optimizer(self, rate):
        config = self.config.replace(learning_rate=rate, warmup_steps=0)
        return optimizer_lib.build_optimizer(config.train, self.model)

    def apply(self, optimizer, gradients):
        optimizer.apply_gradients(zip(gradients, self.variables))


@pytest.fixture(scope="module")
def reference(test_data):
    return Reference(test_data("golden/detectron2_train/train_142238.npz"))


@pytest.fixture(scope="module")
def take_all(golden_config):
    """Sampling that takes every anchor and every proposal."""
    return golden_config.replace(
        rpn_samples_per_image=65536,
        rpn_positive_fraction=0.5,
        roi_samples_per_image=65536,
        roi_positive_fraction=1.0,
    )


@pytest.fixture(scope="module")
def run(seeded_checkpoint, take_all):
    return Run(seeded_checkpoint, take_all)


@pytest.fixture(scope="module")
def step(run, reference):
    """Losses and gradients of the first step, fed."""
    run.reset()
    return run.losses_and_gradients(reference.batch(np.float32), propose=reference.proposals())


@pytest.fixture(scope="module")
def double_run(seeded_checkpoint, take_all):
    """The same in double precision, which its layers keep from here on."""
    with precision.policy():
        return Run(seeded_checkpoint, take_all)


@pytest.fixture(scope="module")
def double_batch(double_run, reference):
    """The batch, and what the model is fed besides."""
    batch, proposals = reference.batch(np.float64), reference.proposals()
    rpn_targets, roi_targets = double_targets(batch, proposals, double_run.config.model)
    fed = {"propose": proposals, "rpn_targets": rpn_targets, "roi_targets": roi_targets}
    return batch, fed


def double_targets(batch, proposals, config):
    """Labels, RoIs and masks in single precision, where they are the reference's, as tests below
    show; what the losses compute with is in double precision."""
    truth, hw = batch["ground_truth"], batch["images"].shape[1:3]
    gt_boxes = tf.cast(truth.boxes, tf.float64)

    def deltas(indices, boxes, chosen, *weights):
        encoded = box_ops.encode(tf.gather(gt_boxes, indices, batch_dims=1), boxes, *weights)
        return tf.where(chosen[..., None], encoded, tf.zeros_like(encoded))

    single, double = (all_anchors(hw, config, dtype) for dtype in (tf.float32, tf.float64))
    anchors = targets.rpn_targets(single, truth, batch["seed"], config)
    anchors = anchors._replace(deltas=deltas(anchors.gt_index, double, anchors.labels == 1))
    rois = targets.roi_targets(proposals, truth, NUM_THINGS, batch["seed"], config)
    foreground = (rois.class_ids >= 0) & (rois.class_ids < NUM_THINGS)
    floats = {n: tf.cast(getattr(rois, n), tf.float64) for n in ("boxes", "mask_boxes", "masks")}
    rois = rois._replace(**floats)
    weights = box_head.DELTA_WEIGHTS
    return anchors, rois._replace(deltas=deltas(rois.gt_index, rois.boxes, foreground, weights))


def all_anchors(hw, config, dtype):
    """[A, 4] of all levels."""
    sizes = [-(-np.array(hw) // 2 ** int(level[1:])) for level in config_lib.LEVELS]
    pyramid = {level: tf.zeros([1, *s, 1]) for level, s in zip(config_lib.LEVELS, sizes)}
    return tf.concat(list(rpn.pyramid_anchors(pyramid, config, dtype).values()), axis=0)


@both_stacks
def test_every_anchor_label_is_the_same(reference, take_all):
    batch = reference.batch(np.float32)
    anchors = all_anchors(batch["images"].shape[1:3], take_all.model, tf.float32)
    actual = targets.rpn_targets(anchors, batch["ground_truth"], batch["seed"], take_all.model)
    expected = reference["anchor_labels"]
    np.testing.assert_array_equal(actual.labels, expected)
    positive = expected == 1
    np.testing.assert_array_equal(
        actual.gt_index.numpy()[positive], reference["anchor_gt_index"][positive]
    )


@both_stacks
def test_rois_labels_and_mask_targets_are_the_same(reference, take_all):
    batch = reference.batch(np.float32)
    actual = targets.roi_targets(
        reference.proposals(), batch["ground_truth"], NUM_THINGS, batch["seed"], take_all.model
    )
    class_ids = reference["roi_classes_0"]
    foreground = int(np.sum(class_ids < NUM_THINGS))
    assert np.all(actual.valid)
    np.testing.assert_array_equal(actual.boxes[0], reference.boxes("roi_boxes"))
    np.testing.assert_array_equal(actual.class_ids[0], class_ids)
    np.testing.assert_array_equal(
        actual.gt_index[0, :foreground], reference["roi_gt_index_0"][:foreground]
    )
    np.testing.assert_array_equal(actual.masks[0, :foreground], reference.mask_targets())
    np.testing.assert_allclose(
        actual.deltas[0, :foreground], reference["fg_delta_targets"][:, [1, 0, 3, 2]], atol=2e-5
    )


@both_stacks
def test_losses(step, reference):
    np.testing.assert_allclose(step[0], reference["loss_step0"], rtol=1e-5)


@both_stacks
def test_losses_with_own_proposals(run, reference):
    run.reset()
    actual = run.losses(reference.batch(np.float32))
    expected = reference["loss_step0"]
    is_mask = np.array([name == "mask" for name in LOSSES])
    np.testing.assert_array_less(
        np.abs(actual - expected) / expected, np.where(is_mask, 1e-3, 1e-4)
    )


def test_trainable_tensors_are_the_same(run, reference):
    assert sorted(run.parameters) == sorted(reference["trainable_names"])


@both_stacks
def test_gradients(run, step, reference):
    gradients = run.by_name(step[1])
    assert np.max(norm_errors(gradients, reference, "grad_l2")) < 3e-3
    assert np.max(sum_errors(gradients, reference, "grad_sum")) < 3e-3
    samples = sample_errors(gradients, reference, "grad")
    assert np.max(samples) < 5e-2 and np.median(samples) < 3e-3


def norm_errors(values, reference, key):
    """Relative error of each tensor's L2 norm."""
    norms = [np.linalg.norm(values[n].astype(np.float64)) for n in reference["trainable_names"]]
    return np.abs(norms - reference[key]) / reference[key]


def sum_errors(gradients, reference, key):
    """Error of each tensor's sum over the sum of magnitudes."""
    sums = [np.sum(gradients[n], dtype=np.float64) for n in reference["trainable_names"]]
    return np.abs(sums - reference[key]) / reference["grad_abssum_f64"]


def sample_errors(values, reference, key, start=None):
    """Norm of the difference of each sampled tensor's entries, over their norm.

    The entries are the reference's `key`, less its `start` where that is given.
    """
    errors = []
    for name in reference["sampled_names"]:
        expected = reference[f"s/{name}/{key}"].astype(np.float64)
        if start:
            expected = expected - reference[f"s/{name}/{start}"]
        actual = values[name][reference[f"s/{name}/idx"]]
        errors.append(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
    return np.array(errors)


def displacements(before, after):
    return {name: after[name].astype(np.float64) - before[name] for name in before}


@both_stacks
def test_weights_and_losses_after_one_step(run, step, reference):
    run.reset()
    before, batch = run.weights(), reference.batch(np.float32)
    run.apply(run.optimizer(0.02), step[1])
    moved = displacements(before, run.weights())
    assert np.max(norm_errors(moved, reference, "step1_delta_l2")) < 2e-2
    assert np.max(sample_errors(moved, reference, "step1", "p0")) < 5e-2
    losses = run.losses(batch, propose=reference.proposals("after0.02_"))
    np.testing.assert_allclose(losses, reference["loss_after_one_step_lr0.02"], rtol=5e-3)


@both_stacks
def test_weights_and_losses_after_three_steps(run, step, reference):
    run.reset()
    before, batch = run.weights(), reference.batch(np.float32)
    optimizer, gradients = run.optimizer(float(reference["traj_lr"])), step[1]
    for number in (1, 2, 3):
        run.apply(optimizer, gradients)
        proposals = reference.proposals(f"traj{number}_")
        if number < 3:
            losses, gradients = run.losses_and_gradients(batch, propose=proposals)
        else:
            losses = run.losses(batch, propose=proposals)
        np.testing.assert_allclose(losses, reference["traj_losses"][number], rtol=2e-4)
    moved = displacements(before, run.weights())
    norms = norm_errors(moved, reference, "traj3_delta_l2")
    assert np.max(norms) < 1e-1 and np.median(norms) < 1e-2
    assert np.max(sample_errors(moved, reference, "traj3", "p0")) < 1e-1


def test_double_precision_step(double_run, double_batch, reference):
    """Losses and every gradient to 1e-6, the sharpest of these checks."""
    batch, fed = double_batch
    losses, gradients = double_run.losses_and_gradients(batch, **fed)
    np.testing.assert_allclose(losses, reference["loss_step0_f64"], rtol=1e-6)
    by_name = double_run.by_name(gradients)
    assert np.max(norm_errors(by_name, reference, "grad_l2_f64")) < 1e-6
    assert np.max(sum_errors(by_name, reference, "grad_sum_f64")) < 1e-6
    assert np.max(sample_errors(by_name, reference, "grad_f64")) < 1e-6
    before = double_run.weights()
    double_run.apply(double_run.optimizer(0.02), gradients)
    moved = displacements(before, double_run.weights())
    assert np.max(sample_errors(moved, reference, "step1_f64", "p0")) < 1e-6
