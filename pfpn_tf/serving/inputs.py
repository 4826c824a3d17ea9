"""From the images of a request to inputs of the network, and back to the order of the request.

Shapes: B images · n images of a group · h, w original size · H, W padded size.
"""

import functools
from typing import Callable, Dict, Tuple

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.data import preprocess
from pfpn_tf.serving import batches
from pfpn_tf.serving import images as images_lib
from pfpn_tf.utils.scopes import in_scope

_PIXELS = tf.TensorSpec([None, None, 3], tf.uint8)
_INPUT = tf.TensorSpec([None, None, 3], tf.float32)
_TEXT, _TEXTS = tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.string)
_SIZE, _SIZES = tf.TensorSpec([2], tf.int32), tf.TensorSpec([None, 2], tf.int32)
_HEADERS = tf.nest.map_structure(
    lambda spec: tf.TensorSpec([None, *spec.shape], spec.dtype), images_lib.Header.signature()
)

Reply = Dict[str, tf.Tensor]
OfGroup = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], Reply]


class Inputs:
    """Checks and prepares the images of requests as the settings of a run say."""

    def __init__(self, config: config_lib.Config):
        self._data = config.data
        self._export = config.export

    def of_files(self, image_bytes: tf.Tensor, of_group: OfGroup, signature) -> Reply:
        """Answers encoded images, whose sizes and formats may differ.

        Args:
          image_bytes: [B] string.
          of_group: function of network inputs [n, H, W, 3], content sizes [n, 2], original sizes
            [n, 2] and places [n] in the request, to the n replies.
          signature: `tf.TensorSpec`s of one image's reply.

        Returns:
          The replies of the request, with `error` [B]: why an image has none, whose row is empty.
        """
        with tf.control_dependencies([self._check_number(tf.size(image_bytes))]):
            headers = self._read_headers(image_bytes)
        places = tf.cast(tf.where(tf.equal(headers.error, ""))[:, 0], tf.int32)  # [R] readable
        files = tf.nest.map_structure(lambda x: tf.gather(x, places), (image_bytes, headers))
        image_hw, padded_hw = self._network_sizes(files[1].hw)

        def answer(index):
            """The replies for these of the readable images, all of one padded size."""
            take = functools.partial(tf.gather, indices=index)
            contents, headers = tf.nest.map_structure(take, files)
            hw = take(image_hw)
            inputs, error = self._decode_each(contents, headers, hw, take(padded_hw)[0])
            # A damaged image is one black pixel here, whose row is left out below.
            original_hw = tf.where(error[:, tf.newaxis] == "", headers.hw, 1)
            return {**of_group(inputs, hw, original_hw, take(places)), "error": error}

        rows = batches.by_padded_size(
            answer, padded_hw, self._export.network_batch_pixels, {**signature, "error": _TEXT}
        )
        spread = functools.partial(batches.spread, batch_size=tf.size(image_bytes))
        error = tf.strings.join([headers.error, spread(rows["error"], places)])
        answered = tf.where(tf.equal(rows.pop("error"), ""))[:, 0]
        places = tf.gather(places, answered)
        reply = {name: spread(tf.gather(column, answered), places) for name, column in rows.items()}
        return {**reply, "error": error}

    def of_images(self, images: tf.Tensor, of_group: OfGroup, signature) -> Reply:
        """Answers pixels [B, h, w, 3] uint8, a group at a time; other arguments as `of_files`."""
        image_hw, padded_hw, original_hw = self._sizes_of_images(images)

        def answer(index):
            hw, full_hw = tf.gather(image_hw, index), tf.gather(original_hw, index)
            inputs = self._prepare_each(tf.gather(images, index), hw, padded_hw[0])
            return of_group(inputs, hw, full_hw, index)

        return batches.by_padded_size(
            answer, padded_hw, self._export.network_batch_pixels, signature
        )

    def together(self, images: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Pixels [B, h, w, 3] uint8 as one input [B, H, W, 3]; content and original sizes
        [B, 2].
        """
        image_hw, padded_hw, original_hw = self._sizes_of_images(images)
        with tf.control_dependencies([image_hw]):  # not before the sizes are known to be right
            inputs = self._prepare_each(images, image_hw, padded_hw[0])
        return inputs, image_hw, original_hw

    # This and those below are functions of their own, so that they are in the file once.
    @tf.function(input_signature=[_PIXELS, _SIZE, _SIZE], autograph=False)
    @in_scope("decode_and_resize")
    def network_input(self, image, image_hw, padded_hw):
        """[h, w, 3] uint8 -> [H, W, 3] float32."""
        image = preprocess.resize_image(image, image_hw, self._data.resize)
        image = preprocess.normalize(image, self._data.pixel_mean, self._data.pixel_std)
        return preprocess.pad_to(image, padded_hw)

    @tf.function(input_signature=[_SIZES], autograph=False)
    @in_scope("decode_and_resize")
    def _network_sizes(self, original_hw):
        """[B, 2] original sizes -> [B, 2] content sizes, [B, 2] padded sizes."""
        data = self._data
        image_hw = preprocess.resized_hw(
            original_hw, data.eval_min_side, data.eval_max_side, data.resize
        )
        return image_hw, preprocess.padded_hw(image_hw, data.size_divisor)

    def _sizes_of_images(self, images):
        """[B, h, w, 3] uint8 -> sizes [B, 2], all equal: content, padded, original."""
        shape = tf.shape(images)
        limit = self._export.max_image_pixels
        pixels = tf.cast(shape[1], tf.int64) * tf.cast(shape[2], tf.int64)
        message = ["Image empty or too large: height, width", shape[1:3], "; most pixels", limit]
        fits = tf.debugging.Assert((pixels > 0) & (pixels <= limit), message)
        with tf.control_dependencies([fits, self._check_number(shape[0])]):
            original_hw = tf.tile(shape[tf.newaxis, 1:3], [shape[0], 1])
        return *self._network_sizes(original_hw), original_hw

    def _check_number(self, batch_size):
        """Asserts that a request has an image, and not more than --max_request_images."""
        most = self._export.max_request_images
        return tf.debugging.Assert(
            (batch_size > 0) & (batch_size <= most),
            [f"a request must have 1 to {most} images, this one has", batch_size],
        )

    @tf.function(input_signature=[_TEXTS], autograph=False)
    @in_scope("decode_and_resize")
    def _read_headers(self, image_bytes):
        limit = self._export.max_image_pixels
        return tf.map_fn(
            lambda content: images_lib.read_header(content, limit),
            image_bytes,
            fn_output_signature=images_lib.Header.signature(),
        )

    @tf.function(input_signature=[_TEXTS, _HEADERS, _SIZES, _SIZE], autograph=False)
    @in_scope("decode_and_resize")
    def _decode_each(self, contents, headers, image_hw, padded_hw):
        """Network inputs [n, H, W, 3] and errors [n] of n files; sizes as in `_prepare_each`."""

        def decode(item):
            content, header, hw = item
            image, error = images_lib.decode_upright(content, header)
            return self.network_input(image, hw, padded_hw), error

        return _one_by_one(decode, (contents, headers, image_hw), (_INPUT, _TEXT))

    @in_scope("decode_and_resize")
    def _prepare_each(self, images, image_hw, padded_hw):
        """[n, h, w, 3] uint8, content sizes [n, 2], padded size [2] -> inputs [n, H, W, 3]."""
        return _one_by_one(
            lambda item: self.network_input(*item, padded_hw), (images, image_hw), _INPUT
        )


def _one_by_one(function, items, signature):
    """`tf.map_fn` of one image at a time.

    Images side by side would take their memory all at once, and each operation uses every core.
    """
    return tf.map_fn(function, items, fn_output_signature=signature, parallel_iterations=1)
