"""A drawn dataset as TFRecords, and the settings of a network that trains on it in seconds."""

from pfpn_tf.config import Config
from pfpn_tf.data import convert, synthetic
from pfpn_tf.data.coco_panoptic import CocoPanoptic

SETTINGS = {
    "train_min_sides": (48, 64),
    "train_max_side": 96,
    "eval_min_side": 64,
    "eval_max_side": 96,
    "backbone": "resnet_tiny",
    "freeze_stages": 0,
    "fpn_channels": 32,
    "box_fc_channels": 16,
    "mask_channels": 16,
    "semantic_channels": 32,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "rpn_pre_nms_top_k_train": 50,
    "rpn_pre_nms_top_k_eval": 50,
    "rpn_post_nms_top_k": 20,
    "rpn_samples_per_image": 16,
    "roi_samples_per_image": 16,
    "max_detections": 10,
    "fusion_stuff_area_threshold_px": 16,
    "global_batch_size": 2,
    "train_steps": 3,
    "learning_rate": 0.01,
    "warmup_steps": 4,
    "lr_decay_steps": (5,),
    "gradient_clip_norm": 10.0,
    "steps_per_loop": 2,
    "summary_interval_steps": 1,
    "image_interval_steps": 0,
    "checkpoint_interval_steps": 100,
    "distribution": "cpu",
}
"""The full Panoptic FPN, but thin, on 64-pixel images.

Group norm is in the semantic branch only: everywhere it takes twice as long to trace.
"""

NETWORK = {
    "backbone": "resnet_tiny",
    "fpn_channels": 8,
    "box_fc_channels": 16,
    "mask_channels": 8,
    "semantic_channels": 32,
}
"""The settings of a smaller network still, for tests of its variables."""


def make_records(folder):
    """Writes TFRecords of 8 training and 2 validation scenes, and dataset_info.json.

    Args:
      folder: path.

    Returns:
      The folder they are in.
    """
    drawn, records = folder / "drawn", folder / "records"
    synthetic.make_dataset(str(drawn), num_train=8, num_val=2, seed=3, sides=(64, 96))
    for split in ("train", "val"):
        annotations = drawn / "annotations"
        dataset = CocoPanoptic(
            str(annotations / f"panoptic_{split}.json"),
            str(annotations / f"panoptic_{split}"),
            str(drawn / split),
        )
        convert.convert(dataset, str(records), split, num_shards=1, num_workers=1)
    return records


def config(records):
    """`SETTINGS` for the dataset in folder `records`."""
    return Config().replace(
        **SETTINGS,
        train_records=f"{records}/train-*.tfrecord",
        eval_records=f"{records}/val-*.tfrecord",
    )
