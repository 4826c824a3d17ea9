"""From a run directory to a SavedModel."""

import os
import tempfile
from typing import Any, Dict, Mapping, Optional

import tensorflow as tf
from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories
from pfpn_tf.model import layers, norms, panoptic_fpn
from pfpn_tf.runs import restore, run_directory
from pfpn_tf.serving import module as module_lib
from pfpn_tf.serving import server_files
from pfpn_tf.utils import quiet
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.keras_policy import layers_of

METADATA = "metadata.json"

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Values of --precision for an export, and the Keras policies behind them."""


def load_module(
    run_dir: str,
    checkpoint: Optional[str] = None,
    settings: Mapping[str, Any] = {},
    precision: str = "float32",
) -> module_lib.PanopticModule:
    """The trained network of a run directory, ready to answer.

    Args:
      run_dir: of a training or a weight conversion.
      checkpoint: as `restore.restore_for_inference` takes it.
      settings: on top of the run's, by flag name.
      precision: of the convolutions, a key of `PRECISIONS`; statistics, softmax, boxes and fusion
        stay in float32.

    Raises:
      UserError: no such run, checkpoint or precision, or settings that do not fit its weights.
    """
    config, info = run_directory.load_run(run_dir)
    config = config.replace(**settings)
    network = build_network(config, info, precision)
    prefix = restore.restore_for_inference(network, run_dir, checkpoint or None)
    logging.info("Weights: %s", prefix)
    return module_of(network, config, info)


def build_network(
    config: config_lib.Config, info: categories.DatasetInfo, precision: str = "float32"
) -> panoptic_fpn.PanopticFPN:
    """A network that computes in `precision`, a key of `PRECISIONS`, with initial weights.

    Raises:
      UserError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"--precision={precision} is none of {', '.join(PRECISIONS)}, which an export can have."
        )
    with layers_of(PRECISIONS[precision]):
        return panoptic_fpn.build_for_dataset(config.model, info)


def module_of(
    network: panoptic_fpn.PanopticFPN, config: config_lib.Config, info: categories.DatasetInfo
) -> module_lib.PanopticModule:
    """The module around a network; folds the network's frozen norms for good."""
    layers.fold_frozen_norms(network)
    _round_weights(network)
    return module_lib.PanopticModule(
        lambda images, image_hw, mask_score: network(
            images, image_hw, training=False, mask_score_threshold=mask_score
        ),
        network.variables,
        config,
        info,
    )


def _round_weights(network):
    """Keeps the weights that are rounded at every use as what they are rounded to.

    A network that computes in bfloat16 gives the same answers then, from half as many bytes. Norms
    compute in float32, with weights of their own.
    """
    for layer in network.submodules:
        if not isinstance(layer, tf.keras.layers.Layer):
            continue
        dtype = tf.as_dtype(layer.compute_dtype)
        if dtype != tf.bfloat16 or isinstance(layer, norms.NORMS):
            continue
        for name, value in list(vars(layer).items()):
            if isinstance(value, tf.Variable) and value.dtype == tf.float32:
                rounded = tf.Variable(tf.cast(value.value(), dtype), trainable=False, name=name)
                setattr(layer, name, rounded)


def export(module: module_lib.PanopticModule, export_dir: str) -> Dict[str, Any]:
    """Writes a SavedModel with what the server reads beside it.

    `export_dir` appears only when it is complete.

    Args:
      module: what to save.
      export_dir: new directory MODEL/VERSION; the server wants a whole number for a version.

    Returns:
      Signature name to concrete function.

    Raises:
      UserError: the directory exists and is not empty, or the extra `serving` is not installed.
    """
    check_target(export_dir)
    model_name = os.path.basename(os.path.dirname(os.path.abspath(export_dir)))
    export_dir = os.path.realpath(export_dir)
    parent = os.path.dirname(export_dir)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".", suffix=".tmp") as folder:
        signatures = module.signatures()
        metadata, complete = os.path.join(folder, METADATA), os.path.join(folder, "complete")
        with open(metadata, "w", encoding="utf-8") as f:
            f.write(module.metadata_text)
        # Saving the module itself would trace each of its functions once more, and the file would
        # hold the network twice.
        content = tf.Module()
        content.weights = module.weights
        content.metadata_asset = tf.saved_model.Asset(metadata)
        # No gradients: they would only add functions that nobody calls.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        os.mkdir(complete)  # as this process makes folders; TensorFlow has modes of its own
        with quiet.errors_only():
            tf.saved_model.save(content, complete, signatures=signatures, options=options)
        server_files.write(complete, model_name, signatures, module.config.export)
        os.rename(complete, export_dir)  # in place of an empty folder, if there is one
    return signatures


def check_target(export_dir: str) -> None:
    """Raises UserError if something is in the way at `export_dir`, or a package is missing."""
    try:
        from tensorflow_serving.apis import prediction_log_pb2  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'An export needs tensorflow-serving-api ({error}): pip install -e ".[serving]"'
        ) from None
    if os.path.exists(export_dir) and (not os.path.isdir(export_dir) or os.listdir(export_dir)):
        raise UserError(
            f"--export_dir={export_dir} exists already; give a new one, say the next "
            "version number."
        )
