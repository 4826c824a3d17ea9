"""The former name of `pfpn_tf.weights.detectron2`, for programs that still import it."""

from pfpn_tf.weights.detectron2 import (  # noqa: F401
    load,
    parameters,
    to_detectron2,
    to_detectron2_names,
    write,
)
from pfpn_tf.weights.safe_pickle import read_tensors  # noqa: F401
