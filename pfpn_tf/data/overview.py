"""What a conversion leaves beside the records for people: recipe.flags and dataset.html.

The page has what one wants to see before a training: classes, sizes, samples as the network gets
them, and what is wrong with the data.
"""

import html
import os
from typing import Collection, Dict, List, Optional

import cv2
import numpy as np
from absl import logging

from pfpn_tf.config import Config
from pfpn_tf.data import categories, order, recipe, show
from pfpn_tf.data import statistics as statistics_lib
from pfpn_tf.data import tfrecord
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.data.statistics import Statistics
from pfpn_tf.utils import html_page
from pfpn_tf.utils.files import atomic_write

PAGE = "dataset.html"
SAMPLES = 12
SAMPLE_SIDES = (480, 800)  # shorter and longest side of a picture


def write(folder: str, epochs: float = 0, converted: Optional[Collection[str]] = None) -> None:
    """Writes recipe.flags and dataset.html anew for the records in a folder.

    The records are complete by then. So what fails here is told and changes nothing else.

    Args:
      folder: of the records of all splits.
      epochs: of the training that the recipe suggests; 0: by the number of images.
      converted: the splits that are new. If the one to train on is not among them, its samples are
        taken over from the page that is there. None: all are new.
    """
    step, config = recipe.FILE_NAME, None
    try:
        info = DatasetInfo.load(os.path.join(folder, categories.FILE_NAME))
        splits = statistics_lib.load(folder, info)
        for name in info.splits.keys() - splits.keys():
            logging.warning("%s: no statistics of split %s; convert it again.", folder, name)
        config = recipe.write(folder, splits, info, epochs)
        step = PAGE
        with atomic_write(os.path.join(folder, PAGE)) as f:
            f.write(_page(folder, splits, info, config, converted))
        recipe_path = os.path.join(folder, recipe.FILE_NAME)
        train = f"; then train with --flagfile={recipe_path}" if config else ""
        logging.info("Look at %s%s.", os.path.join(folder, PAGE), train)
    except Exception as error:
        logging.exception("%s: the records are complete, but not %s: %s", folder, step, error)


def _page(folder, splits: Dict[str, Statistics], info, config: Optional[Config], converted):
    parts = [
        "<p><a href='#classes'>Classes</a> · <a href='#sizes'>Sizes</a> · "
        "<a href='#warnings'>Warnings</a> · <a href='#samples'>Samples</a> · "
        "<a href='#recipe'>Recipe</a></p>",
        _split_table(splits),
        "<h2 id='classes'>Classes</h2>",
        _class_table(splits, info),
        "<h2 id='sizes'>Sizes</h2>",
        _histograms(splits),
        "<h2 id='warnings'>Warnings</h2>",
        _warnings(splits),
    ]
    if config is not None:
        split = recipe.roles(splits)[0]
        heading = f"<h2 id='samples'>Samples of {html.escape(split)}</h2>"
        unchanged = converted is not None and split not in converted
        drawn = _samples_there(folder, heading) if unchanged else []
        count = min(SAMPLES, splits[split].counts["images"])
        parts += [heading, *(drawn or _samples(config, info, count))]
        with open(os.path.join(folder, recipe.FILE_NAME), encoding="utf-8") as f:
            text = html.escape(f.read())
        parts += ["<h2 id='recipe'>Recipe</h2>", f"<pre>{text}</pre>"]
    return html_page.page(f"Dataset {os.path.basename(os.path.abspath(folder))}", parts)


def _split_table(splits):
    counts = statistics_lib.COUNTS
    rows = [
        [html.escape(split), *(f"{s.counts[n]:,}" for n in counts), f"{s.max_instances:,}"]
        for split, s in splits.items()
    ]
    header = [name.replace("_", " ").capitalize() for name in counts]
    return html_page.table(["Split", *header, "Most instances of an image"], rows)


def _class_table(splits, info):
    columns = [("images", "images"), ("instances", "instances"), ("pixels", "% of labelled pixels")]
    header = ["Class", "Kind"]
    header += [f"{html.escape(split)}: {title}" for split in splits for _, title in columns]
    labelled = {
        split: max(1, sum(s.counts["pixels", c.id] for c in info.categories))
        for split, s in splits.items()
    }
    rows = []
    for c in info.categories:
        row = [html_page.swatch(c.color) + html.escape(c.name), "thing" if c.is_thing else "stuff"]
        for split, s in splits.items():
            images, instances = s.counts["images", c.id], s.counts["instances", c.id]
            row.append(f"{images:,}" if images else "<b>none</b>")
            row.append(f"{instances:,}" if c.is_thing else "")
            row.append(f"{100 * s.counts['pixels', c.id] / labelled[split]:.2f}")
        rows.append(row)
    return html_page.table(header, rows)


def _histograms(splits):
    images = {name: np.array(s.images.rows(), float).reshape(-1, 3) for name, s in splits.items()}
    boxes = {name: np.array(s.boxes.rows(), float).reshape(-1, 4) for name, s in splits.items()}
    quantities = (
        ("Images: shorter side in pixels", {k: v[:, :2].min(1) for k, v in images.items()}, True),
        ("Images: longer side in pixels", {k: v[:, :2].max(1) for k, v in images.items()}, True),
        (
            "Objects: square root of the box's area, in pixels",
            {k: np.sqrt(v[:, 0] * v[:, 1]) for k, v in boxes.items()},
            True,
        ),
        ("Objects an image", {k: v[:, 2] for k, v in images.items()}, False),
    )
    drawn = "".join(html_page.histogram(*quantity) for quantity in quantities)
    return f"<p>Height: share of the split.</p><div class='row'>{drawn}</div>"


def _warnings(splits):
    rows: List[List[str]] = []
    for split, s in splits.items():
        for what, count, first in s.notes.to_json():
            rows.append([html.escape(split), f"{count:,}", html.escape(what), html.escape(first)])
    if not rows:
        return "<p>None.</p>"
    return html_page.table(["Split", "How often", "What", "The first"], rows, "text")


def _samples_there(folder, heading):
    """The samples on the page that is there, if they have this heading."""
    path = os.path.join(folder, PAGE)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        lines = f.read().split("\n")
    return [line for line in lines if line.startswith("<figure>")] if heading in lines else []


def _samples(config, info, count):
    """Training images as the network gets them, but neither flipped nor cropped."""
    plain = config.replace(
        global_batch_size=1,
        train_min_sides=SAMPLE_SIDES[:1],
        train_max_side=SAMPLE_SIDES[1],
        random_scale=(),
        crop_size=(),
        random_flip=False,
    )
    for file_name, (_, picture) in zip(
        _file_names(plain, count), show.draw_examples(plain, info, count)
    ):
        quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
        jpeg = cv2.imencode(".jpg", picture[..., ::-1], quality)[1].tobytes()
        yield html_page.figure(file_name, html_page.image(jpeg, "jpeg", file_name))


def _file_names(config, count):
    """The photos of the first training examples."""
    index = tfrecord.read_index(config.data.train_records)
    for example in order.training_examples(config, index.hw).take(count):
        record = tfrecord.decode_example(tfrecord.read_record(index, example["position"]))
        yield record["image/filename"].numpy().decode(errors="replace")
