"""Cross-entropy of upsampled logits against plain loops, its gradient against differences."""

import numpy as np
import tensorflow as tf

from pfpn_tf.ops.upsampled_cross_entropy import upsampled_cross_entropy
from tests.reference.resize import resize, resize_axis

S = 6
VOID = 255


def random_case(hw):
    """Logits [2, h, w, S] and labels [2, 4 h, 4 w], a fifth of them void."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, S, [2, 4 * hw[0], 4 * hw[1]])
    labels[rng.random(labels.shape) < 0.2] = VOID
    return rng.normal(size=[2, *hw, S]) * 2, labels.astype(np.uint8)


def value_and_gradient(logits, labels):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = 3.0 * upsampled_cross_entropy(logits, labels, VOID)
    return loss, tape.gradient(loss, logits)


def test_it_equals_upsampling_the_whole_image(maybe_graph):
    """Value and gradient, where the tiles fit and where they do not."""
    signature = [
        tf.TensorSpec([None, None, None, S], tf.float64),
        tf.TensorSpec([None, None, None], tf.uint8),
    ]
    function = maybe_graph(value_and_gradient, input_signature=signature)
    for hw in ((1, 1), (1, 5), (16, 17), (33, 9)):
        logits, labels = random_case(hw)
        loss, gradient = function(tf.constant(logits), tf.constant(labels))

        rows, columns = (resize_axis(np.eye(size), 4 * size, 0) for size in hw)
        full = np.einsum("oh,bhwc,pw->bopc", rows, logits, columns)
        np.testing.assert_allclose(full, resize(logits, labels.shape[1:]), atol=1e-12)
        log_probs = full - np.logaddexp.reduce(full, axis=-1, keepdims=True)
        labelled = (labels != VOID)[..., None]
        one_hot = np.eye(256)[labels][..., :S]
        total = -3.0 * np.sum(log_probs * one_hot * labelled)
        np.testing.assert_allclose(loss, total, rtol=1e-12, err_msg=str(hw))
        full_gradient = 3.0 * (np.exp(log_probs) - one_hot) * labelled
        expected = np.einsum("oh,bopc,pw->bhwc", rows, full_gradient, columns)
        np.testing.assert_allclose(gradient, expected, atol=1e-12, err_msg=str(hw))


def test_the_gradient_is_the_slope():
    logits, labels = random_case((2, 5))
    theory, numeric = tf.test.compute_gradient(
        lambda x: upsampled_cross_entropy(x, labels, VOID), [tf.constant(logits)]
    )
    np.testing.assert_allclose(theory[0], numeric[0], atol=1e-6)
