"""One self-contained HTML page about an evaluation.

It holds the main table, every class, the confusion of the semantic maps, and the best and worst images with
ground truth beside prediction. Pictures are inside the page, so it can be moved and mailed.
"""

import base64
import html
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import cv2
import numpy as np

from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import report
from pfpn_tf.evaluation.panoptic_quality import ImageCounts
from pfpn_tf.utils import visualize
from pfpn_tf.utils.files import atomic_write

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 1200px; padding: 0 1em }
h1, h2 { font-weight: 600 } pre { background: #f5f5f5; padding: 1em; overflow-x: auto }
table { border-collapse: collapse } th, td { padding: .2em .7em; text-align: right } th { border-bottom: 1px solid #aaa }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) { background: #f7f7f7 }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; vertical-align: -.1em }
.confusion td { padding: 0; width: 16px; min-width: 8px; height: 16px; border: 1px solid #eee }
.confusion td:first-child { padding-right: .6em; border: 0; white-space: nowrap }
.confusion { font-size: 11px } .scroll { overflow-x: auto } figure { margin: 1em 0 } img { max-width: 100% }
"""


class _Picture(NamedTuple):
    score: float
    position: int
    caption: str
    jpeg: bytes


class Gallery:
    """The images with the lowest and the highest PQ, drawn; holds no more than it shows.

    Which ones these are does not depend on the order in which they come: of equal ones the first of
    the split counts.
    """

    def __init__(self, info: DatasetInfo, size: int = 5):
        """Args: size: images kept at either end."""
        self._info = info
        self._size = size
        self.worst: List[_Picture] = []
        self.best: List[_Picture] = []

    def add(
        self,
        position: int,
        name: str,
        counts: ImageCounts,
        photo: Callable[[], np.ndarray],
        gt: Sequence,
        pred: Sequence,
    ) -> None:
        """Draws the image if it belongs to either end so far.

        Args:
          position: of the image in the split.
          name: for the caption.
          counts: of this image.
          photo: gives [h, w, 3] uint8; called only to draw.
          gt, pred: ([h, w] ids, segments_info).
        """
        tp, fp, fn = len(counts.matches), len(counts.false_positives), len(counts.false_negatives)
        if not tp + fp + fn:
            return
        score = sum(iou for _, iou, _, _ in counts.matches) / (tp + 0.5 * fp + 0.5 * fn)
        caption = f"{name}: PQ {100 * score:.1f} ({tp} matched, {fp} false, {fn} missed segments)"
        picture = _Picture(score, position, caption, b"")
        if picture in self._worst_of([*self.worst, picture]) or picture in self._best_of([*self.best, picture]):
            self._take([picture._replace(jpeg=self._draw(photo(), gt, pred))])

    def merge(self, other: "Gallery") -> None:
        """Takes over what belongs to either end of both."""
        self._take(other.worst + other.best)

    def _take(self, pictures):
        unique = {picture.position: picture for picture in pictures + self.worst + self.best}.values()
        self.worst = self._worst_of(unique)
        self.best = self._best_of(unique)

    def _worst_of(self, pictures):
        return sorted(pictures, key=lambda p: (p.score, p.position))[: self._size]

    def _best_of(self, pictures):
        return sorted(pictures, key=lambda p: (-p.score, p.position))[: self._size]

    def _draw(self, photo, gt, pred):
        scale = max(1.0, 480 / photo.shape[1])
        pictures = [
            visualize.overlay_panoptic(photo, ids, segments, self._info, scale) for ids, segments in (gt, pred)
        ]
        drawn = visualize.side_by_side(pictures, ["Ground truth", "Prediction"])
        return cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


def write(path: str, metrics: Dict[str, Any], info: DatasetInfo, gallery: Gallery, confusion: np.ndarray) -> None:
    """Writes the page.

    Args:
      path: of the HTML file.
      metrics: of `Evaluator.evaluate`, with `panoptic` and `semantic`.
      info: the dataset.
      gallery: the pictures.
      confusion: [C, C + 1] pixels of the panoptic maps over the dataset's categories, void last.
    """
    parts = [
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>Evaluation</title><style>{_STYLE}</style></head><body>",
        "<h1>Evaluation</h1>",
        f"<pre>{html.escape(report.table(metrics))}</pre>",
        "<h2>Classes</h2>",
        _class_table(metrics, info),
        "<h2>Confusion of the panoptic maps</h2>",
        "<p>Rows: ground truth. Columns: what its pixels were predicted as; the last one is void. Point at a cell for "
        "the share.</p>",
        _confusion_table(confusion, info),
    ]
    for title, pictures in (("Worst images", gallery.worst), ("Best images", gallery.best)):
        parts.append(f"<h2>{title}</h2>")
        for picture in pictures:
            data = base64.b64encode(picture.jpeg).decode()
            caption = html.escape(picture.caption)
            parts.append(
                f"<figure><figcaption>{caption}</figcaption>"
                f"<img alt='{caption}' src='data:image/jpeg;base64,{data}'></figure>"
            )
    parts.append("</body></html>\n")
    with atomic_write(path) as f:
        f.write("\n".join(parts))


def _class_table(metrics, info):
    header = ["Class", "Kind", "PQ", "SQ", "RQ", "TP", "FP", "FN", "IoU", "Box AP", "Mask AP"]
    rows = []
    for category in info.categories:
        key = str(category.id)
        row = metrics["panoptic"]["per_class"][key]
        occurs = row["tp"] + row["fp"] + row["fn"] > 0
        values = [_points(row[k] if occurs else None) for k in ("pq", "sq", "rq")]
        values += [str(row[k]) for k in ("tp", "fp", "fn")] + [_points(metrics["semantic"]["iou"][key])]
        values += [_points(metrics.get(k, {}).get("per_class", {}).get(key, {}).get("AP")) for k in ("bbox", "segm")]
        name = f"<span class='swatch' style='background:rgb{category.color}'></span>{html.escape(category.name)}"
        cells = [name, "thing" if category.is_thing else "stuff"] + values
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{h}</th>" for h in header)
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _confusion_table(confusion, info):
    names = [c.name for c in info.categories]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    rows = []
    for name, row in zip(names, shares):
        cells = "".join(
            f"<td title='{html.escape(name, quote=True)} as {html.escape(other, quote=True)}: {100 * share:.1f} %' "
            f"style='background:rgba(20,80,160,{share:.3f})'></td>"
            for other, share in zip(names + ["void"], row)
        )
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return f"<div class='scroll'><table class='confusion'>{''.join(rows)}</table></div>"


def _points(value):
    return "–" if value is None else f"{100 * value:.1f}"
