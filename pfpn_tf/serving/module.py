"""The exported model: encoded images or pixels in, panoptic maps with their tables out.

Preprocessing, network and fusion in one graph of stock TensorFlow operations. Signatures, all with
a leading batch axis, dtypes in brackets:

    serving_default  image_bytes [string]   -> panoptic_png [string], table
    serving_rest     image_bytes            -> panoptic_png_bytes, table: REST encodes outputs in
                                               base64 where the name ends in _bytes
    panoptic         images [uint8]         -> panoptic_ids [int32 B, h, w], table
    instances        images                 -> num_instances, boxes, scores, category_ids,
                                               masks [uint8 B, D, h, w]
    semantic         images                 -> semantic_labels [int32 B, h, w]
    network          images                 -> what the heads give, at the size of the network input
    metadata         request [string]       -> metadata_json [string], whatever the request says

`images` is [B, h, w, 3] RGB; `image_bytes` [B] may hold images of different sizes and formats. An
answer does not depend on the other images of its batch.

The table: num_segments [B], then per segment segment_ids, category_ids, is_thing, scores, areas
[B, N] and boxes [B, N, 4] yxyx in pixels of the original image. N is --max_segments; rows from
num_segments on are zero. panoptic_png is the COCO encoding: id = R + 256 G + 65536 B, 0 is void.

Shapes: B images · h, w original size · H, W padded size · D detections · N table rows.
"""

import functools
import json
import math
from typing import Callable, Dict

import tensorflow as tf

import pfpn_tf
from pfpn_tf import config as config_lib
from pfpn_tf import structures
from pfpn_tf.data import categories, preprocess
from pfpn_tf.postprocess import fusion, instances, segment_table, semantic_labels
from pfpn_tf.serving import images as images_lib
from pfpn_tf.utils.errors import UserError

_IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
_IMAGE_BYTES = tf.TensorSpec([None], tf.string, name="image_bytes")
_MASK_SCORE = tf.TensorSpec([], tf.float64)
_EVERY_SCORE, _NO_SCORE = -math.inf, math.inf
_TABLE = ("segment_ids", "category_ids", "is_thing", "scores", "areas", "boxes")


class PanopticModule(tf.Module):
    """A network with everything around it that a client should not have to know.

    Args:
      network: function of images [B, H, W, 3] float32, image_hw [B, 2] and a score [] float64 to
        `InferenceOutputs`. Detections below that score need no mask.
      variables: its variables, which the saved model will hold.
      config: settings of the run; sizes, thresholds and limits become part of the graph.
      info: the dataset's categories.

    Raises:
      UserError: the table is too narrow for the network.
    """

    def __init__(
        self,
        network: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], structures.InferenceOutputs],
        variables,
        config: config_lib.Config,
        info: categories.DatasetInfo,
    ):
        super().__init__()
        # A Keras model as attribute would be saved with call functions of every layer. As a
        # function of its own the network is traced once and is in the file once.
        self._network = tf.function(
            network,
            input_signature=[
                tf.TensorSpec([None, None, None, 3], tf.float32),
                tf.TensorSpec([None, 2], tf.int32),
                _MASK_SCORE,
            ],
            autograph=False,
        )
        self.weights = list(variables)
        self.config = config
        self._info = info
        self._fusion = fusion.fusion_settings(info, config.model)
        self.metadata_text = metadata_json(config, info)
        self._has_instances = config.model.task in ("panoptic", "instance")
        self._has_semantics = config.model.task in ("panoptic", "semantic")
        needed = self._table_rows()
        if needed > config.export.max_segments:
            raise UserError(
                f"--max_segments={config.export.max_segments} is less than an image can have: "
                f"{needed} with --max_detections={config.model.max_detections} and the stuff "
                "classes. "
                f"Use --max_segments={needed} or more, or fewer --max_detections."
            )

    def signatures(self) -> Dict[str, tf.types.experimental.ConcreteFunction]:
        """Signature name to function, as `tf.saved_model.save` takes them."""
        functions = {
            "serving_default": self.serving_default,
            "serving_rest": self.serving_rest,
            "panoptic": self.panoptic,
            "network": self.network,
            "metadata": self.metadata,
        }
        if self._has_instances:
            functions["instances"] = self.instances
        if self._has_semantics:
            functions["semantic"] = self.semantic
        return {name: function.get_concrete_function() for name, function in functions.items()}

    @tf.function(input_signature=[_IMAGE_BYTES], autograph=False)
    def serving_default(self, image_bytes):
        limit = self.config.export.max_image_pixels
        batch_size = tf.size(image_bytes)
        some = tf.debugging.Assert(batch_size > 0, ["image_bytes is empty; send an image or more"])
        with tf.control_dependencies([some]):
            index = tf.range(batch_size)
        headers = tf.map_fn(
            lambda item: images_lib.read_header(item[0], limit, item[1]),
            (image_bytes, index),
            fn_output_signature=images_lib.Header.signature(),
        )
        image_hw, padded_hw = self._network_sizes(headers.hw)

        def answer(index):
            """The replies for the images of the batch at these places, all of one padded size."""
            of_group = functools.partial(tf.gather, indices=index)
            hw, original_hw = of_group(image_hw), of_group(headers.hw)
            inputs = self._prepare_each(
                lambda item: images_lib.decode_upright(*item),
                (of_group(image_bytes), tf.nest.map_structure(of_group, headers), index),
                hw,
                of_group(padded_hw)[0],
            )
            outputs = self._network(inputs, hw, self._fused_score)

            def one_image(image_outputs, hw, full_hw):
                result = self._fuse(image_outputs, hw, full_hw)
                return result._replace(panoptic_ids=encode_panoptic_png(result.panoptic_ids))

            signature = segment_table.result_signature(outputs)
            signature = signature._replace(panoptic_ids=tf.TensorSpec([], tf.string))
            result = fusion.map_images(one_image, outputs, hw, original_hw, signature)
            return {"panoptic_png": result.panoptic_ids, **self._table(result)}

        most_pixels = self.config.export.network_batch_pixels
        return _by_padded_size(answer, padded_hw, most_pixels, self._reply_signature())

    @tf.function(input_signature=[_IMAGE_BYTES], autograph=False)
    def serving_rest(self, image_bytes):
        reply = self.serving_default(image_bytes)
        return {"panoptic_png_bytes": reply.pop("panoptic_png"), **reply}

    @tf.function(input_signature=[_IMAGES], autograph=False)
    def panoptic(self, images):
        image_hw, padded_hw, original_hw = self._sizes_of_images(images)

        def answer(index):
            """The replies for some images of the batch."""
            of_group = functools.partial(tf.gather, indices=index)
            hw, full_hw = of_group(image_hw), of_group(original_hw)
            inputs = self._prepare_each(lambda image: image, of_group(images), hw, padded_hw[0])
            outputs = self._network(inputs, hw, self._fused_score)
            signature = segment_table.result_signature(outputs)
            result = fusion.map_images(self._fuse, outputs, hw, full_hw, signature)
            return {"panoptic_ids": result.panoptic_ids, **self._table(result)}

        signature = self._table_signature()
        signature["panoptic_ids"] = tf.TensorSpec([None, None], tf.int32)
        most_pixels = self.config.export.network_batch_pixels
        return _by_padded_size(answer, padded_hw, most_pixels, signature)

    @tf.function(input_signature=[_IMAGES], autograph=False)
    def instances(self, images):
        outputs, image_hw, original_hw = self._run(images, _EVERY_SCORE)
        width = self.config.model.max_detections

        def one_image(image_outputs, hw, full_hw):
            found, masks = instances.paste_instances(image_outputs.detections, hw, full_hw)
            class_ids = tf.maximum(found.class_ids, 0)
            category_ids = tf.gather(tf.constant(self._fusion.thing_category_ids), class_ids)
            return {
                "num_instances": found.num_detections,
                "boxes": tf.ensure_shape(found.boxes, [width, 4]),
                "scores": found.scores,
                "category_ids": tf.where(found.class_ids < 0, 0, category_ids),
                "masks": masks,
            }

        signature = {
            "num_instances": tf.TensorSpec([], tf.int32),
            "boxes": tf.TensorSpec([width, 4], tf.float32),
            "scores": tf.TensorSpec([width], tf.float32),
            "category_ids": tf.TensorSpec([width], tf.int32),
            "masks": tf.TensorSpec([width, None, None], tf.uint8),
        }
        return fusion.map_images(one_image, outputs, image_hw, original_hw, signature)

    @tf.function(input_signature=[_IMAGES], autograph=False)
    def semantic(self, images):
        outputs, image_hw, original_hw = self._run(images, _NO_SCORE)

        def one_image(image_outputs, hw, full_hw):
            labels = semantic_labels.semantic_labels(image_outputs.semantic_logits, hw, full_hw)
            return tf.cast(labels, tf.int32)

        signature = tf.TensorSpec([None, None], tf.int32)
        return {
            "semantic_labels": fusion.map_images(
                one_image, outputs, image_hw, original_hw, signature
            )
        }

    @tf.function(input_signature=[_IMAGES], autograph=False)
    def network(self, images):
        outputs, image_hw, _ = self._run(images, _EVERY_SCORE)
        result = {"image_hw": image_hw}
        if outputs.detections is not None:
            result.update(outputs.detections._asdict())
        if outputs.semantic_logits is not None:
            result["semantic_logits"] = outputs.semantic_logits
        return result

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="request")], autograph=False
    )
    def metadata(self, request):
        # A batch axis, since a server that batches refuses functions without one.
        return {"metadata_json": tf.fill(tf.shape(request), self.metadata_text)}

    def _table_rows(self):
        things = self.config.model.max_detections if self._has_instances else 0
        targets = self.config.model.semantic_targets
        return things + (self._info.num_semantic_classes(targets) if self._has_semantics else 0)

    @property
    def _fused_score(self):
        """Fusion leaves out what has a lower score, so that the mask head may leave it out, too."""
        return self.config.model.fusion_score_threshold

    @tf.function(input_signature=[_IMAGES, _MASK_SCORE], autograph=False)
    def _run(self, images, mask_score):
        image_hw, padded_hw, original_hw = self._sizes_of_images(images)
        with tf.control_dependencies([image_hw]):  # not before the sizes are known to be right
            inputs = self._prepare_each(lambda image: image, images, image_hw, padded_hw[0])
        return self._network(inputs, image_hw, mask_score), image_hw, original_hw

    def _sizes_of_images(self, images):
        """[B, h, w, 3] uint8 -> sizes [B, 2], all equal: content, padded, original."""
        shape = tf.shape(images)
        limit = self.config.export.max_image_pixels
        pixels = tf.cast(shape[1], tf.int64) * tf.cast(shape[2], tf.int64)
        fits = tf.debugging.Assert(
            (shape[0] > 0) & (pixels > 0) & (pixels <= limit),
            [
                "Image missing, empty or too large: images, height, width",
                shape[:3],
                "; most pixels",
                limit,
            ],
        )
        with tf.control_dependencies([fits]):
            original_hw = tf.tile(shape[tf.newaxis, 1:3], [shape[0], 1])
        return *self._network_sizes(original_hw), original_hw

    def _network_sizes(self, original_hw):
        """[B, 2] original sizes -> [B, 2] content sizes, [B, 2] padded sizes."""
        data = self.config.data
        image_hw = preprocess.resized_hw(
            original_hw, data.eval_min_side, data.eval_max_side, data.resize
        )
        return image_hw, preprocess.padded_hw(image_hw, data.size_divisor)

    def _prepare_each(self, decode, items, image_hw, padded_hw):
        """Network input [B, H, W, 3] from what `decode` makes images [h, w, 3] of.

        Args:
          decode: function of one of the items.
          items: structure of [B, ...].
          image_hw: [B, 2]. padded_hw: [2].
        """
        data = self.config.data

        def prepare(item):
            item, hw = item
            image = preprocess.resize_image(decode(item), hw, data.resize)
            image = preprocess.normalize(image, data.pixel_mean, data.pixel_std)
            return preprocess.pad_to(image, padded_hw)

        # One after the other: the images of a group would take their memory all at once, and the
        # operations themselves use every core.
        return tf.map_fn(
            prepare,
            (items, image_hw),
            fn_output_signature=tf.TensorSpec([None, None, 3], tf.float32),
            parallel_iterations=1,
        )

    # As a function of its own it is in the file once, though several signatures call it.
    @tf.function(autograph=False)
    def _fuse(self, image_outputs, hw, full_hw):
        return fusion.fuse_image(image_outputs, hw, full_hw, self._fusion)

    def _reply_signature(self) -> Dict[str, tf.TensorSpec]:
        """`tf.TensorSpec`s of one image's reply in `serving_default`."""
        return {"panoptic_png": tf.TensorSpec([], tf.string), **self._table_signature()}

    def _table_signature(self):
        """`tf.TensorSpec`s of one image's table."""
        rows = self.config.export.max_segments
        return {
            "num_segments": tf.TensorSpec([], tf.int32),
            "segment_ids": tf.TensorSpec([rows], tf.int32),
            "category_ids": tf.TensorSpec([rows], tf.int32),
            "is_thing": tf.TensorSpec([rows], tf.bool),
            "scores": tf.TensorSpec([rows], tf.float32),
            "areas": tf.TensorSpec([rows], tf.int32),
            "boxes": tf.TensorSpec([rows, 4], tf.float32),
        }

    def _table(self, result: structures.PanopticResult) -> Dict[str, tf.Tensor]:
        """The batched table, widened to --max_segments rows."""
        more = self.config.export.max_segments - self._table_rows()
        table = {"num_segments": result.num_segments}
        for name in _TABLE:
            column = getattr(result, name)
            table[name] = tf.pad(column, [[0, 0], [0, more]] + [[0, 0]] * (column.shape.rank - 2))
        return table


def _by_padded_size(function, padded_hw, most_pixels, signature):
    """Calls `function` for the images of each padded size, some at a time.

    An image is never padded further for a larger one in its batch: the padding reaches into group
    normalisation and to the borders of the content, so an answer would depend on who else asks.

    Args:
      function: of [n] int32 places in the batch, to a structure of [n, ...] tensors.
      padded_hw: [B, 2] int32.
      most_pixels: of the images of one call, if they are more than one.
      signature: structure of one image's `tf.TensorSpec`s.

    Returns:
      The structure, with a leading B, in the order of the batch.
    """
    # A loop, not a branch for equal sizes beside one for mixed ones: the network stays in the graph
    # once.
    sides = tf.cast(padded_hw, tf.int64)
    _, size = tf.unique(sides[:, 0] * 2**32 + sides[:, 1])  # [B]
    index = tf.range(tf.size(size))
    earlier = (size[:, None] == size) & (index[:, None] > index)  # [B, B]
    rank = tf.math.count_nonzero(earlier, axis=1)  # [B] among the images of its size
    together = tf.maximum(most_pixels // (sides[:, 0] * sides[:, 1]), 1)  # [B]
    calls, group = tf.unique(tf.cast(size, tf.int64) * 2**32 + rank // together)
    num_groups = tf.size(calls)
    specs = tf.nest.flatten(signature)
    arrays = tuple(
        tf.TensorArray(spec.dtype, num_groups, infer_shape=False, element_shape=[None, *spec.shape])
        for spec in specs
    )

    def run_group(i, arrays):
        places = tf.cast(tf.where(tf.equal(group, i))[:, 0], tf.int32)
        values = tf.nest.flatten(function(places))
        return i + 1, tuple(array.write(i, value) for array, value in zip(arrays, values))

    # While one call does what cannot be divided among the cores, another keeps them busy.
    _, arrays = tf.while_loop(
        lambda i, _: i < num_groups,
        run_group,
        (0, arrays),
        parallel_iterations=2,
    )
    # Groups lie one after the other; within them, images are in order.
    back = tf.argsort(tf.argsort(group, stable=True))
    values = [
        tf.ensure_shape(tf.gather(array.concat(), back), [None, *spec.shape])
        for array, spec in zip(arrays, specs)
    ]
    return tf.nest.pack_sequence_as(signature, values)


def encode_panoptic_png(panoptic_ids: tf.Tensor) -> tf.Tensor:
    """[h, w] int32 ids -> [] string, COCO's panoptic PNG: id = R + 256 G + 65536 B."""
    channels = [tf.bitwise.right_shift(panoptic_ids, shift) & 255 for shift in (0, 8, 16)]
    return tf.io.encode_png(tf.cast(tf.stack(channels, -1), tf.uint8), compression=4)


def metadata_json(config: config_lib.Config, info: categories.DatasetInfo) -> str:
    """What a client needs to read the replies: categories with colours, thresholds, sizes."""
    model, data = config.model, config.data
    targets = model.semantic_targets
    return json.dumps(
        {
            "pfpn_tf": pfpn_tf.__version__,
            "task": model.task,
            "backbone": model.backbone,
            "boxes": "y0, x0, y1, x1 in pixels of the original image",
            "panoptic_png": "segment id = R + 256 G + 65536 B; 0 is void",
            "categories": info.coco_categories(),
            "semantic_category_ids": info.semantic_category_ids(targets).tolist(),
            "semantic_names": info.semantic_names(targets),
            "fusion_score_threshold": model.fusion_score_threshold,
            "fusion_overlap_threshold": model.fusion_overlap_threshold,
            "fusion_stuff_area_threshold_px": model.fusion_stuff_area_threshold_px,
            "score_threshold": model.score_threshold,
            "eval_min_side": data.eval_min_side,
            "eval_max_side": data.eval_max_side,
            "max_image_pixels": config.export.max_image_pixels,
            "max_segments": config.export.max_segments,
        },
        ensure_ascii=False,
    )
