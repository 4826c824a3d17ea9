"""Memory: the peak of this process, and an estimate for a training step before there is one."""

import resource
from typing import Dict

import tensorflow as tf


def peak() -> Dict[str, int]:
    """Peak bytes of this process so far, by place: "main memory", "GPU:0", ..."""
    found = {"main memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    for device in tf.config.list_logical_devices("GPU"):
        used = tf.config.experimental.get_memory_info(device.name)["peak"]
        found[device.name.rpartition("device:")[2]] = used
    return found
