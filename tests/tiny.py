"""A drawn dataset as TFRecords, and the settings of a network that trains on it in seconds."""

from pfpn_tf.benchmark import scale
from pfpn_tf.config import Config
from pfpn_tf.data import convert, synthetic
from pfpn_tf.data.categories import DatasetInfo
from tests.data.tiny import open_panoptic

SETTINGS = {
    **scale.TINY,
    "max_detections": 10,
    "global_batch_size": 2,
    "train_steps": 3,
    "warmup_steps": 4,
    "lr_decay_steps": (5,),
    "steps_per_loop": 2,
    "summary_interval_steps": 1,
    "checkpoint_interval_steps": 100,
}
"""The network and images of a rehearsal; a few steps."""

NETWORK = {
    "backbone": "resnet_tiny",
    "fpn_channels": 8,
    "box_fc_channels": 16,
    "mask_channels": 8,
    "semantic_channels": 32,
}
"""The settings of a smaller network still, for tests of its variables."""


def info_of(**kinds):
    """A `DatasetInfo` with ids from 1 on.

    Args:
      things, stuff: names; the order of the two is that of their ids.
    """
    classes = [(name, kind == "things") for kind, names in kinds.items() for name in names]
    return DatasetInfo.from_coco_categories(
        [{"id": i, "name": name, "isthing": thing} for i, (name, thing) in enumerate(classes, 1)]
    )


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
        dataset = open_drawn(drawn, split)
        convert.convert(dataset, str(records), split, num_shards=1, num_workers=1)
    return records


def open_drawn(folder, split, instances=False):
    """A split of what `synthetic.make_dataset` has drawn, with or without its instances JSON."""
    maps = folder / "annotations" / f"panoptic_{split}"
    instances_json = folder / "annotations" / f"instances_{split}.json" if instances else None
    return open_panoptic(maps.with_suffix(".json"), maps, folder / split, instances_json)


def config(records):
    """`SETTINGS` for the dataset in folder `records`."""
    return Config().replace(
        **SETTINGS,
        train_records=f"{records}/train-*.tfrecord",
        eval_records=f"{records}/val-*.tfrecord",
    )
