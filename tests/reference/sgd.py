"""SGD and its schedule as Detectron2 defines them, step by step in float64."""

import numpy as np


def schedule(step, rate, warmup_steps, warmup_factor, drops, factor):
    """The rate of one step, counted from 0."""
    rate = rate * factor ** sum(step >= drop for drop in drops)
    if step < warmup_steps:
        share = step / warmup_steps
        rate *= warmup_factor * (1 - share) + share
    return rate


def steps(weights, gradients, rates, momentum, decay):
    """The weights after each step, from the gradients of each step."""
    weights, velocity = np.array(weights, float), 0.0
    history = []
    for gradient, rate in zip(gradients, rates):
        velocity = momentum * velocity + (gradient + decay * weights)
        weights = weights - rate * velocity
        history.append(weights)
    return history
