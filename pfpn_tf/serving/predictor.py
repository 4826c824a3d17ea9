"""Panoptic predictions of image files, to a folder.

OUTPUT/predictions.json            COCO panoptic JSON: images, annotations, categories
OUTPUT/predictions/NAME.png        its panoptic maps
OUTPUT/pictures/NAME_overlay.png   the same over the image, for people
"""

import collections
from concurrent import futures
import glob
import json
import os
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
import tensorflow as tf

from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.serving import exporter
from pfpn_tf.serving import images as images_lib
from pfpn_tf.utils import visualize
from pfpn_tf.utils.files import atomic_write

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_DIRECT = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")  # what the graph decodes
# Beginnings of the lines with which TensorFlow surrounds the message of an operation.
_TRACE = (
    "Graph execution error",
    "Detected at node",
    "Node:",
    "<stack traces",
    "File ",
    "(0)",
    "(1)",
    "0 successful",
    "0 derived",
)
_AHEAD = 4  # files read, and results drawn, while the network works
_PICTURE_SIDE = 1000  # overlays of smaller images are enlarged towards this


class Predictor(NamedTuple):
    """A model that answers for encoded images.

    Attributes:
      answer: function of [B] encoded images to the reply of `serving_default`, as tensors.
      metadata: the model's own description; see `module.metadata_json`.
      info: the dataset's categories.
    """

    answer: Callable[[tf.Tensor], Dict[str, tf.Tensor]]
    metadata: Dict[str, Any]
    info: DatasetInfo


def load_saved_model(directory: str) -> Predictor:
    """A `Predictor` of an exported model.

    Raises:
      ValueError: no SavedModel of this project there.
    """
    if not os.path.isfile(os.path.join(directory, "saved_model.pb")):
        versions = [
            d
            for d in sorted(glob.glob(os.path.join(directory, "*")))
            if d.rpartition(os.sep)[2].isdigit()
        ]
        hint = "Give the folder that export_saved_model.py wrote."
        if versions:
            hint = f"Is it {versions[-1]}?"
        raise ValueError(f"--saved_model={directory} holds no saved_model.pb. {hint}")
    with exporter.errors_only():
        loaded = tf.saved_model.load(directory)
    missing = {"serving_default", "metadata"} - set(loaded.signatures)
    if missing:
        raise ValueError(
            f"{directory} was not exported by export_saved_model.py: it has no "
            f"{', '.join(sorted(missing))}."
        )
    serve = loaded.signatures["serving_default"]
    text = loaded.signatures["metadata"](request=tf.constant([""]))["metadata_json"][0].numpy()

    def answer(image_bytes, owner=loaded):  # the default keeps the owner of the variables alive
        return serve(image_bytes=image_bytes)

    return _predictor(answer, text)


def load_run(
    run_dir: str, checkpoint: Optional[str] = None, settings: Dict[str, Any] = {}
) -> Predictor:
    """A `Predictor` of a run directory; arguments as `exporter.load_module`."""
    module, _, _ = exporter.load_module(run_dir, checkpoint, settings)
    # Not the bound method: it holds the module only weakly.
    return _predictor(lambda image_bytes: module.serving_default(image_bytes), module.metadata_text)


def _predictor(answer, text):
    metadata = json.loads(text)
    return Predictor(answer, metadata, DatasetInfo.from_coco_categories(metadata["categories"]))


def find_images(patterns: Sequence[str]) -> List[str]:
    """Files that files, folders and globs name, without repetition, in order.

    Raises:
      ValueError: one of them names nothing.
    """
    paths = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            found = [
                os.path.join(pattern, name)
                for name in sorted(os.listdir(pattern))
                if name.lower().endswith(SUFFIXES)
            ]
            if not found:
                raise ValueError(
                    f"--images={pattern}: no image in this folder ({', '.join(SUFFIXES)})."
                )
        elif os.path.isfile(pattern):
            found = [pattern]
        else:
            found = [
                path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)
            ]
            if not found:
                raise ValueError(
                    f"--images={pattern}: no such file or folder, and no file matches it as a "
                    "pattern."
                )
        paths += found
    return list(dict.fromkeys(paths))


def read_image(path: str) -> bytes:
    """The bytes of an image file, as PNG if the model cannot decode its format (WebP and others).

    Raises:
      OSError: it cannot be read.
    """
    with open(path, "rb") as f:
        content = f.read()
    if content and not content.startswith(_DIRECT):
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if pixels is not None:
            return cv2.imencode(".png", pixels)[1].tobytes()
    return content


def segments_info(reply: Dict[str, np.ndarray]) -> List[Dict[str, Any]]:
    """COCO's segments_info of one image's table: `bbox` is x, y, w, h; things have `score`."""
    segments = []
    for i in range(int(reply["num_segments"])):
        y0, x0, y1, x1 = (int(c) for c in reply["boxes"][i])
        segment = {
            "id": int(reply["segment_ids"][i]),
            "category_id": int(reply["category_ids"][i]),
            "isthing": int(reply["is_thing"][i]),
            "area": int(reply["areas"][i]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
        }
        if segment["isthing"]:
            segment["score"] = round(float(reply["scores"][i]), 6)
        segments.append(segment)
    return segments


class Failure(NamedTuple):
    """A file without a prediction, and why."""

    path: str
    reason: str


def predict_files(
    predictor: Predictor,
    paths: Sequence[str],
    output_dir: str,
    overlays: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> List[Failure]:
    """Predicts every file. Reading, network and writing overlap.

    Args:
      predictor: from `load_saved_model` or `load_run`.
      paths: image files.
      output_dir: made if need be; see the head of this file.
      overlays: whether to draw pictures.
      progress: called after each file.

    Returns:
      The files that could not be read or decoded; the others are done all the same.
    """
    names = _unique_names(paths)
    entries, failures = {}, []
    with futures.ThreadPoolExecutor(1) as reader, futures.ThreadPoolExecutor(1) as writer:
        writing = collections.deque()

        def settle():
            path, image, annotation = writing.popleft().result()
            entries[path] = (image, annotation)
            progress()

        for path, content in _read_ahead(reader, paths):
            try:
                image_bytes = content.result()
                reply = predictor.answer(tf.constant([image_bytes]))
                reply = {name: value[0].numpy() for name, value in reply.items()}
            except (OSError, tf.errors.InvalidArgumentError) as error:
                failures.append(Failure(path, reason(error)))
                progress()
                continue
            writing.append(
                writer.submit(
                    _write_one,
                    path,
                    names[path],
                    image_bytes,
                    reply,
                    predictor.info,
                    output_dir,
                    overlays,
                )
            )
            while len(writing) > _AHEAD:
                settle()
        while writing:
            settle()
    done = [entries[path] for path in paths if path in entries]
    content = {
        "images": [image for image, _ in done],
        "annotations": [annotation for _, annotation in done],
        "categories": predictor.info.coco_categories(),
    }
    with atomic_write(os.path.join(output_dir, "predictions.json")) as f:
        json.dump(content, f, ensure_ascii=False)
    return failures


def reason(error: Exception) -> str:
    """The sentence in an error that says what is wrong with the image."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    lines = [line.split("[[{{")[0].strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(_TRACE)]
    said = [
        line.split("assertion failed:")[1] for line in lines if "assertion failed:" in line
    ] or lines
    return " ".join(said[0].replace("[", " ").replace("]", " ").split()) if said else str(error)


def _read_ahead(pool, paths) -> Iterator[Tuple[str, futures.Future]]:
    """(path, future of its bytes), a few files ahead."""
    waiting = collections.deque()
    for path in paths:
        waiting.append((path, pool.submit(read_image, path)))
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def _write_one(path, name, image_bytes, reply, info, output_dir, overlays):
    """Files of one image. Returns its path and its entries for the JSON."""
    segments = segments_info(reply)
    png = bytes(reply["panoptic_png"])
    with atomic_write(os.path.join(output_dir, "predictions", f"{name}.png"), "wb") as f:
        f.write(png)
    channels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).astype(np.int32)
    ids = channels[..., 2] + 256 * channels[..., 1] + 65536 * channels[..., 0]  # OpenCV has B, G, R
    if overlays:
        # The graph's own decoder, so that orientation and colours are those the network saw.
        header = images_lib.read_header(tf.constant(image_bytes), ids.size)
        image = images_lib.decode_upright(tf.constant(image_bytes), header).numpy()
        scale = float(np.clip(_PICTURE_SIDE // max(ids.shape), 1, 3))
        drawn = visualize.overlay_panoptic(image, ids, segments, info, scale)
        with atomic_write(os.path.join(output_dir, "pictures", f"{name}_overlay.png"), "wb") as f:
            f.write(cv2.imencode(".png", np.ascontiguousarray(drawn[..., ::-1]))[1].tobytes())
    image_id = int(name) if name.isdigit() else name
    image = {
        "id": image_id,
        "file_name": os.path.basename(path),
        "height": ids.shape[0],
        "width": ids.shape[1],
    }
    return (
        path,
        image,
        {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments},
    )


def _unique_names(paths):
    """path -> its name without suffix, numbered where that name occurs twice."""
    names, taken = {}, set()
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        name, count = stem, 1
        while name.lower() in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name.lower())
        names[path] = name
    return names
