"""One self-contained HTML page about an evaluation.

It holds the main table, every class, the confusion of the semantic maps, and the best and worst
images with ground truth beside prediction. Pictures are inside the page, so it can be moved and
mailed.
"""

import html
import os
from typing import Any, Dict

import cv2
import numpy as np

from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import confusion as confusion_lib
from pfpn_tf.evaluation import output_folder, report
from pfpn_tf.evaluation.gallery import Gallery
from pfpn_tf.utils import html_page
from pfpn_tf.utils.files import atomic_write


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
        f"<pre>{html.escape(report.table(metrics))}</pre>",
        "<p><a href='#classes'>Classes</a> · <a href='#confusion'>Confusion</a> · "
        "<a href='#worst'>Worst images</a> · <a href='#best'>Best images</a></p>",
        "<h2 id='classes'>Classes</h2>",
        _class_table(metrics, info),
        "<h2 id='confusion'>Confusion of the panoptic maps</h2>",
        _mistakes_table(confusion, names),
        "<p>Blue: share of a class's pixels that is right; red: what the others were predicted as."
        " Colours follow the square root of the share. Classes that do not occur are grey.</p>",
        f"<div class='scroll'>{html_page.image(picture, 'png', 'Confusion matrix')}</div>",
    ]
    for anchor, heading, pictures in (
        ("worst", "Worst images", gallery.worst),
        ("best", "Best images", gallery.best),
    ):
        parts.append(f"<h2 id='{anchor}'>{heading}</h2>")
        for item in pictures:
            image = html_page.image(item.jpeg, "jpeg", item.caption)
            parts.append(html_page.figure(item.caption, image))
    with atomic_write(os.path.join(output_dir, output_folder.REPORT)) as f:
        f.write(html_page.page("Evaluation", parts))


def _class_table(metrics, info):
    colors = {category.id: category.color for category in info.categories}
    found = report.class_rows(metrics, info.coco_categories())
    rows = []
    for row in found:
        name = html_page.swatch(colors[row.category_id]) + html.escape(row.name)
        rows.append([name, "thing" if row.is_thing else "stuff", *row.texts()])
    return html_page.table(["Class", "Kind", *found[0].values], rows)


def _mistakes_table(confusion, names):
    mistakes = confusion_lib.largest_mistakes(confusion, names)
    if not mistakes:
        return "<p>No pixel is wrong.</p>"
    rows = [
        [html.escape(truth), html.escape(prediction), f"{pixels:,}", f"{100 * share:.1f}"]
        for truth, prediction, pixels, share in mistakes
    ]
    header = ["Ground truth", "Predicted as", "Pixels", "% of the class"]
    return f"<p>The mistakes that cost the most pixels:</p>{html_page.table(header, rows, 'text')}"
