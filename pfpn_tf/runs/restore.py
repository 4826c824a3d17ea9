"""Weights of a run directory into a network: for inference, or as the start of another training."""

import os
import re
from typing import Dict, Optional

import numpy as np
import tensorflow as tf

from pfpn_tf.runs import checkpoints, run_directory
from pfpn_tf.utils import quiet
from pfpn_tf.utils.errors import UserError


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
      UserError: no such checkpoint, or it does not hold all weights of the model.
    """
    prefix = find_checkpoint(run_dir, checkpoint)
    problem = None
    with quiet.errors_only():  # of all that is not read when it fails, a line each
        try:
            status = tf.train.Checkpoint(model=model).read(prefix)
            status.expect_partial()  # the optimizer's part is not wanted
            status.assert_existing_objects_matched()
        except (AssertionError, *checkpoints.READ_ERRORS) as error:
            problem = str(error).splitlines()[0][:300]
    if problem is not None:
        raise UserError(f"{prefix} does not fit the network of {run_dir}: {problem}")
    if averages:
        stored = stored_values(prefix, "averages")
        if not stored:
            raise UserError(f"{prefix} holds no moving averages; the run had --ema_decay=0.")
        for path, variable in model_variables(model).items():  # of a branch, perhaps
            if path in stored:
                variable.assign(stored[path])
    return prefix


def has_averages(prefix: str) -> bool:
    """Whether a checkpoint holds moving averages of the weights; reads its index alone."""
    keys = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    return any(key.startswith("averages/") for key in keys)


def find_checkpoint(run_dir: str, checkpoint: Optional[str] = None) -> str:
    """The prefix of a run's checkpoint, chosen as in `restore_for_inference`.

    Raises:
      UserError: there is no such checkpoint.
    """
    directory = os.path.join(run_dir, run_directory.CHECKPOINTS)
    if not checkpoint or checkpoint == "best":
        best = "best " if checkpoint else ""
        directory = os.path.join(run_dir, run_directory.BEST) if best else directory
        prefix = checkpoints.newest_intact(directory)
        if prefix is None:
            raise UserError(f"--run_dir={run_dir} has no readable {best}checkpoint in {directory}.")
        return prefix
    is_step = str(checkpoint).isdigit()
    prefix = checkpoints.prefix_of(directory, int(checkpoint)) if is_step else checkpoint
    if not os.path.exists(prefix + ".index"):
        found = map(checkpoints.step_of, checkpoints.saved_prefixes(directory))
        steps = ", ".join(map(str, found)) or "none"
        raise UserError(f"No checkpoint {prefix}. {run_dir} has those of steps: {steps}.")
    return prefix


def find_init_checkpoint(init_weights: str) -> str:
    """The checkpoint prefix that --init_weights means.

    Raises:
      UserError: there is none.
    """
    if os.path.exists(init_weights + ".index"):
        problem = checkpoints.damage(init_weights)
        if problem:
            raise UserError(f"--init_weights={init_weights} is damaged: {problem}")
        return init_weights
    for directory in (os.path.join(init_weights, run_directory.CHECKPOINTS), init_weights):
        prefix = checkpoints.newest_intact(directory)
        if prefix:
            return prefix
    raise UserError(
        f"--init_weights={init_weights} is neither a run directory with a readable checkpoint nor a"
        " checkpoint prefix such as DIR/checkpoints/ckpt-1000, nor a .pkl or .pth file, the"
        " name of a published model, or imagenet."
    )


def stored_values(prefix: str, root: str = "model") -> Dict[str, np.ndarray]:
    """Path below the object `root` of a checkpoint -> value, of all its variables.

    Raises:
      UserError: the checkpoint is damaged.
    """
    reader = tf.train.load_checkpoint(prefix)
    keys = reader.get_variable_to_shape_map()
    matches = (re.fullmatch(rf"{root}/(.+)/\.ATTRIBUTES/VARIABLE_VALUE", key) for key in keys)
    # A key is the path of names in which TensorFlow writes ".S" for "/" and ".." for ".".
    unescaped = {".S": "/", "..": "."}
    values = {}
    for match in filter(None, matches):
        path = re.sub(r"\.[.S]", lambda escape: unescaped[escape[0]], match[1])
        try:
            values[path] = reader.get_tensor(match[0])
        except checkpoints.READ_ERRORS as error:
            raise UserError(f"{prefix} is damaged: {str(error).splitlines()[0][:300]}") from None
    return values


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
