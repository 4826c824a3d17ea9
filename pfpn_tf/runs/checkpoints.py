"""Run directories and the weights in them: save, resume, initialise, restore for inference.

A run directory holds

    config.json recipe.flags dataset_info.json versions.json
    checkpoints/ckpt-STEP.{index,data-*}    the newest few, with everything needed to continue
    checkpoints/best/ckpt-STEP.*            the one with the highest PQ, if evaluated in training
    metrics.jsonl tensorboard/ eval/

TensorFlow writes a checkpoint under a temporary name and renames it. What a killed process or a
full disk still leaves half-written is found by reading it back: TensorFlow stores a checksum with
every tensor.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from typing import Dict, List, NamedTuple, Optional, Tuple

import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf import trackable_object_graph_pb2

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories
from pfpn_tf.utils import files

CONFIG = "config.json"
DATASET_INFO = "dataset_info.json"
CHECKPOINTS = "checkpoints"
BEST = os.path.join(CHECKPOINTS, "best")
BEST_SCORE = "score.json"
_NAME = "ckpt"
_READ_ERRORS = (tf.errors.OpError, ValueError, RuntimeError, IndexError)


def load_run(run_dir: str) -> Tuple[config_lib.Config, categories.DatasetInfo]:
    """The settings and the dataset description that a run directory keeps.

    Raises:
      ValueError: `run_dir` is no run directory.
    """
    for name in (CONFIG, DATASET_INFO):
        if not os.path.isfile(os.path.join(run_dir, name)):
            raise ValueError(
                f"--run_dir={run_dir} is not a run directory: it has no {name}. "
                "Give the --run_dir of a training or of tools/convert_weights.py."
            )
    path = os.path.join(run_dir, CONFIG)
    try:
        with open(path, encoding="utf-8") as f:
            config = config_lib.from_json(f.read())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config, categories.DatasetInfo.load(os.path.join(run_dir, DATASET_INFO))


def save_weights(
    model: tf.keras.Model, config: config_lib.Config, info: categories.DatasetInfo, run_dir: str
) -> str:
    """Writes a run directory with the model's weights alone (no optimizer): `ckpt-0`.

    Evaluation, export and `--init_weights` take it like that of a training.

    Returns:
      The checkpoint's prefix.
    """
    with files.atomic_write(os.path.join(run_dir, CONFIG)) as f:
        f.write(config.to_json())
    info.save(os.path.join(run_dir, DATASET_INFO))
    return RunCheckpoints(run_dir, keep=1, model=model).save(0)


def saved_prefixes(directory: str) -> List[str]:
    """Prefixes of the checkpoints in a directory, newest (highest step) first, damaged ones too."""
    if not os.path.isdir(directory):
        return []
    steps = {
        int(match.group(1))
        for match in (
            re.fullmatch(rf"{_NAME}-(\d+)\.index", name) for name in os.listdir(directory)
        )
        if match
    }
    return [os.path.join(directory, f"{_NAME}-{step}") for step in sorted(steps, reverse=True)]


def damage(prefix: str) -> Optional[str]:
    """Why a checkpoint cannot be used, found by reading every tensor of it; None if it can."""
    try:
        reader = tf.train.load_checkpoint(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except _READ_ERRORS as error:
        return str(error).splitlines()[0][:200] or type(error).__name__
    return None


def newest_intact(directory: str) -> Optional[str]:
    """Prefix of the newest readable checkpoint in a directory; newer damaged ones are reported."""
    for prefix in saved_prefixes(directory):
        problem = damage(prefix)
        if problem is None:
            return prefix
        logging.warning("Checkpoint %s is damaged (%s); trying the one before it.", prefix, problem)
    return None


def step_of(prefix: str) -> int:
    """The step in a checkpoint's name."""
    return int(prefix.rpartition("-")[2])


class RunCheckpoints:
    """The checkpoints of one training run.

    `restore` and `save` cover all that was given as `trackables`, so that a restarted run
    continues exactly. What exists is read from the folder, not from TensorFlow's file
    `checkpoint`, which a kill can leave behind the truth; that file is written for other tools.
    """

    def __init__(self, run_dir: str, keep: int, writes: bool = True, **trackables):
        """Touches nothing yet.

        Args:
          run_dir: the run directory.
          keep: number of checkpoints kept.
          writes: whether this process writes; of several workers only the chief does.
          **trackables: what is saved, by name.
        """
        self.directory = os.path.join(run_dir, CHECKPOINTS)
        self._best_directory = os.path.join(run_dir, BEST)
        self._checkpoint = tf.train.Checkpoint(**trackables)
        self._keep = keep
        self._writes = writes
        self._good: Optional[str] = None
        self._best_score = _read_score(self._best_directory)

    def newest_step(self) -> Optional[int]:
        """The step of the newest intact checkpoint, None if there are no checkpoints.

        Raises:
          ValueError: there are, but none is intact.
        """
        prefix = newest_intact(self.directory)
        if prefix is None and saved_prefixes(self.directory):
            raise ValueError(
                f"Every checkpoint in {self.directory} is damaged. Remove that folder to start"
                " over, or put back a copy of one."
            )
        return None if prefix is None else step_of(prefix)

    def restore(self, step: Optional[int]) -> Optional[str]:
        """Restores the checkpoint of a step, as from `newest_step`; returns its prefix.

        Newer, damaged ones get the prefix `damaged-` to their names, and what a kill has left
        half-written is removed.

        Args:
          step: which one; None: none, and nothing is restored.

        Raises:
          ValueError: it is not of a training with this network.
        """
        if self._writes:
            _remove_leftovers(self.directory)
            _remove_leftovers(self._best_directory)
        if step is None:
            return None
        prefix = os.path.join(self.directory, f"{_NAME}-{step}")
        try:
            status = self._checkpoint.read(prefix)
            status.expect_partial()  # no warnings on top of the error
            status.assert_consumed()
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"{prefix} is not a checkpoint of a training of this network, so it cannot be"
                f" continued ({str(error).splitlines()[0][:200]}). Use it with --init_weights and"
                " another --run_dir."
            ) from None
        if self._writes:
            for damaged in saved_prefixes(self.directory):
                if step_of(damaged) > step:
                    for path in _files_of(damaged):
                        os.replace(
                            path, os.path.join(self.directory, "damaged-" + os.path.basename(path))
                        )
        self._good = prefix
        return prefix

    def save(self, step: int) -> str:
        """Writes `ckpt-STEP` unless this run has just done so, then drops the oldest ones.

        Raises:
          OSError: it cannot be written; the checkpoints before it are untouched.
        """
        prefix = os.path.join(self.directory, f"{_NAME}-{step}")
        if prefix != self._good:
            self._write(prefix, self._keep)
            self._good = prefix
        return prefix

    def save_best(self, step: int, score: float) -> bool:
        """Writes `best/ckpt-STEP` in place of the previous best, if `score` is higher.

        Returns:
          Whether it was.

        Raises:
          OSError: it cannot be written.
        """
        if self._best_score is not None and self._best_score >= score:
            return False
        self._write(os.path.join(self._best_directory, f"{_NAME}-{step}"), keep=1)
        if self._writes:
            with files.atomic_write(os.path.join(self._best_directory, BEST_SCORE)) as f:
                json.dump({"step": step, "score": score}, f)
        self._best_score = score
        return True

    def _write(self, prefix, keep):
        if not self._writes:
            if _is_read_by_all(self._checkpoint.model):
                with tempfile.TemporaryDirectory() as elsewhere:
                    self._checkpoint.write(os.path.join(elsewhere, _NAME))
            return
        directory = os.path.dirname(prefix)
        try:
            os.makedirs(directory, exist_ok=True)
            self._checkpoint.write(prefix)
        except (tf.errors.OpError, OSError) as error:
            with contextlib.suppress(OSError):
                _remove_leftovers(directory)
            raise OSError(
                f"Cannot write the checkpoint {prefix}: {str(error).splitlines()[0][:300]}. "
                + (
                    f"The last good one is {self._good}; "
                    if self._good
                    else "There is none before it; "
                )
                + "make room and start the same command again."
            ) from error
        prefixes = saved_prefixes(directory)
        # Not by step alone: a newer one could be left of a run that was set back.
        kept = [prefix] + [p for p in prefixes if p != prefix][: keep - 1]
        _write_marker(directory, kept)
        for old in set(prefixes) - set(kept):
            # The index first: without it the rest is no checkpoint.
            for path in sorted(_files_of(old), key=lambda p: not p.endswith(".index")):
                os.unlink(path)


def _read_score(best_directory):
    path = os.path.join(best_directory, BEST_SCORE)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as f:
        return json.load(f)["score"]


def _is_read_by_all(model):
    """Whether saving a network needs all workers, since statistics are averaged over them."""
    on_read = tf.VariableSynchronization.ON_READ
    return any(variable.synchronization == on_read for variable in model.variables)


def _remove_leftovers(directory):
    """Removes what killed or failed saves left: temporary files, and data that no index
    mentions.
    """
    if not os.path.isdir(directory):
        return
    whole = {os.path.basename(prefix) for prefix in saved_prefixes(directory)}
    for name in os.listdir(directory):
        match = re.fullmatch(
            rf"({_NAME}-\d+)(_temp|\.data-\d+-of-\d+|\.index)?(\.tempstate\d+)?", name
        )
        if not match or (
            match.group(1) in whole and match.group(2) != "_temp" and not match.group(3)
        ):
            continue
        path = os.path.join(directory, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def _files_of(prefix):
    directory, name = os.path.split(prefix)
    return [
        os.path.join(directory, f)
        for f in os.listdir(directory)
        if f == f"{name}.index" or f.startswith(f"{name}.data-")
    ]


def _write_marker(directory, prefixes):
    names = [os.path.basename(p) for p in prefixes]
    with files.atomic_write(os.path.join(directory, "checkpoint")) as f:
        f.write(f'model_checkpoint_path: "{names[0]}"\n')
        f.writelines(f'all_model_checkpoint_paths: "{name}"\n' for name in reversed(names))


def restore_for_inference(
    model: tf.keras.Model, run_dir: str, checkpoint: Optional[str] = None, averages: bool = False
) -> str:
    """Restores a built model's weights from a run directory.

    Args:
      model: the network that the run directory's config describes.
      run_dir: the run directory.
      checkpoint: which one: None for the newest intact one, "best", a step, or a prefix.
      averages: whether to take the moving averages of the weights (--ema_decay) instead of them.

    Returns:
      The prefix of the checkpoint used.

    Raises:
      ValueError: no such checkpoint, or it does not hold all weights of the model.
    """
    prefix = find_checkpoint(run_dir, checkpoint)
    try:
        status = tf.train.Checkpoint(model=model).read(prefix)
        status.expect_partial()  # the optimizer's part is not wanted
        status.assert_existing_objects_matched()
    except (AssertionError, *_READ_ERRORS) as error:
        raise ValueError(
            f"{prefix} does not fit the network of {run_dir}: {str(error).splitlines()[0][:300]}"
        ) from None
    if averages:
        _restore_averages(model, prefix)
    return prefix


def has_averages(prefix: str) -> bool:
    """Whether a checkpoint holds moving averages of the weights."""
    return bool(_stored_variables(tf.train.load_checkpoint(prefix), "averages"))


def _restore_averages(model, prefix):
    reader = tf.train.load_checkpoint(prefix)
    stored = _stored_variables(reader, "averages")
    if not stored:
        raise ValueError(f"{prefix} holds no moving averages; the run had --ema_decay=0.")
    for path, variable in model_variables(model).items():
        if path in stored:
            variable.assign(reader.get_tensor(stored[path]))


def find_checkpoint(run_dir: str, checkpoint: Optional[str] = None) -> str:
    """The prefix of a run's checkpoint, chosen as in `restore_for_inference`.

    Raises:
      ValueError: there is no such checkpoint.
    """
    directory = os.path.join(run_dir, CHECKPOINTS)
    if not checkpoint or checkpoint == "best":
        prefix = newest_intact(directory if not checkpoint else os.path.join(run_dir, BEST))
        if prefix is None:
            raise ValueError(
                f"--run_dir={run_dir} has no readable {'best ' if checkpoint else ''}checkpoint in"
                f" {directory}."
            )
        return prefix
    prefix = (
        os.path.join(directory, f"{_NAME}-{checkpoint}")
        if str(checkpoint).isdigit()
        else checkpoint
    )
    if not os.path.exists(prefix + ".index"):
        steps = ", ".join(str(step_of(p)) for p in saved_prefixes(directory))
        raise ValueError(
            f"No checkpoint {prefix}. {run_dir} has those of steps: {steps or 'none'}."
        )
    return prefix


class Initialised(NamedTuple):
    """What `initialise` did, as paths of variables below the model.

    Attributes:
      restored: variables that took their value from the checkpoint.
      other_shape: (path, shape in the model, shape in the checkpoint) of those that kept their
        random value because the shapes differ, as predictors for other classes do.
      missing: variables that the checkpoint lacks.
      unused: variables of the checkpoint's model that the model lacks.
    """

    restored: List[str]
    other_shape: List[Tuple[str, Tuple[int, ...], Tuple[int, ...]]]
    missing: List[str]
    unused: List[str]


def initialise(model: tf.keras.Model, init_weights: str) -> Initialised:
    """Gives a built model the weights of a checkpoint, wherever name and shape fit, and logs it.

    Args:
      model: the built network.
      init_weights: a run directory or a checkpoint prefix.

    Raises:
      ValueError: there is no such checkpoint, or nothing in it fits.
    """
    prefix = find_init_checkpoint(init_weights)
    reader = tf.train.load_checkpoint(prefix)
    stored = _stored_variables(reader)
    restored, other_shape, missing = [], [], []
    own = model_variables(model)
    for path, variable in own.items():
        if path not in stored:
            missing.append(path)
            continue
        value = reader.get_tensor(stored[path])
        if tuple(value.shape) == tuple(variable.shape):
            variable.assign(value.astype(variable.dtype.as_numpy_dtype))
            restored.append(path)
        else:
            other_shape.append((path, tuple(variable.shape), tuple(value.shape)))
    if not restored:
        raise ValueError(
            f"--init_weights={init_weights}: none of the {len(own)} variables of the network is in"
            f" {prefix} with the same shape. Is --backbone the same?"
        )
    result = Initialised(restored, other_shape, missing, sorted(set(stored) - set(own)))
    _log_initialised(prefix, len(own), result)
    return result


def find_init_checkpoint(init_weights: str) -> str:
    """The checkpoint prefix that --init_weights means.

    Raises:
      ValueError: there is none.
    """
    if os.path.exists(init_weights + ".index"):
        problem = damage(init_weights)
        if problem:
            raise ValueError(f"--init_weights={init_weights} is damaged: {problem}")
        return init_weights
    for directory in (os.path.join(init_weights, CHECKPOINTS), init_weights):
        prefix = newest_intact(directory)
        if prefix:
            return prefix
    raise ValueError(
        f"--init_weights={init_weights} is neither a run directory with a readable checkpoint nor a"
        " checkpoint prefix such as DIR/checkpoints/ckpt-1000, nor a .pkl or .pth file, nor"
        " imagenet."
    )


def _stored_variables(reader, root="model"):
    """Path below the object `root` of a checkpoint -> key of the tensor."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    nodes = graph.nodes
    roots = [child.node_id for child in nodes[0].children if child.local_name == root]
    # Breadth first, as in `model_variables`: what has two paths gets the same one in both.
    paths, seen, queue = {}, set(roots), [(root, "") for root in roots]
    while queue:
        node_id, path = queue.pop(0)
        for attribute in nodes[node_id].attributes:
            if attribute.name == "VARIABLE_VALUE":
                paths[path] = attribute.checkpoint_key
        for child in nodes[node_id].children:
            if child.node_id not in seen:
                seen.add(child.node_id)
                queue.append((child.node_id, f"{path}/{child.local_name}".lstrip("/")))
    return paths


def model_variables(model: tf.keras.Model) -> Dict[str, tf.Variable]:
    """Path below the model, as in a checkpoint's object graph -> variable."""
    view = tf.train.TrackableView(model)
    paths, seen, queue = {}, {id(model)}, [(model, "")]
    while queue:
        node, path = queue.pop(0)
        if isinstance(node, tf.Variable):
            paths[path] = node
            continue
        for name, child in view.children(node).items():
            if id(child) not in seen:
                seen.add(id(child))
                queue.append((child, f"{path}/{name}".lstrip("/")))
    return paths


def _log_initialised(prefix, total, result):
    logging.info("Initialised %d of %d variables from %s.", len(result.restored), total, prefix)
    for path, wanted, found in result.other_shape:
        logging.info(
            "  Not restored, starts at random: %s is %s here and %s there.", path, wanted, found
        )
    if result.missing:
        logging.info("  Not in the checkpoint, start at random: %s", ", ".join(result.missing))
    if result.unused:
        logging.info("  In the checkpoint, not used: %s", ", ".join(result.unused))
