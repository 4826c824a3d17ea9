"""What stands before the names of a network's tensors, such as `model.` or `module.`."""

import re
from typing import Dict

import numpy as np
from absl import logging

from pfpn_tf.utils.errors import UserError

# Detectron2's and MMDetection's names begin with these, those of a backbone alone with `_STAGE`.
# Anything else with which every name begins is a prefix.
_PARTS = (
    *("backbone", "bottom_up", "stem", "neck", "proposal_generator", "rpn_head", "roi_heads"),
    *("roi_head", "sem_seg_head", "semantic_head"),
)
_STAGE = re.compile(r"layer[1-4]|res[2-5]")
_NORMALISATION = ("pixel_mean", "pixel_std")  # some tools write them without the others' prefix


def _without_common_prefix(tensors):
    names = [name for name in tensors if name not in _NORMALISATION]
    firsts = {name.partition(".")[0] if "." in name else "" for name in names}
    if len(names) < 2 or len(firsts) > 1 or firsts & {"", *_PARTS}:
        return tensors
    prefix = f"{firsts.pop()}."
    return _without_common_prefix({k.removeprefix(prefix): v for k, v in tensors.items()})


def of_the_network(tensors: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The tensors by their names in the network: without what stands before them all, and without
    the modules beside the network, such as losses.

    Raises:
      UserError: there are several networks.
    """
    tensors = _without_common_prefix(tensors)
    prefixes = {name: _prefix(name) for name in tensors}
    inside = {prefix for prefix in prefixes.values() if prefix}
    if not inside or "" in prefixes.values():
        return tensors
    found: Dict[str, np.ndarray] = {}
    for prefix in inside:
        taken = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if found.keys() & taken.keys():
            raise UserError(
                f"holds several networks: the names begin with {' and '.join(sorted(inside))}:"
                " save the tensors of the one that is meant in a file of their own."
            )
        found.update(taken)
    if len(inside) > 1:
        return tensors
    (prefix,) = inside
    found.update((name, tensors[name]) for name in _NORMALISATION if name in tensors)
    others = {name for name in tensors if not name.startswith(prefix)} - {*_NORMALISATION}
    if others:
        logging.info("Not used, as it stands beside %s: %s", prefix, ", ".join(sorted(others)))
    return found


def _prefix(name):
    """What stands before the part of the network; None if there is no such part."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part in _PARTS or _STAGE.fullmatch(part):
            return "".join(f"{before}." for before in parts[:i])
    return None
