"""What must hold before the first step: paths, settings against data, devices and each other."""

import os
from typing import List

from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.data import pipeline, tfrecord
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.runs import restore, run_directory
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights import convert, zoo


def check(config: config_lib.Config, num_replicas: int) -> None:
    """Checks everything that does not need the network.

    Raises:
      UserError: every problem, one a line.
    """
    problems = _records(config) + _batch(config.train, num_replicas) + _weights(config)
    if config.train.xla and config.model.backbone_norm == "sync_bn" and num_replicas > 1:
        problems.append(
            f"--backbone_norm=sync_bn exchanges statistics between the {num_replicas} replicas"
            " inside the network, which --xla cannot compile; use --backbone_norm=group_norm, or"
            " --noxla."
        )
    if problems:
        raise UserError("\n".join(problems))
    info, path = pipeline.load_info(config), pipeline.info_path(config)
    for flag in ("train_records", "eval_records"):
        records = getattr(config.data, flag)
        for other in pipeline.info_paths(records, flag) if records else ():
            if os.path.exists(other):
                theirs, what = DatasetInfo.load(other), f"--{flag}={records} ({other})"
                theirs.check_task(config.model.task, other)
                run_directory.check_classes(theirs, what, info, path)
    if not config.train.init_weights and config.model.backbone_norm == "frozen_bn":
        logging.warning(
            "--backbone_norm=frozen_bn without --init_weights does not normalise at all; "
            "use --backbone_norm=group_norm to train from scratch."
        )
    train = config.train
    late = [step for step in train.lr_decay_steps if step >= train.train_steps]
    if train.warmup_steps >= train.train_steps or late:
        logging.warning(
            "--train_steps=%d ends before the schedule of the learning rate does:"
            " --warmup_steps=%d, --lr_decay_steps=%s.",
            train.train_steps,
            train.warmup_steps,
            ",".join(map(str, train.lr_decay_steps)),
        )


def _records(config) -> List[str]:
    problems = []
    if not config.data.eval_records and config.train.eval_interval_steps:
        problems.append(
            f"--eval_interval_steps={config.train.eval_interval_steps} needs --eval_records, e.g. "
            "--eval_records='data/coco/val-*.tfrecord'; 0 evaluates only with tools/eval.py."
        )
    used = ("train_records", "eval_records") if config.data.eval_records else ("train_records",)
    for flag in used:
        try:
            tfrecord.matching_files(getattr(config.data, flag), flag)
        except UserError as error:
            problems.append(str(error))
    return problems


def _batch(train, num_replicas) -> List[str]:
    """Every replica takes as many images, cut into as many parts."""
    size = train.global_batch_size
    parts = num_replicas * train.gradient_accumulation_steps
    if size % parts == 0:
        return []
    below, above = size // parts * parts, -(-size // parts) * parts
    use = f"{below} or {above}" if below else f"{above}"
    by = f"the {num_replicas} replica{'s' * (num_replicas > 1)}"
    if train.gradient_accumulation_steps > 1:
        by += f" times --gradient_accumulation_steps={train.gradient_accumulation_steps}"
    return [f"--global_batch_size={size} must be divisible by {by}; use {use}."]


def _weights(config) -> List[str]:
    path, model = config.train.init_weights, config.model
    if zoo.is_name(path):
        zoo.find(path)
    elif convert.is_foreign(path):
        if path != convert.IMAGENET and not os.path.exists(path):
            return [
                f"--init_weights={path}: no such file; give a .pkl or .pth file, a run directory,"
                " imagenet, or a name that tools/convert_weights.py --list prints."
            ]
    elif path:
        try:
            restore.find_init_checkpoint(path)
        except UserError as error:
            return [str(error)]
    elif model.freeze_stages > 0:
        return [
            f"--freeze_stages={model.freeze_stages} would freeze random weights, as --init_weights"
            " is empty; use --freeze_stages=0, or give trained weights with --init_weights."
        ]
    return []
