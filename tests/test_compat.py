"""What differs between the two stacks."""

import runpy
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

import pfpn_tf
from pfpn_tf import compat

pytestmark = pytest.mark.both_stacks


def test_hsv_adjustment_is_the_same_on_both_stacks():
    image = tf.constant(np.random.RandomState(0).rand(5, 7, 3), tf.float32)
    for hue, saturation, value in ((0.0, 1.0, 1.0), (0.4, 1.3, 0.9), (-1.0, 0.5, 1.2)):
        parameters = [tf.constant(v, tf.float32) for v in (hue, saturation, value)]
        ours = compat.adjust_hsv_by_tf_image(image, *parameters)
        # Two roundings of the YIQ matrices.
        np.testing.assert_allclose(compat.adjust_hsv(image, *parameters), ours, atol=2e-3)
    identity = compat.adjust_hsv_by_tf_image(image, *[tf.constant(v) for v in (0.0, 1.0, 1.0)])
    # tf.image's two matrices are inverse to 4 digits.
    np.testing.assert_allclose(identity, image, atol=2e-4)


def test_grey_has_no_hue_and_value_scales_it():
    grey = tf.fill([3, 4, 3], 0.5)
    out = compat.adjust_hsv_by_tf_image(grey, tf.constant(0.7), tf.constant(1.4), tf.constant(0.8))
    np.testing.assert_allclose(out, np.full([3, 4, 3], 0.4), atol=2e-4)


def test_a_process_that_uses_keras_3_already_is_told(monkeypatch):
    """As TensorFlow 2.16 and later leave it after the first use of tf.keras."""
    chosen = types.SimpleNamespace(keras=types.ModuleType("keras._tf_keras.keras"))
    monkeypatch.setitem(sys.modules, "tensorflow", chosen)
    with pytest.raises(ImportError, match="Import pfpn_tf before anything uses tf.keras"):
        runpy.run_path(pfpn_tf.__file__)
