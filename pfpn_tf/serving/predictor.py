"""Panoptic predictions of image files or a video, by a network in this process."""

import contextlib
import functools
import glob
import json
import os
import tempfile
from typing import Any, Mapping, Optional, Union

import cv2
import numpy as np
import tensorflow as tf

from pfpn_tf.runs import run_directory
from pfpn_tf.serving import model as model_lib
from pfpn_tf.serving import results
from pfpn_tf.utils import overlap, progress, quiet
from pfpn_tf.utils.errors import UserError


def _model(signatures: Mapping[str, Any], owner: Any) -> model_lib.Model:
    """A network in this process.

    Args:
      signatures: of an export or a module, name to function; see `module`.
      owner: of the variables, which the functions hold only weakly.
    """
    metadata = signatures["metadata"](request=tf.constant([""]))["metadata_json"]
    answer = functools.partial(_answer, owner, signatures["serving_rest"])
    return model_lib.Model(answer, json.loads(metadata[0].numpy()))


def _answer(owner, serving_rest, image_bytes):
    """The reply for one image."""
    del owner  # It only has to live as long as the model.
    try:
        replies = serving_rest(image_bytes=tf.constant([image_bytes]))
        reply = {name: value[0].numpy() for name, value in replies.items()}
    except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError) as error:
        raise results.Refused(results.refusal(str(error))) from None
    png, reason = bytes(reply.pop("panoptic_png_bytes")), bytes(reply["error"]).decode()
    return {**reply, "panoptic_png": png, "error": reason}


def load(
    source: Union[str, "os.PathLike[str]"], checkpoint: Optional[str] = None, **settings: Any
) -> model_lib.Model:
    """The network of an export or a run directory.

    Args:
      source: its folder.
      checkpoint: of a run directory: None for the newest, "best", a step, or a prefix.
      **settings: of a run directory: settings that replace those of the run, such as
        `score_threshold=0.3`.

    Raises:
      UserError: it is neither, or has no usable weights.
    """
    source = os.fspath(source)
    if os.path.isfile(os.path.join(source, run_directory.CONFIG)):
        # Only a run directory needs Keras and the network's layers, which take 0.3 s to import.
        from pfpn_tf.serving import exporter

        module = exporter.load_module(source, checkpoint, settings)
        return _model(module.functions, module)
    if checkpoint or settings:
        raise UserError(
            f"{source} is no run directory, so checkpoint and settings cannot be chosen; they are"
            " fixed when a network is exported."
        )
    return _load_saved_model(source)


def _load_saved_model(directory):
    if not os.path.isfile(os.path.join(directory, "saved_model.pb")):
        versions = [
            d
            for d in sorted(glob.glob(os.path.join(directory, "*")))
            if d.rpartition(os.sep)[2].isdigit()
        ]
        hint = "Give a run directory, or the folder that export_saved_model.py wrote."
        if versions:
            hint = f"Is it {versions[-1]}?"
        raise UserError(f"{directory} holds no saved_model.pb. {hint}")
    try:
        with quiet.errors_only():
            loaded = tf.saved_model.load(directory)
    except Exception as error:  # Damaged files lead TensorFlow to many kinds of errors.
        # The first line says what is wrong; the next ones give advice for other cases.
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{directory} cannot be loaded; it is damaged or incomplete. Copy or export it again."
            f" ({cause})"
        ) from error
    missing = {"serving_rest", "metadata"} - set(loaded.signatures)
    if missing:
        raise UserError(
            f"{directory} was not exported by export_saved_model.py: it has no "
            f"{', '.join(sorted(missing))}."
        )
    return _model(loaded.signatures, loaded)


class Video:
    """A video file to read.

    Attributes:
      num_frames: as its header says; 0 if it does not.
      frames_per_second: likewise; 25 if it does not say.

    Raises:
      UserError: no such file, or no video that OpenCV reads.
    """

    def __init__(self, path: str):
        if not os.path.isfile(path):
            raise UserError(f"--video={path}: no such file; check the path.")
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise UserError(f"--video={path} is no video that OpenCV can read; try an MP4 file.")
        self.num_frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.frames_per_second = self._capture.get(cv2.CAP_PROP_FPS) or 25.0

    def frames(self):
        """[h, w, 3] uint8 RGB, one after the other."""
        while True:
            read, frame = self._capture.read()
            if not read:
                return
            yield np.ascontiguousarray(frame[..., ::-1])


def predict_video(
    model: model_lib.Model,
    video: Video,
    name: str,
    output_dir: str,
    overlays: bool = True,
    save_predictions: bool = False,
    replies: bool = False,
) -> int:
    """Predicts a video frame by frame. Reading, network and writing overlap.

    Args:
      model: from `load`.
      video: to predict.
      name: of the files to write.
      output_dir: made if need be. NAME_overlay.mp4 holds the frames with their maps; for the rest
        see the head of `results`, the frames being NAME_000000, NAME_000001, ...
      overlays: whether to write that video.
      save_predictions: whether to write a map per frame and predictions.json.
      replies: whether to write what TensorFlow Serving's REST interface would reply, per frame.

    Returns:
      The number of frames.

    Raises:
      OSError: the video cannot be written.
    """
    with contextlib.ExitStack() as outputs:
        writer, add_to_film = None, None
        if save_predictions or replies:
            writer = outputs.enter_context(
                results.Writer(output_dir, model.info, overlays=False, replies=replies)
            )
        if overlays:
            path = os.path.join(output_dir, f"{name}_overlay.mp4")
            add_to_film = outputs.enter_context(_film(path, video.frames_per_second))

        def load(item):
            return cv2.imencode(".bmp", item[1][..., ::-1])[1].tobytes()

        def write(item, result):
            if writer:
                frame_name = f"{name}_{item[0]:06d}"
                result.write(writer, frame_name, f"{frame_name}.png")
            if add_to_film:
                add_to_film(np.asarray(result.draw()))

        done = overlap.overlapped(enumerate(video.frames()), load, model, write)
        return sum(1 for _ in progress.Bar("Predicting", video.num_frames or None, "frame", done))


@contextlib.contextmanager
def _film(path, frames_per_second):
    """Gives a function that adds a frame to an MP4 file, which has its name once it is complete."""
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    writer, count = cv2.VideoWriter(), 0

    def add(image):
        nonlocal count
        if not count:
            code = cv2.VideoWriter_fourcc(*"mp4v")
            if not writer.open(temporary, code, frames_per_second, image.shape[1::-1]):
                raise OSError(f"{path}: OpenCV cannot write this video.")
        writer.write(np.ascontiguousarray(image[..., ::-1]))
        count += 1

    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as hidden:
        temporary = os.path.join(hidden, "film.mp4")  # OpenCV takes the format from the suffix.
        try:
            yield add
        finally:
            writer.release()
        if count:
            # OpenCV does not say when it fails to write.
            if cv2.VideoCapture(temporary).get(cv2.CAP_PROP_FRAME_COUNT) < count:
                raise OSError(f"{path}: not all frames were written; is the disk full?")
            os.replace(temporary, path)
