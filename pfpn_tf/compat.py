"""The differences between the two stacks: TensorFlow 2.15 with its own Keras 2, and later
TensorFlow with tf-keras.

Everything else in the project runs on both as it is.
"""

import warnings

import tensorflow as tf


def adjust_hsv(
    image: tf.Tensor, hue: tf.Tensor, saturation: tf.Tensor, value: tf.Tensor
) -> tf.Tensor:
    """Turns the hue and scales saturation and value, as a linear map in YIQ space.

    Args:
      image: [H, W, 3] float RGB.
      hue: [] angle in radians.
      saturation: [] factor.
      value: [] factor.

    Returns:
      [H, W, 3] float RGB, not clipped.
    """
    with warnings.catch_warnings():  # of the end of tensorflow_addons' life
        warnings.simplefilter("ignore")
        try:
            import tensorflow_addons as addons
        except (ImportError, AttributeError):  # TensorFlow 2.16 and later
            return adjust_hsv_by_tf_image(image, hue, saturation, value)
        return addons.image.adjust_hsv_in_yiq(image, hue, saturation, value)


def adjust_hsv_by_tf_image(image, hue, saturation, value) -> tf.Tensor:
    """`adjust_hsv` without tensorflow_addons."""
    luma, in_phase, quadrature = tf.unstack(tf.image.rgb_to_yiq(image), axis=-1)
    cosine, sine = saturation * tf.cos(hue), saturation * tf.sin(hue)
    turned = (luma, cosine * in_phase - sine * quadrature, sine * in_phase + cosine * quadrature)
    return tf.image.yiq_to_rgb(value * tf.stack(turned, axis=-1))
