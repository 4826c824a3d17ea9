"""The input pipeline: TFRecords -> batches, all in graph.

Batches are dicts (B images · H, W padded size · M instances · S segments · N annotations):

- always: images [B, H, W, 3] float32 normalised RGB, zero in the padding; image_hw [B, 2] int32
  content size; original_hw [B, 2] int32; source_id_bytes [B, 64] uint8, see `source_ids`.
- training: seed [B, 2] int32; gt_boxes [B, M, 4] float32 yxyx; gt_class_ids [B, M] int32, -1 in
  padding; gt_masks [B, M, H, W] uint8; gt_semantic [B, H, W] uint8, 255 void.
- evaluation: source_id [B] string; panoptic_png [B] string; segment_ids, segment_category_ids,
  segment_areas, segment_iscrowd [B, S] int64 (id 0 in padding); the instance annotations
  instance_ids, instance_category_ids, instance_iscrowd [B, N] int64, instance_areas [B, N] float32,
  instance_boxes [B, N, 4] float32 yxyx pixels of the stored image, instance_mask_png [B, N] string
  (empty in padding).
"""

import os
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import tensorflow as tf
from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.config import Config
from pfpn_tf.data import augment
from pfpn_tf.data import categories as categories_lib
from pfpn_tf.data import order, preprocess, repeat_factors, tfrecord
from pfpn_tf.data.categories import VOID, DatasetInfo
from pfpn_tf.utils import process
from pfpn_tf.utils.errors import UserError

# As configs/base/mask_rcnn_fpn.flags and semantic_fpn.flags.
_LOSS_WEIGHTS = {
    "instance": {"instance_loss_weight": 1.0, "semantic_loss_weight": 0.0},
    "semantic": {"instance_loss_weight": 0.0, "semantic_loss_weight": 1.0},
}
SOURCE_ID_BYTES = 64  # image ids as numbers, since accelerators take no strings
PREFETCHED_BATCHES = 2


def build_dataset(
    config: Config,
    info: DatasetInfo,
    training: bool,
    input_context: Optional[tf.distribute.InputContext] = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """The batches of a split, as described at the top of this file.

    Training is endless, shuffled and augmented; batch t is a pure function of the settings and t,
    whatever the number of workers and replicas. Evaluation is one pass in file order.

    Args:
      config: the settings.
      info: the dataset's categories.
      training: which of --train_records and --eval_records, and which keys.
      input_context: of tf.distribute: this worker's contiguous share of each global batch, in
        batches for one replica. None: global batches. Evaluation batches always have
        eval_batch_size images.
      start_step: the training step to continue at.

    Raises:
      UserError: the records are missing or incomplete.
    """
    data = config.data
    workers, worker, replicas = _shares(input_context)
    if not training:
        index = tfrecord.read_index(data.eval_records, "eval_records")
        examples = order.evaluation_examples(config, index.hw, workers, worker)
        load, size = _evaluation_loader(config), config.eval.eval_batch_size
        return _batches(examples, index, load, data, size, replicas // workers)
    index = tfrecord.read_index(data.train_records, "train_records")
    factors = None
    if data.repeat_factor_threshold:
        factors = repeat_factors.of_records(config, info, index)
    examples = order.training_examples(config, index.hw, start_step, workers, worker, factors)
    load, size = _training_loader(config, info), config.train.global_batch_size // replicas
    return _batches(examples, index, load, data, size, replicas // workers)


def validation_dataset(
    config: Config, info: DatasetInfo, input_context: Optional[tf.distribute.InputContext] = None
) -> tf.data.Dataset:
    """--eval_records with the keys of training: one pass in file order, an image a batch, resized
    as in evaluation and not augmented. An image's seed is the same in every pass.

    Args: as `build_dataset`.
    """
    config = config.replace(
        eval_batch_size=1,
        random_flip=False,
        color_jitter=False,
        random_scale=(),
        crop_size=(),
        crop_bootstrap=0.0,
    )
    workers, worker, replicas = _shares(input_context)
    index = tfrecord.read_index(config.data.eval_records, "eval_records")
    examples = order.evaluation_examples(config, index.hw, workers, worker)
    load = _training_loader(config, info)
    return _batches(examples, index, load, config.data, 1, replicas // workers)


def _batches(examples, index, load, data, batch_size, local_replicas):
    """Reads the records of the examples, and joins what `load` makes of them."""

    @order.not_converted
    def read_and_load(example):
        record = tfrecord.decode_example(tfrecord.read_record(index, example["position"]))
        return load(record, example)

    dataset = examples.map(
        read_and_load, num_parallel_calls=process.num_cores(), deterministic=True
    )
    spec = dataset.element_spec
    dataset = dataset.padded_batch(
        batch_size,
        padded_shapes=_padded_shapes(spec, data),
        padding_values={name: _padding_value(name, s) for name, s in spec.items()},
        # Only the last batch of an evaluation is smaller; training then has shapes with B.
        drop_remainder="gt_boxes" in spec,
    )
    options = tf.data.Options()
    options.deterministic = True
    # With one parallel step there is nothing to tune, and whoever drops an iterator waits for the
    # thread that tunes: up to a minute at the end of a training.
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options).prefetch(PREFETCHED_BATCHES * local_replicas)


def load_info(config: Config) -> DatasetInfo:
    """The `DatasetInfo` that --dataset_info names, or the file beside the TFRecords.

    Raises:
      UserError: no setting says where it is, it cannot be read, or --task needs what it lacks.
    """
    path = info_path(config)
    info = DatasetInfo.load(path)
    info.check_task(config.model.task, path)
    return info


def config_for_records(settings: Mapping[str, Any]) -> Config:
    """The settings; without --task they train what the records hold.

    Args:
      settings: by flag name; the others have their defaults.

    Raises:
      UserError: as `config.from_mapping`.
    """
    config = config_lib.from_mapping(settings)
    try:
        task = DatasetInfo.load(info_path(config)).task
    except UserError:  # No records yet; whoever opens them says so.
        return config
    if "task" in settings or task == config.model.task:
        return config
    logging.info("The records are for --task=%s, which is taken.", task)
    return config_lib.from_mapping({**settings_of_task(task), **settings})


def settings_of_task(task: str) -> Dict[str, Any]:
    """--task, and the weights of the losses that it has."""
    return {"task": task, **_LOSS_WEIGHTS.get(task, {})}


def info_path(config: Config) -> str:
    """The file that `load_info` reads.

    Raises:
      UserError: no setting says where it is.
    """
    data = config.data
    flag = "train_records" if data.train_records or not data.eval_records else "eval_records"
    return data.dataset_info or info_paths(getattr(data, flag), flag)[0]


def info_paths(records: str, flag: str) -> List[str]:
    """The path of the description beside each of the TFRecords, in their order.

    Raises:
      UserError: there are no such records.
    """
    folders = dict.fromkeys(map(os.path.dirname, tfrecord.matching_files(records, flag)))
    return [os.path.join(folder, categories_lib.FILE_NAME) for folder in folders]


def source_ids(source_id_bytes: np.ndarray) -> List[str]:
    """The image ids in a batch's source_id_bytes ([B, 64] uint8)."""
    return [
        row.tobytes().rstrip(b"\0").decode(errors="replace") for row in np.asarray(source_id_bytes)
    ]


# -- one example ------------------------------------------------------------------------------


def _training_loader(config, info):
    data = config.data
    to_semantic = tf.constant(info.semantic_lookup(config.model.semantic_targets))

    def load(record, example) -> Dict[str, tf.Tensor]:
        geometry_seed, color_seed, network_seed = tf.unstack(tf.random.split(example["seed"], 3))
        image = preprocess.decode_image(record["image/encoded"])
        padded_hw = example["padded_hw"]
        geometry = augment.draw_geometry(
            tf.shape(image)[:2],
            example["resize_hw"],
            example["content_hw"],
            data.random_flip,
            geometry_seed,
        )
        categories = tf.io.decode_png(record["image/segmentation/class/encoded"], channels=1)
        semantic = tf.gather(to_semantic, tf.cast(categories[..., 0], tf.int32))  # [H, W]
        if data.crop_bootstrap:
            bootstrap_seed = tf.random.fold_in(geometry_seed, 1)
            geometry = augment.bootstrap_crop(
                geometry, semantic, VOID, data.crop_bootstrap, bootstrap_seed
            )

        image = augment.transform_image(image, geometry, data.resize)
        if data.color_jitter:
            image = augment.jitter_color(image, color_seed)
        image = preprocess.normalize(image, data.pixel_mean, data.pixel_std)

        semantic = augment.transform_labels(semantic, geometry, padded_hw, VOID)

        boxes, class_ids, masks = _instances(record, info, data.max_instances)
        masks = augment.transform_labels(masks, geometry, padded_hw, 0)
        boxes = augment.transform_boxes(boxes, geometry)
        if data.crop_size:
            boxes = augment.crop_boxes(boxes, masks, geometry.content_hw)
        boxes = tf.clip_by_value(boxes, 0.0, tf.tile(tf.cast(geometry.content_hw, tf.float32), [2]))
        visible = tf.reduce_min(boxes[:, 2:] - boxes[:, :2], -1) >= data.min_box_size_px
        # A crop or shrinking may leave no pixel.
        visible &= tf.reduce_max(tf.reduce_max(masks, 2), 1) > 0
        visible = tf.where(visible)[:, 0]

        return {
            "images": tf.ensure_shape(preprocess.pad_to(image, padded_hw), [None, None, 3]),
            "image_hw": geometry.content_hw,
            "original_hw": geometry.source_hw,
            "source_id_bytes": _fixed_bytes(record["image/source_id"]),
            "seed": network_seed,
            "gt_boxes": tf.gather(boxes, visible),
            "gt_class_ids": tf.gather(class_ids, visible),
            "gt_masks": tf.cond(  # Nearly always all; then the copy is saved.
                tf.size(visible) == tf.shape(masks)[0],
                lambda: masks,
                lambda: tf.gather(masks, visible),
            ),
            "gt_semantic": semantic,
        }

    return load


def _evaluation_loader(config):
    data = config.data

    def load(record, example) -> Dict[str, tf.Tensor]:
        image = preprocess.decode_image(record["image/encoded"])
        original_hw = tf.shape(image)[:2]
        image = preprocess.resize_image(image, example["resize_hw"], data.resize)
        image = preprocess.normalize(image, data.pixel_mean, data.pixel_std)
        return {
            "images": tf.ensure_shape(
                preprocess.pad_to(image, example["padded_hw"]), [None, None, 3]
            ),
            "image_hw": example["resize_hw"],
            "original_hw": original_hw,
            "source_id": record["image/source_id"],
            "source_id_bytes": _fixed_bytes(record["image/source_id"]),
            "panoptic_png": record["image/panoptic/encoded"],
            "segment_ids": record["image/panoptic/segment/id"],
            "segment_category_ids": record["image/panoptic/segment/category_id"],
            "segment_areas": record["image/panoptic/segment/area"],
            "segment_iscrowd": record["image/panoptic/segment/iscrowd"],
            "instance_ids": record["image/object/id"],
            "instance_category_ids": record["image/object/class/label"],
            "instance_iscrowd": record["image/object/is_crowd"],
            "instance_areas": record["image/object/area"],
            "instance_boxes": record["image/object/bbox_px"],
            "instance_mask_png": record["image/object/mask"],
        }

    return load


def _instances(record, info, max_instances):
    """Boxes [M, 4], class ids [M] and masks [M, H, W] of a record: no crowds, the largest if too
    many.
    """
    kept = tf.cast(tf.where(record["image/object/is_crowd"] == 0)[:, 0], tf.int32)
    areas = tf.gather(record["image/object/area"], kept)
    _, largest = tf.math.top_k(areas, tf.minimum(tf.size(areas), max_instances))
    kept = tf.gather(kept, tf.sort(largest))  # in the order of the file
    category_ids = tf.gather(record["image/object/class/label"], kept)
    class_ids = tf.searchsorted(tf.constant(info.thing_category_ids, tf.int64), category_ids)
    pngs = tf.gather(record["image/object/mask"], kept)
    hw = tf.cast(tf.stack([record["image/height"], record["image/width"]]), tf.int32)
    masks = tf.cond(
        tf.size(pngs) > 0,
        lambda: tf.map_fn(
            lambda png: tf.io.decode_png(png, channels=1)[..., 0],
            pngs,
            fn_output_signature=tf.TensorSpec([None, None], tf.uint8),
        ),
        lambda: tf.zeros(tf.concat([[0], hw], 0), tf.uint8),
    )
    return (
        tf.gather(record["image/object/bbox_px"], kept),
        class_ids,
        tf.ensure_shape(masks, [None] * 3),
    )


def _fixed_bytes(text):
    return tf.io.decode_raw(text[tf.newaxis], tf.uint8, fixed_length=SOURCE_ID_BYTES)[0]


# -- batches ----------------------------------------------------------------------------------


def _shares(input_context):
    """Number of workers, which of them this is, number of replicas."""
    if input_context is None:
        return 1, 0, 1
    return (
        input_context.num_input_pipelines,
        input_context.input_pipeline_id,
        input_context.num_replicas_in_sync,
    )


def _padded_shapes(spec, data):
    shapes = {key: s.shape for key, s in spec.items()}
    if data.static_shapes and "gt_boxes" in spec:
        for key in ("gt_boxes", "gt_class_ids", "gt_masks"):
            shapes[key] = tf.TensorShape([data.max_instances]).concatenate(shapes[key][1:])
    return shapes


def _padding_value(name, spec):
    if spec.dtype == tf.string:
        return b""
    return tf.constant(-1 if name == "gt_class_ids" else 0, spec.dtype)
