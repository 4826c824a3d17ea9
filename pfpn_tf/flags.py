"""The only place where command-line flags are defined.

Settings: one flag per `Config` field, derived from it (`define_config_flags`,
`config_from_flags`). Everything else a tool takes (paths, what to do) is a row of `TOOL_FLAGS`;
a tool asks for its rows by name with `define_tool_flags`.
"""

import os
import tempfile
from typing import Iterable, NamedTuple, Union

from absl import flags

from pfpn_tf import config as config_lib
from pfpn_tf.utils.errors import UserError

FLAGS = flags.FLAGS
# A tool's flags count as its own, so that its --help lists them.
flags.disclaim_key_flags()


class ToolFlag(NamedTuple):
    """A flag that is no setting: its default (the type follows from it) and its help."""

    default: Union[str, int, float, bool, list]
    help: str


TOOL_FLAGS = {
    # train, eval, export, predict
    "run_dir": ToolFlag("", "Directory of one training run: config.json, checkpoints, logs."),
    # train
    "dry_run": ToolFlag(
        False,
        "Check everything, print settings, parameters, batch shapes and schedule; train nothing.",
    ),
    # create_tfrecords
    "panoptic_json": ToolFlag("", "COCO panoptic JSON of the split."),
    "panoptic_dir": ToolFlag(
        "", "Folder of its panoptic PNGs. Empty: the JSON's path without .json."
    ),
    "image_dir": ToolFlag("", "Folder of the photos."),
    "instances_json": ToolFlag(
        "",
        "COCO instances JSON of the same images: instances that overlap, crowds. "
        "Empty: from the panoptic segments.",
    ),
    "image_ids": ToolFlag([], "Use only the images with these ids, comma-separated."),
    "num_shards": ToolFlag(0, "Number of TFRecord files; 0: one for every 500 images."),
    "num_workers": ToolFlag(0, "Processes; 0: one per CPU core."),
    "skip_bad": ToolFlag(
        False,
        "Leave broken images and instances out and count them, instead of stopping at the first.",
    ),
    "allow_mismatch": ToolFlag(
        False,
        "Convert data that contradicts itself, such as annotations of unlisted images or objects"
        " that are all crowds, with a warning instead of an error.",
    ),
    "output_dir": ToolFlag("", "Folder to write to; made if need be."),
    "image_info_json": ToolFlag(
        "",
        "Instead of --panoptic_json: a COCO JSON of images without annotations, such as "
        "image_info_test-dev2017.json.",
    ),
    "split": ToolFlag(
        "",
        "Name of the split: train, val, ... Evaluation takes the TFRecords of this name beside the "
        "run's --eval_records; of test-dev it writes the files that COCO's server takes.",
    ),
    # eval
    "checkpoint": ToolFlag(
        "", "Which checkpoint: empty for the newest, best, a step, or a path without suffix."
    ),
    "save_predictions": ToolFlag(True, "Write the predictions in COCO format."),
    "eval_weights": ToolFlag(
        "auto",
        "raw; ema: the moving averages of --ema_decay; both: side by side; auto: both if the "
        "checkpoint has averages.",
    ),
    "instance_run_dir": ToolFlag(
        "",
        "With --semantic_run_dir, instead of --run_dir: run of a Mask R-CNN (--task=instance), to"
        " be fused with the stuff of another network.",
    ),
    "semantic_run_dir": ToolFlag("", "Run of that other network (--task=semantic)."),
    "per_class": ToolFlag(True, "Also print a table of every class."),
    "gt_panoptic_json": ToolFlag("", "COCO panoptic JSON of the ground truth, to score files."),
    "gt_panoptic_dir": ToolFlag("", "Folder of its PNGs. Empty: the JSON's path without .json."),
    "pred_panoptic_json": ToolFlag("", "COCO panoptic JSON of the predictions, to score files."),
    "pred_panoptic_dir": ToolFlag("", "Folder of its PNGs. Empty: the JSON's path without .json."),
    "gt_instances_json": ToolFlag("", "COCO instances JSON of the ground truth, to score files."),
    "pred_instances_json": ToolFlag(
        "", "COCO instance results with bbox, segmentation or both, to score files."
    ),
    "semantic": ToolFlag(
        False, "With files: also mIoU and frequency-weighted IoU of the panoptic maps."
    ),
    "cityscapes_gt_dir": ToolFlag(
        "",
        "Folder of one split of Cityscapes' ground truth, e.g. gtFine/val: also IoU, iIoU and AP "
        "as cityscapesscripts computes them.",
    ),
    "metrics_json": ToolFlag("", "Write all metrics here, as fractions at full precision."),
    "num_processes": ToolFlag(0, "Processes that score files; 0: one per CPU."),
    # export_saved_model
    "export_dir": ToolFlag(
        "", "Directory to make; for TensorFlow Serving NAME/VERSION, e.g. models/panoptic/1."
    ),
    # predict
    "saved_model": ToolFlag("", "Directory of an exported model."),
    "images": ToolFlag(
        [], "Files, folders or globs, comma-separated; of a folder every image in it."
    ),
    "overlays": ToolFlag(True, "Also draw each result over its image."),
    "video": ToolFlag("", "Video file to predict frame by frame, instead of images."),
    "serving_reply": ToolFlag(
        False, "Also write what TensorFlow Serving's REST interface would reply, as JSON."
    ),
    # client
    "url": ToolFlag(
        "", "Server: grpc://HOST:8500 or http://HOST:8501 (an http address may have a path)."
    ),
    "model_name": ToolFlag("panoptic", "Name under which the server serves the model."),
    "timeout_s": ToolFlag(60.0, "Seconds to wait for an answer."),
    "concurrency": ToolFlag(1, "Requests on their way at the same time."),
    "num_requests": ToolFlag(
        0, "Measure the latency of this many requests, with the images in turn; 0: none."
    ),
    "images_per_request": ToolFlag(1, "Images in each request that is measured."),
    # make_demo_dataset
    "num_train": ToolFlag(300, "Images of the training split."),
    "num_val": ToolFlag(50, "Images of the validation split."),
    # convert_weights
    "weights": ToolFlag(
        "", "Weights file (.pkl, .pth) or imagenet; with --to=detectron2 the .pkl to write."
    ),
    "to": ToolFlag(
        "run_dir", "run_dir: read --weights, write --run_dir; detectron2: the other way."
    ),
    # benchmark
    "what": ToolFlag("", "What to measure; see the top of tools/benchmark.py."),
    "repeats": ToolFlag(7, "Timed calls, after warm-up."),
    "num_instances": ToolFlag(10, "Instances of a drawn training image."),
    "serving_batch_size": ToolFlag(1, "Images of a request."),
    "output_json": ToolFlag("", "Also write the figures here."),
    # show_data
    "num_images": ToolFlag(8, "Training examples to draw; benchmark: images or requests."),
    "start_step": ToolFlag(0, "Step of the training whose batch comes first."),
    # run_trials, run_ablation
    "num_trials": ToolFlag(5, "Trainings, with the seeds from --seed on."),
    "steps": ToolFlag(0, "Steps of each training; 0: the recipe's. Its schedule scales with them."),
    "ablations": ToolFlag(
        ["lambda_s", "lambda_i", "aggregation", "losses"],
        "What to vary: lambda_s, lambda_i, aggregation, losses, comma-separated.",
    ),
    # profile_model
    "image_size": ToolFlag("1024x2048", "Size of the padded input, HEIGHTxWIDTH, multiples of 32."),
    "compare": ToolFlag(
        "",
        "Several networks side by side: figure4, table1a, or two_networks (Panoptic FPN against "
        "Mask R-CNN and Semantic FPN). Empty: the one network, by component.",
    ),
    "measure": ToolFlag(
        False, "Also run the networks: time one after the other, memory of all at the same time."
    ),
    "measure_training": ToolFlag(
        False, "Like --measure, and also measure the forward pass with gradients."
    ),
    "measure_repeats": ToolFlag(5, "Timed runs with --measure and --measure_training."),
    "num_thing_classes": ToolFlag(8, "Thing classes; Cityscapes has 8, COCO 80."),
    "num_semantic_classes": ToolFlag(
        19, "Classes of the semantic branch; 19 on Cityscapes, 54 on COCO."
    ),
}


def define_config_flags() -> None:
    """Defines one flag per setting. The default shown is the setting's own."""
    for name, field in config_lib.all_fields().items():
        default, text = field.default, field.metadata["help"]
        if isinstance(default, bool):
            flags.DEFINE_bool(name, default, text)
        elif isinstance(default, int):
            flags.DEFINE_integer(name, default, text)
        elif isinstance(default, float):
            flags.DEFINE_float(name, default, text)
        elif isinstance(default, tuple):
            flags.DEFINE_list(name, [str(v) for v in default], text + " Comma-separated.")
        elif field.metadata["choices"]:
            flags.DEFINE_string(
                name, default, f"{text} One of: {', '.join(field.metadata['choices'])}."
            )
        else:
            flags.DEFINE_string(name, default, text)


def define_tool_flags(*names: str) -> None:
    """Defines the named rows of `TOOL_FLAGS`."""
    for name in names:
        default, text = TOOL_FLAGS[name]
        kinds = {
            bool: flags.DEFINE_bool,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            list: flags.DEFINE_list,
        }
        kinds.get(type(default), flags.DEFINE_string)(name, default, text)


def given_settings() -> dict:
    """The settings given on the command line or in a flagfile, parsed; the others are left out.

    Raises:
      UserError: an item of a list flag is not a number where one is expected.
    """
    return {
        name: _parse(name, FLAGS[name].value, field)
        for name, field in config_lib.all_fields().items()
        if name in FLAGS and FLAGS[name].present
    }


def config_from_flags(base: config_lib.Config = config_lib.Config()) -> config_lib.Config:
    """The validated `Config`: `base` (say, that of a run directory) with the given flags on top."""
    return base.replace(**given_settings())


def check_given(names: Iterable[str]) -> None:
    """Raises UserError naming the tool flags among `names` that are empty."""
    missing = [name for name in names if not getattr(FLAGS, name)]
    if missing:
        raise UserError(
            "\n".join(f"--{name} is required: {TOOL_FLAGS[name].help}" for name in missing)
        )


def make_output_dir(name: str) -> None:
    """Makes the folder that flag `name` holds and tries to write there, before any long work.

    Raises:
      UserError: that is not possible; says why.
    """
    _make_writable(getattr(FLAGS, name), name)


def make_parent(name: str) -> None:
    """`make_output_dir` for the folder of the file that flag `name` holds."""
    _make_writable(os.path.dirname(os.path.abspath(getattr(FLAGS, name))), name)


def check_files(names: Iterable[str]) -> None:
    """Raises UserError naming the flags among `names` whose path is empty or does not exist."""
    problems = []
    for name in names:
        value = getattr(FLAGS, name)
        if not value:
            problems.append(f"--{name} is required: {TOOL_FLAGS[name].help}")
        elif not os.path.exists(value):
            problems.append(f"--{name}={value}: no such file or directory; check the path.")
    if problems:
        raise UserError("\n".join(problems))


def _make_writable(folder, name):
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"--{name}={getattr(FLAGS, name)}: cannot write there ({error.strerror}); choose "
            "another folder."
        ) from None


def _parse(name, value, field):
    if not isinstance(field.default, tuple):
        return value
    kind = _item_type(field)
    try:
        return tuple(kind(v) for v in value)
    except ValueError:
        raise UserError(
            f"--{name}={','.join(value)} must be a comma-separated list of "
            f"{'whole numbers' if kind is int else 'numbers'}."
        ) from None


def _item_type(field):
    return int if "int" in str(field.type) else float
