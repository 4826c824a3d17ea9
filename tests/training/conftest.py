"""A network of one convolution, to test the loop of training around the network."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.structures import TrainOutputs
from pfpn_tf.training import trainer

NUM_CLASSES = 6  # of the semantic branch on the tiny records


class ToyNetwork(tf.keras.Model):
    """One convolution in the place of the network."""

    def __init__(self):
        super().__init__()
        self.stem = tf.keras.layers.Conv2D(2, 1, name="stem")
        self.predictor = tf.keras.layers.Conv2D(NUM_CLASSES, 1, name="predictor")
        self.predictor(self.stem(tf.zeros([1, 1, 1, 3])))

    def call(self, images, image_hw, ground_truth=None, seed=None, training=False):
        del image_hw, ground_truth, seed
        logits = self.predictor(self.stem(images))
        return TrainOutputs(semantic_logits=logits if training else logits[:, ::4, ::4])


def toy_batch(step, batch_size):
    """A batch that depends on the step alone, of two sizes in turn; its images are called
    i<step>-<n>.
    """
    height = tf.where(step % 2 == 0, 4, 6)
    images = tf.random.stateless_normal(
        [batch_size, height, 8, 3], tf.stack([0, tf.cast(step, tf.int32)])
    )
    names = [tf.strings.join(["i", tf.strings.as_string(step), f"-{n}"]) for n in range(batch_size)]
    return {
        "images": images,
        "image_hw": tf.tile([[4, 8]], [batch_size, 1]),
        "gt_boxes": tf.zeros([batch_size, 0, 4]),
        "gt_class_ids": tf.zeros([batch_size, 0], tf.int32),
        "gt_masks": tf.zeros([batch_size, 0, height, 8], tf.uint8),
        "gt_semantic": tf.zeros([batch_size, height, 8], tf.uint8),
        "seed": tf.zeros([batch_size, 2], tf.int32),
        "source_id_bytes": tf.io.decode_raw(names, tf.uint8, fixed_length=64),
    }


@pytest.fixture
def toy(monkeypatch, tiny_config):
    """Settings for a run of `ToyNetwork` on `toy_batch`, to test the loop around the network.

    Its loss is the mean square of the outputs; an image full of NaN makes it NaN, and
    `toy.bad_step` may name the step whose images are.
    """

    class Toy:
        bad_step = -1
        config = tiny_config.replace(
            task="semantic", train_steps=6, warmup_steps=0, lr_decay_steps=()
        )

    def build_dataset(config, info, training, input_context=None, start_step=0):
        assert training

        def batch(step):
            made = toy_batch(step, config.train.global_batch_size)
            factor = tf.where(step == Toy.bad_step, np.float32(np.nan), 1.0)
            return {**made, "images": made["images"] * factor}

        options = tf.data.Options()
        options.autotune.enabled = False  # as in `pipeline.build_dataset`
        return tf.data.Dataset.range(start_step, 10**6).map(batch).with_options(options)

    def losses(outputs, ground_truth, config, step=None):
        logits = tf.cast(outputs.semantic_logits, tf.float32)  # [B, H, W, S]
        sizes = tf.cast(
            tf.reduce_prod(tf.shape(logits)[1:]) * config.train.global_batch_size, tf.float32
        )
        loss = tf.reduce_sum(tf.square(logits)) / sizes
        return {"semantic": loss, "total": loss}

    monkeypatch.setattr(trainer.panoptic_fpn, "build_model", lambda *args: ToyNetwork())
    monkeypatch.setattr(trainer.pipeline, "build_dataset", build_dataset)
    monkeypatch.setattr(trainer, "panoptic_fpn_losses", losses)
    return Toy
