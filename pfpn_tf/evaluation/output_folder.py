"""Names in the output folder of an evaluation. The next evaluation removes these files first, so
that nobody takes them for its results.
"""

import contextlib
import glob
import os
import shutil

METRICS = "metrics.json"
REPORT = "report.html"
CONFUSION = "confusion.png"
PIXEL_LEVEL = "pixel_level"
INSTANCE_LEVEL = "instance_level"
AVERAGES = "ema"
_FILES = (REPORT, CONFUSION, "panoptic.json", "instances.json")
_FOLDERS = ("panoptic", "semantic", PIXEL_LEVEL, INSTANCE_LEVEL)


def clear(directory: str) -> None:
    """Removes the files that `Evaluator.evaluate` and `evaluate_run` write.

    It does so only beside a metrics.json, which every finished evaluation leaves: in another folder
    files of these names may be the user's own.
    """
    metrics = os.path.join(directory, METRICS)
    if not os.path.isfile(metrics):
        return
    clear(os.path.join(directory, AVERAGES))
    for name in _FOLDERS:
        remove_folder(os.path.join(directory, name))
    archives = glob.glob(os.path.join(glob.escape(directory), "*2017_*_results.zip"))
    for path in [*(os.path.join(directory, name) for name in _FILES), *archives, metrics]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def remove_folder(path: str) -> None:
    """Removes a folder, if there is one; a link is left alone, as it may lead anywhere."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
