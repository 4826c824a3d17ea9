"""Metrics as people read them: a table, one line to copy, scalars for TensorBoard.

All of it is in points (0 to 100); `metrics.json` holds fractions at full precision.
"""

import collections
import json
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from pfpn_tf.utils import tables
from pfpn_tf.utils.files import atomic_write

_GROUPS = (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
_CITYSCAPES = {"mIoU": "miou", "iIoU": "iiou", "AP": "AP", "AP50": "AP50"}
_COUNTS = ("TP", "FP", "FN")
_AP_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")


def flat_scalars(metrics: Dict[str, Any], prefix: str = "eval/") -> Dict[str, float]:
    """The main numbers in points by TensorBoard tag; what does not exist is left out.

    Tags: PQ SQ RQ with suffixes _th and _st, mIoU fwIoU (of the semantic branch where there is one,
    otherwise of the panoptic maps), box_AP box_AP50 ... mask_AP mask_AP50 ... Those of averaged
    weights (`ema`) begin with eval_ema/. The losses of a training on its validation data, which are
    no points, are eval_loss/total, ...
    """
    scalars = {}
    for group, suffix in _GROUPS:
        row = metrics.get("panoptic", {}).get(group)
        if row:
            for key in ("pq", "sq", "rq"):
                scalars[f"{key.upper()}{suffix}"] = row[key]
    # The branch's own stands for the network, as in the paper.
    semantic = metrics.get("semantic_branch") or metrics.get("semantic")
    if semantic:
        scalars.update({"mIoU": semantic["miou"], "fwIoU": semantic["fwiou"]})
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        if kind in metrics:
            scalars.update({f"{name}_{key}": metrics[kind][key] for key in _AP_KEYS})
    cityscapes = metrics.get("cityscapes", {})
    scalars.update({f"cs_{name}": cityscapes.get(key) for name, key in _CITYSCAPES.items()})
    # pycocotools says -1 where there is no object.
    known = {k: v for k, v in scalars.items() if v is not None and v >= 0}
    found = {prefix + key: 100.0 * value for key, value in known.items()}
    if prefix:
        for name, value in metrics.get("losses", {}).items():
            found[prefix.replace("/", f"_loss/{name}")] = value
    if prefix and "ema" in metrics:
        found.update(flat_scalars(metrics["ema"], prefix.replace("/", "_ema/")))
    return found


def all_scalars(metrics: Dict[str, Any], categories: Sequence[Dict[str, Any]]) -> Dict[str, float]:
    """`flat_scalars` and `class_scalars`."""
    return {**flat_scalars(metrics), **class_scalars(metrics, categories)}


def table(metrics: Dict[str, Any]) -> str:
    """A text table of PQ, mIoU and AP, whichever there are."""
    blocks = []
    if "panoptic" in metrics:
        rows = []
        for group, _ in _GROUPS:
            row = metrics["panoptic"][group] or {"n": 0}
            values = [_points(row.get(key)) for key in ("pq", "sq", "rq")]
            rows.append([group, *values, str(row["n"])])
        blocks.append(tables.aligned(["Panoptic", "PQ", "SQ", "RQ", "N"], rows))
    rows = []
    for key, name in (("semantic_branch", "Semantic branch"), ("semantic", "Panoptic maps")):
        if key in metrics:
            rows.append([name] + [_points(metrics[key][k]) for k in ("miou", "fwiou")])
            things_as_one = metrics[key].get("things_as_one")
            if things_as_one:
                rows.append(
                    ["  things as one"] + [_points(things_as_one[k]) for k in ("miou", "fwiou")]
                )
    if rows:
        blocks.append(tables.aligned(["Semantic", "mIoU", "fwIoU"], rows))
    rows = [
        [name] + [_points(metrics[kind][key]) for key in _AP_KEYS]
        for kind, name in (("bbox", "Box"), ("segm", "Mask"))
        if kind in metrics
    ]
    if rows:
        blocks.append(tables.aligned(["Instances", *_AP_KEYS], rows))
    if "cityscapes" in metrics:
        values = [_points(metrics["cityscapes"].get(key)) for key in _CITYSCAPES.values()]
        blocks.append(
            tables.aligned(["Cityscapes", *_CITYSCAPES], [["cityscapesscripts", *values]])
        )
    if "losses" in metrics:
        values = [f"{value:.4f}" for value in metrics["losses"].values()]
        rows = [["Validation data", *values]]
        blocks.append(tables.aligned(["Losses", *metrics["losses"]], rows))
    blocks += [f"Note: {note}" for note in metrics.get("notes", [])]
    if "ema" in metrics:
        blocks += ["The moving averages of the weights:", table(metrics["ema"])]
    return "\n\n".join(blocks)


class ClassRow(NamedTuple):
    """One line of the table of classes.

    Attributes:
      category_id, name, is_thing: of the class.
      values: column -> a count, or a number in points; None: there is nothing to say.
    """

    category_id: Any
    name: str
    is_thing: bool
    values: Dict[str, Optional[float]]

    def texts(self) -> List[str]:
        """The values as the tables show them."""
        return [
            "-" if value is None else f"{value}" if name in _COUNTS else f"{value:.2f}"
            for name, value in self.values.items()
        ]


def class_rows(metrics: Dict[str, Any], categories: Sequence[Dict[str, Any]]) -> List[ClassRow]:
    """What the metrics say about each class, things first.

    Args:
      metrics: of `Evaluator.evaluate` or `score_files`.
      categories: COCO categories.
    """
    # IoU of the panoptic maps, if there are any, else of the semantic branch.
    iou = (metrics.get("semantic") or metrics.get("semantic_branch") or {}).get("iou")
    rows = []
    for category in sorted(categories, key=lambda c: c["isthing"] != 1):
        key = str(category["id"])
        values: Dict[str, Optional[float]] = {}
        if "panoptic" in metrics:
            row = metrics["panoptic"]["per_class"][key]
            occurs = row["tp"] + row["fp"] + row["fn"] > 0
            for name in ("PQ", "SQ", "RQ"):
                values[name] = 100 * row[name.lower()] if occurs else None
            for name in _COUNTS:
                values[name] = row[name.lower()] if occurs else None
        if iou:
            values["IoU"] = _known_points(iou.get(key))
        for kind, name in (("bbox", "Box AP"), ("segm", "Mask AP")):
            if kind in metrics:
                values[name] = _known_points(metrics[kind]["per_class"].get(key, {}).get("AP"))
        rows.append(
            ClassRow(category["id"], category.get("name", key), category["isthing"] == 1, values)
        )
    return rows


def class_scalars(
    metrics: Dict[str, Any], categories: Sequence[Dict[str, Any]], prefix: str = "eval"
) -> Dict[str, float]:
    """PQ, IoU and AP of each class in points by TensorBoard tag, e.g. eval_PQ/person or
    eval_mask_AP/person; a name that several classes have is followed by the category id.

    Args:
      metrics, categories: as `class_rows`; those of averaged weights (`ema`) begin with eval_ema.
    """
    rows = class_rows(metrics, categories)
    names = collections.Counter(row.name for row in rows)
    scalars = {}
    for column in ("PQ", "IoU", "Box AP", "Mask AP"):
        tag = column.replace("Box ", "box_").replace("Mask ", "mask_")
        for row in rows:
            value = row.values.get(column)
            if value is not None:
                name = row.name if names[row.name] == 1 else f"{row.name} ({row.category_id})"
                scalars[f"{prefix}_{tag}/{name}"] = value
    if "ema" in metrics:
        scalars.update(class_scalars(metrics["ema"], categories, f"{prefix}_ema"))
    return scalars


def class_table(metrics: Dict[str, Any], categories: Sequence[Dict[str, Any]]) -> str:
    """A text table of every class. Args: as `class_rows`."""
    rows = class_rows(metrics, categories)
    columns = list(rows[0].values) if rows else []
    if not columns:
        return ""
    lines = []
    for kind, is_thing in (("Things", True), ("Stuff", False)):
        group = [row for row in rows if row.is_thing == is_thing]
        if any(value is not None for row in group for value in row.values.values()):
            lines.append([kind] + [""] * len(columns))
            lines += [["  " + row.name, *row.texts()] for row in group]
    return tables.aligned(["Class", *columns], lines)


def copy_paste_line(metrics: Dict[str, Any]) -> str:
    """The main numbers on one line: names, then values, separated by commas."""
    scalars = flat_scalars(metrics, prefix="")
    order = ["PQ", "SQ", "RQ", "PQ_th", "PQ_st", "mIoU", "fwIoU"]
    order += [f"{kind}_{key}" for kind in ("box", "mask") for key in ("AP", "AP50", "AP75")]
    order += [f"cs_{name}" for name in _CITYSCAPES]
    names = [name for name in order if name in scalars]
    return f"copypaste: {','.join(names)}: {','.join(f'{scalars[name]:.4f}' for name in names)}"


def _points(value) -> str:
    known = _known_points(value)
    return "-" if known is None else f"{known:.2f}"


def _known_points(value) -> Optional[float]:
    """In points; None for what does not exist, of which pycocotools says -1."""
    return None if value is None or value < 0 else 100 * value


def write_metrics(path: str, metrics: Dict[str, Any]) -> None:
    """Writes metrics as JSON."""
    with atomic_write(path) as f:
        json.dump(metrics, f, indent=2)
        f.write("\n")
