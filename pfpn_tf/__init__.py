"""Panoptic Feature Pyramid Networks for TensorFlow 2 and Keras.

Importing this package imports neither TensorFlow nor anything else that is heavy. Its one side
effect is the switch below: with TensorFlow 2.16 and later, ``tf.keras`` is Keras 3 unless
``TF_USE_LEGACY_KERAS`` is set before TensorFlow first looks for Keras. On TensorFlow 2.15 and
earlier the variable has no meaning.
"""

import os as _os
import sys as _sys

_os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# The module that tf.keras has become says which Keras it is; asking it anything else would load it.
if "'keras._tf_keras.keras'" in repr(getattr(_sys.modules.get("tensorflow"), "keras", None)):
    raise ImportError(
        "tf.keras is Keras 3 in this process already, and pfpn_tf needs Keras 2. Import pfpn_tf "
        "before anything uses tf.keras, or start Python with TF_USE_LEGACY_KERAS=1."
    )

__version__ = "0.1.0"


def load(source, checkpoint=None, **settings):
    """A trained network that answers for images.

    Args:
      source: folder of an export, a run directory, or a name of published weights, which are
        downloaded once: "mmdet://panoptic_fpn_r50_fpn_1x_coco"; pfpn-convert-weights --list prints
        them all.
      checkpoint, **settings: see `pfpn_tf.serving.predictor.load`.

    Raises:
      pfpn_tf.utils.errors.UserError: there is no such network.
    """
    if isinstance(source, str) and "://" in source:
        from pfpn_tf.weights import convert

        source = convert.published_run(source)
    from pfpn_tf.serving import predictor

    return predictor.load(source, checkpoint, **settings)
