"""Names of the network's parts on its operations, which profiles show."""

import functools
from typing import Any, Callable, TypeVar, cast

import tensorflow as tf

GRADIENTS = "gradient_tape"
"""The first scope in the names of gradients, as TensorFlow has it."""

Function = TypeVar("Function", bound=Callable[..., Any])


def in_scope(name: str) -> Callable[[Function], Function]:
    """Makes a function put its operations into the name scope `name`."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def run(*args, **kwargs):
            with tf.name_scope(name):
                return function(*args, **kwargs)

        return cast(Function, run)

    return decorate


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """`tf.custom_gradient` that names the gradient's operations after the forward pass's scope, as
    TensorFlow does with its own gradients.
    """

    @functools.wraps(function)
    def forward(*args):
        scope = "" if tf.executing_eagerly() else tf.compat.v1.get_default_graph().get_name_scope()
        result, gradient = function(*args)

        def scoped(*upstream):
            with tf.name_scope(f"{GRADIENTS}/{scope}/"):  # the slash at the end: as it stands
                return gradient(*upstream)

        return result, scoped if scope else gradient

    return tf.custom_gradient(forward)
