"""Panoptic predictions of image files or a video, by a network in this process."""

import contextlib
import glob
import json
import os
import uuid
from typing import Any, Callable, Dict, Mapping, Optional, Union

import cv2
import numpy as np
import tensorflow as tf

from pfpn_tf.data import panoptic_png, predictions
from pfpn_tf.runs import run_directory
from pfpn_tf.serving import model as model_lib
from pfpn_tf.serving import results
from pfpn_tf.utils import overlap, quiet
from pfpn_tf.utils.errors import UserError


class Predictor(model_lib.Model):
    """A network in this process."""

    def __init__(self, signatures: Mapping[str, Any], owner: Any):
        """Takes the signatures of an export or a module.

        Args:
          signatures: name to function; see `module`.
          owner: of the variables, which the functions hold only weakly.
        """
        metadata = signatures["metadata"](request=tf.constant([""]))["metadata_json"]
        super().__init__(self._answer, json.loads(metadata[0].numpy()))
        self._signatures = signatures
        self._owner = owner

    def _answer(self, image_bytes):
        reply = self._ask("serving_rest", image_bytes=tf.constant([image_bytes]))
        png, error = bytes(reply.pop("panoptic_png_bytes")), bytes(reply["error"]).decode()
        return {**reply, "panoptic_png": png, "error": error}

    def answer_pixels(self, image: np.ndarray) -> Dict[str, Any]:
        """The reply for one image [h, w, 3] uint8 RGB, as arrays; with `panoptic_png` of it.

        Raises:
          results.Refused: it is too large.
        """
        reply = self._ask("panoptic", images=tf.constant(image[None]))
        return {"panoptic_png": panoptic_png.encode_ids(reply.pop("panoptic_ids")), **reply}

    def _ask(self, signature, **inputs):
        """The only reply in a batch of one, as arrays."""
        try:
            reply = self._signatures[signature](**inputs)
            return {name: value[0].numpy() for name, value in reply.items()}
        except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError) as error:
            raise results.Refused(results.refusal(str(error))) from None


def load(
    source: Union[str, "os.PathLike[str]"], checkpoint: Optional[str] = None, **settings: Any
) -> Predictor:
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
        return Predictor(module.functions, module)
    if checkpoint or settings:
        raise UserError(
            f"{source} is no run directory, so checkpoint and settings cannot be chosen; they are"
            " fixed when a network is exported."
        )
    return load_saved_model(source)


def load_saved_model(directory: str) -> Predictor:
    """A `Predictor` of an exported model.

    Raises:
      UserError: no SavedModel of this project there, or a damaged one.
    """
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
    missing = {"serving_rest", "panoptic", "metadata"} - set(loaded.signatures)
    if missing:
        raise UserError(
            f"{directory} was not exported by export_saved_model.py: it has no "
            f"{', '.join(sorted(missing))}."
        )
    return Predictor(loaded.signatures, loaded)


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
        try:
            while True:
                read, frame = self._capture.read()
                if not read:
                    return
                yield np.ascontiguousarray(frame[..., ::-1])
        finally:
            self._capture.release()


def predict_video(
    predictor: Predictor,
    video: Video,
    name: str,
    output_dir: str,
    overlays: bool = True,
    save_predictions: bool = False,
    replies: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> int:
    """Predicts a video frame by frame. Reading, network and writing overlap.

    Args:
      predictor: from `load`.
      video: to predict.
      name: of the files to write.
      output_dir: made if need be. NAME_overlay.mp4 holds the frames with their maps; for the rest
        see the head of `results`, the frames being NAME_000000, NAME_000001, ...
      overlays: whether to write that video.
      save_predictions: whether to write a map per frame and predictions.json.
      replies: whether to write what TensorFlow Serving's REST interface would reply, per frame.
      progress: called after each frame.

    Returns:
      The number of frames.

    Raises:
      OSError: the video cannot be written.
    """
    count = 0
    with contextlib.ExitStack() as outputs:
        writer, add_to_film = None, None
        if save_predictions or replies:
            writer = outputs.enter_context(
                results.Writer(output_dir, predictor.info, overlays=False, replies=replies)
            )
        if overlays:
            path = os.path.join(output_dir, f"{name}_overlay.mp4")
            add_to_film = outputs.enter_context(_film(path, video.frames_per_second))

        def write(item, reply):
            index, frame = item
            if writer:
                frame_name = f"{name}_{index:06d}"
                writer.write(frame_name, f"{frame_name}.png", lambda: frame, reply)
            if add_to_film:
                ids = results.decode_ids(reply["panoptic_png"])
                segments = predictions.segments_info(reply)
                add_to_film(results.draw(frame, ids, segments, predictor.info))

        frames = enumerate(video.frames())
        for _ in overlap.overlapped(frames, lambda item: item[1], predictor.answer_pixels, write):
            count += 1
            progress()
    return count


@contextlib.contextmanager
def _film(path, frames_per_second):
    """Gives a function that adds a frame to an MP4 file, which has its name once it is complete."""
    path = os.path.realpath(path)
    # OpenCV takes the format from the suffix.
    temporary = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.mp4")
    writer, count = cv2.VideoWriter(), 0

    def add(image):
        nonlocal count
        if not count:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            code = cv2.VideoWriter_fourcc(*"mp4v")
            if not writer.open(temporary, code, frames_per_second, image.shape[1::-1]):
                raise OSError(f"{path}: OpenCV cannot write this video.")
        writer.write(np.ascontiguousarray(image[..., ::-1]))
        count += 1

    try:
        yield add
        writer.release()
        if count:
            # OpenCV does not say when it fails to write.
            if cv2.VideoCapture(temporary).get(cv2.CAP_PROP_FRAME_COUNT) < count:
                raise OSError(f"{path}: not all frames were written; is the disk full?")
            os.replace(temporary, path)
    finally:
        writer.release()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
