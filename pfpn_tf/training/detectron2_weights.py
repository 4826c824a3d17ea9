"""The former name of `pfpn_tf.weights.detectron2`, for programs that still import it."""

from pfpn_tf.weights.detectron2 import load, parameters, to_detectron2, write  # noqa: F401
