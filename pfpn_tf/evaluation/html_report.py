"""One self-contained HTML page about an evaluation.

It holds the main table, every class, the confusion of the semantic maps, and the best and worst
images with ground truth beside prediction. Pictures are inside the page, so it can be moved and
mailed.
"""

import base64
import html
import os
from typing import Any, Dict

import cv2
import numpy as np

from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import confusion as confusion_lib
from pfpn_tf.evaluation import output_folder, report
from pfpn_tf.evaluation.gallery import Gallery
from pfpn_tf.utils.files import atomic_write

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 1200px;
  padding: 0 1em }
h1, h2 { font-weight: 600 }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto }
table { border-collapse: collapse } th, td { padding: .2em .7em; text-align: right }
th { border-bottom: 1px solid #aaa } th:first-child, td:first-child { text-align: left }
tr:nth-child(even) { background: #f7f7f7 }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em;
  vertical-align: -.1em }
.mistakes td:nth-child(2), .mistakes th:nth-child(2) { text-align: left }
.scroll { overflow-x: auto } figure { margin: 1em 0 } figure img { max-width: 100% }
"""


def write(
    output_dir: str,
    metrics: Dict[str, Any],
    info: DatasetInfo,
    gallery: Gallery,
    confusion: np.ndarray,
) -> None:
    """Writes the page, report.html, and the picture of the confusion, confusion.png.

    Args:
      output_dir: made if need be.
      metrics: of `Evaluator.evaluate` or `score_files`, with `panoptic`.
      info: the dataset.
      gallery: the pictures.
      confusion: [C, C + 1] pixels of the panoptic maps over the dataset's categories, void last.
    """
    names = [category.name for category in info.categories]
    drawn = confusion_lib.draw(confusion, names)
    picture = cv2.imencode(".png", drawn[..., ::-1])[1].tobytes()
    with atomic_write(os.path.join(output_dir, output_folder.CONFUSION), "wb") as f:
        f.write(picture)
    parts = [
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>Evaluation</title>"
        f"<style>{_STYLE}</style></head><body>",
        "<h1>Evaluation</h1>",
        f"<pre>{html.escape(report.table(metrics))}</pre>",
        "<p><a href='#classes'>Classes</a> · <a href='#confusion'>Confusion</a> · "
        "<a href='#worst'>Worst images</a> · <a href='#best'>Best images</a></p>",
        "<h2 id='classes'>Classes</h2>",
        _class_table(metrics, info),
        "<h2 id='confusion'>Confusion of the panoptic maps</h2>",
        _mistakes_table(confusion, names),
        "<p>Blue: share of a class's pixels that is right; red: what the others were predicted as."
        " Colours follow the square root of the share. Classes that do not occur are grey.</p>",
        f"<div class='scroll'>{_image(picture, 'png', 'Confusion matrix')}</div>",
    ]
    for anchor, heading, pictures in (
        ("worst", "Worst images", gallery.worst),
        ("best", "Best images", gallery.best),
    ):
        parts.append(f"<h2 id='{anchor}'>{heading}</h2>")
        for item in pictures:
            caption = html.escape(item.caption)
            image = _image(item.jpeg, "jpeg", item.caption)
            parts.append(f"<figure><figcaption>{caption}</figcaption>{image}</figure>")
    parts.append("</body></html>\n")
    with atomic_write(os.path.join(output_dir, output_folder.REPORT)) as f:
        f.write("\n".join(parts))


def _class_table(metrics, info):
    colors = {category.id: category.color for category in info.categories}
    found, rows = report.class_rows(metrics, info.coco_categories()), []
    header = ["Class", "Kind", *found[0].cells]
    for row in found:
        swatch = f"<span class='swatch' style='background:rgb{colors[row.category_id]}'></span>"
        kind = "thing" if row.is_thing else "stuff"
        rows.append([swatch + html.escape(row.name), kind, *row.cells.values()])
    return f"<div class='scroll'>{_table(header, rows)}</div>"


def _mistakes_table(confusion, names):
    mistakes = confusion_lib.largest_mistakes(confusion, names)
    if not mistakes:
        return "<p>No pixel is wrong.</p>"
    header = ["Ground truth", "Predicted as", "Pixels", "% of the class"]
    rows = [
        [html.escape(m.truth), html.escape(m.prediction), f"{m.pixels:,}", f"{100 * m.share:.1f}"]
        for m in mistakes
    ]
    return f"<p>The mistakes that cost the most pixels:</p>{_table(header, rows, 'mistakes')}"


def _table(header, rows, kind=""):
    lines = ["".join(f"<th>{name}</th>" for name in header)]
    lines += ["".join(f"<td>{value}</td>" for value in row) for row in rows]
    return f"<table class='{kind}'>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _image(data, kind, text):
    """A picture inside the page."""
    encoded = base64.b64encode(data).decode()
    return f"<img alt='{html.escape(text, quote=True)}' src='data:image/{kind};base64,{encoded}'>"
