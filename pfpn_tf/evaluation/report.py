"""Metrics as people read them: a table, one line to copy, scalars for TensorBoard.

All of it is in points (0 to 100); `metrics.json` holds fractions at full precision.
"""

import json
from typing import Any, Dict, List, NamedTuple, Sequence

from pfpn_tf.utils import tables
from pfpn_tf.utils.files import atomic_write

_GROUPS = (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
_CITYSCAPES = {"mIoU": "miou", "iIoU": "iiou", "AP": "AP", "AP50": "AP50"}
_AP_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")


def flat_scalars(metrics: Dict[str, Any], prefix: str = "eval/") -> Dict[str, float]:
    """The main numbers in points by TensorBoard tag; what does not exist is left out.

    Tags: PQ SQ RQ with suffixes _th and _st, mIoU fwIoU (of the semantic branch where there is one,
    otherwise of the panoptic maps), box_AP box_AP50 ... mask_AP mask_AP50 ... Those of averaged
    weights (`ema`) begin with eval_ema/.
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
    if prefix and "ema" in metrics:
        found.update(flat_scalars(metrics["ema"], prefix.replace("/", "_ema/")))
    return found


def table(metrics: Dict[str, Any]) -> str:
    """A text table of PQ, mIoU and AP, whichever there are."""
    blocks = []
    if "panoptic" in metrics:
        rows = []
        for group, _ in _GROUPS:
            row = metrics["panoptic"][group]
            values = (
                [_points(row[k]) for k in ("pq", "sq", "rq")] + [str(row["n"])]
                if row
                else ["-"] * 3 + ["0"]
            )
            rows.append([group] + values)
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
    blocks += [f"Note: {note}" for note in metrics.get("notes", [])]
    if "ema" in metrics:
        blocks += ["The moving averages of the weights:", table(metrics["ema"])]
    return "\n\n".join(blocks)


class ClassRow(NamedTuple):
    """One line of the table of classes.

    Attributes:
      category_id, name, is_thing: of the class.
      cells: name of a column -> its text, the same columns for every class.
    """

    category_id: Any
    name: str
    is_thing: bool
    cells: Dict[str, str]


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
        key, is_thing = str(category["id"]), category["isthing"] == 1
        cells = {}
        if "panoptic" in metrics:
            row = metrics["panoptic"]["per_class"][key]
            occurs = row["tp"] + row["fp"] + row["fn"] > 0
            cells = {k.upper(): _points(row[k] if occurs else None) for k in ("pq", "sq", "rq")}
            cells |= {k.upper(): str(row[k]) if occurs else "-" for k in ("tp", "fp", "fn")}
        if iou:
            cells["IoU"] = _points(iou.get(key))
        for kind, column in (("bbox", "Box AP"), ("segm", "Mask AP")):
            if kind in metrics:
                cells[column] = _points(metrics[kind]["per_class"].get(key, {}).get("AP"))
        rows.append(ClassRow(category["id"], category.get("name", key), is_thing, cells))
    return rows


def class_table(metrics: Dict[str, Any], categories: Sequence[Dict[str, Any]]) -> str:
    """A text table of every class. Args: as `class_rows`."""
    rows = class_rows(metrics, categories)
    columns = list(rows[0].cells) if rows else []
    if not columns:
        return ""
    lines = []
    for kind, is_thing in (("Things", True), ("Stuff", False)):
        group = [row for row in rows if row.is_thing == is_thing]
        if any(set(row.cells.values()) != {"-"} for row in group):
            lines.append([kind] + [""] * len(columns))
            lines += [["  " + row.name, *row.cells.values()] for row in group]
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
    return "-" if value is None or value < 0 else f"{100 * value:.2f}"


def write_metrics(path: str, metrics: Dict[str, Any]) -> None:
    """Writes metrics as JSON."""
    with atomic_write(path) as f:
        json.dump(metrics, f, indent=2)
        f.write("\n")
