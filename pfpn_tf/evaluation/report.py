"""Metrics as people read them: a table, one line to copy, scalars for TensorBoard.

All of it is in points (0 to 100); `metrics.json` holds fractions at full precision.
"""

import sys
import time
from typing import Any, Dict, List, Optional

from absl import logging

_GROUPS = (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
_AP_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")


def flat_scalars(metrics: Dict[str, Any], prefix: str = "eval/") -> Dict[str, float]:
    """The main numbers in points by TensorBoard tag; what does not exist is left out.

    Tags: PQ SQ RQ with suffixes _th and _st, mIoU fwIoU (of the semantic branch where there is one, otherwise of the
    panoptic maps), box_AP box_AP50 ... mask_AP mask_AP50 ...
    """
    scalars = {}
    for group, suffix in _GROUPS:
        row = metrics.get("panoptic", {}).get(group)
        if row:
            for key in ("pq", "sq", "rq"):
                scalars[f"{key.upper()}{suffix}"] = row[key]
    semantic = main_semantic(metrics)
    if semantic:
        scalars.update({"mIoU": semantic["miou"], "fwIoU": semantic["fwiou"]})
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        if kind in metrics:
            scalars.update({f"{name}_{key}": metrics[kind][key] for key in _AP_KEYS})
    known = {k: v for k, v in scalars.items() if v is not None and v >= 0}  # pycocotools: -1 is "no objects"
    return {prefix + key: 100.0 * value for key, value in known.items()}


def main_semantic(metrics: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """The semantic result that stands for the network: the branch's own, as in the paper."""
    return metrics.get("semantic_branch") or metrics.get("semantic")


def table(metrics: Dict[str, Any]) -> str:
    """A text table of PQ, mIoU and AP, whichever there are."""
    blocks = []
    if "panoptic" in metrics:
        rows = []
        for group, _ in _GROUPS:
            row = metrics["panoptic"][group]
            values = [_points(row[k]) for k in ("pq", "sq", "rq")] + [str(row["n"])] if row else ["-"] * 3 + ["0"]
            rows.append([group] + values)
        blocks.append(_aligned(["Panoptic", "PQ", "SQ", "RQ", "N"], rows))
    rows = []
    for key, name in (("semantic_branch", "Semantic branch"), ("semantic", "Panoptic maps")):
        if key in metrics:
            rows.append([name] + [_points(metrics[key][k]) for k in ("miou", "fwiou")])
            things_as_one = metrics[key].get("things_as_one")
            if things_as_one:
                rows.append(["  things as one"] + [_points(things_as_one[k]) for k in ("miou", "fwiou")])
    if rows:
        blocks.append(_aligned(["Semantic", "mIoU", "fwIoU"], rows))
    rows = [
        [name] + [_points(metrics[kind][key]) for key in _AP_KEYS]
        for kind, name in (("bbox", "Box"), ("segm", "Mask"))
        if kind in metrics
    ]
    if rows:
        blocks.append(_aligned(["Instances", *_AP_KEYS], rows))
    blocks += [f"Note: {note}" for note in metrics.get("notes", [])]
    return "\n\n".join(blocks)


def copy_paste_line(metrics: Dict[str, Any]) -> str:
    """The main numbers on one line: names, then values, separated by commas."""
    scalars = flat_scalars(metrics, prefix="")
    order = ["PQ", "SQ", "RQ", "PQ_th", "PQ_st", "mIoU", "fwIoU"]
    order += [f"{kind}_{key}" for kind in ("box", "mask") for key in ("AP", "AP50", "AP75")]
    names = [name for name in order if name in scalars]
    return f"copypaste: {','.join(names)}: {','.join(f'{scalars[name]:.4f}' for name in names)}"


def _points(value) -> str:
    return "-" if value is None or value < 0 else f"{100 * value:.2f}"


def _aligned(header: List[str], rows: List[List[str]]) -> str:
    cells = [header] + rows
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0])] + [v.rjust(w) for v, w in zip(row[1:], widths[1:])]) for row in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


class Progress:
    """Rate and time left: a line that renews itself on a terminal, a log line every half minute elsewhere."""

    _LOG_SECONDS = 30.0
    _TERMINAL_SECONDS = 0.5

    def __init__(self, total: int):
        self._total = total
        self._done = 0
        self._started = self._first_done = self._last_shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def advance(self) -> None:
        """One image more is done."""
        now = time.monotonic()
        self._done += 1
        if self._done == 1:
            self._first_done = now  # The first image includes the tracing; it says nothing about the rate.
        if now - self._last_shown > (self._TERMINAL_SECONDS if self._terminal else self._LOG_SECONDS):
            self._last_shown = now
            self._show(now)

    def close(self) -> None:
        """Ends the line."""
        now = time.monotonic()
        if self._terminal:
            self._show(now)
            print(file=sys.stderr)
        else:
            logging.info("Evaluated %d images in %.1f s.", self._done, now - self._started)

    def _show(self, now):
        text = f"Evaluated {self._done} of {self._total} images"
        if self._done > 1:
            seconds = (now - self._first_done) / (self._done - 1)
            left = round(seconds * (self._total - self._done))
            text += f", {1 / max(seconds, 1e-9):.2f} images/s, {left // 60}:{left % 60:02d} left"
        if self._terminal:
            print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)
        else:
            logging.info("%s", text)
