"""Requests that are answered at the same time, as a server does."""

import concurrent.futures

import numpy as np
import tensorflow as tf

from tests.serving.test_module import photo

NUM_THREADS = 8
NUM_REQUESTS = 400


def test_answers_do_not_depend_on_what_else_is_asked(loaded):
    """A kernel that keeps values of one call between its steps mixes up requests."""
    images = [photo(64 + 2 * i, 96)[None] for i in range(6)]

    def ask(i):
        answer = loaded.signatures["network"](images=tf.constant(images[i % len(images)]))
        return {name: value.numpy() for name, value in answer.items()}

    alone = [ask(i) for i in range(len(images))]
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        for i, answer in enumerate(pool.map(ask, range(NUM_REQUESTS))):
            for name, value in alone[i % len(images)].items():
                np.testing.assert_array_equal(answer[name], value, f"{name} of request {i}")
