"""The exported model: encoded images or pixels in, panoptic maps with their tables out.

Preprocessing, network and fusion in one graph of stock TensorFlow operations. Signatures, all with
a leading batch axis, dtypes in brackets:

    serving_default     image_bytes [string] -> panoptic_png [string], table, error [string];
                                                of Mask R-CNN as serving_instances
    serving_rest        image_bytes          -> panoptic_png_bytes, table, error
    serving_thresholds  image_bytes, score_threshold, overlap_threshold [float32],
                        stuff_area_threshold_px [int32] -> as serving_rest
    serving_instances   image_bytes          -> num_instances, boxes, scores, category_ids,
                                                windows, masks_png_bytes [string B, D], error
    panoptic            images [uint8]       -> panoptic_ids [int32 B, h, w], table
    semantic            images               -> semantic_labels [int32 B, h, w]
    network             images               -> what the heads give, at the network's size
    metadata            request [string]     -> metadata_json [string], whatever the request says

`images` is [B, h, w, 3] RGB; `image_bytes` [B] may hold images of different sizes and formats, and
thresholds are [B]. An answer does not depend on the other images of its batch: `error` is empty, or
it says why this image cannot be answered, whose row is then empty. REST encodes outputs in base64
where the name ends in _bytes, which gRPC does not need.

The table: num_segments [B], then per segment segment_ids, category_ids, is_thing, scores, areas
[B, N] and boxes [B, N, 4] yxyx in pixels of the original image. N is --max_segments; rows from
num_segments on are zero. panoptic_png is the COCO encoding: id = R + 256 G + 65536 B, 0 is void.

Instances fall in score. windows [int32 B, D, 4] are the whole pixels around the boxes, yxyx, and a
mask is a grey PNG of that window, 255 inside.

Shapes: B images · h, w original size · H, W padded size · D detections · N table rows.
"""

import json
import math
from typing import Any, Callable, Dict

import tensorflow as tf

import pfpn_tf
from pfpn_tf import config as config_lib
from pfpn_tf import structures
from pfpn_tf.data import categories
from pfpn_tf.postprocess import fusion, instances, semantic_labels
from pfpn_tf.serving.inputs import Inputs
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.scopes import in_scope

_IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
_IMAGE_BYTES = tf.TensorSpec([None], tf.string, name="image_bytes")
_SCORE_THRESHOLD = tf.TensorSpec([None], tf.float32, name="score_threshold")
_OVERLAP_THRESHOLD = tf.TensorSpec([None], tf.float32, name="overlap_threshold")
_STUFF_AREA_THRESHOLD = tf.TensorSpec([None], tf.int32, name="stuff_area_threshold_px")
_THRESHOLDS = [tf.TensorSpec([None], dtype) for dtype in (tf.float64, tf.float64, tf.int32)]
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
        self._inputs = Inputs(config)
        self.metadata_text = metadata_json(config, info)
        self._has_instances = config.model.task in ("panoptic", "instance")
        self._has_semantics = config.model.task in ("panoptic", "semantic")
        needed = self._table_rows()
        if needed > config.export.max_segments:
            raise UserError(
                f"--max_segments={config.export.max_segments} is less than an image can have: "
                f"{needed} with --max_detections={config.model.max_detections} and the stuff "
                f"classes. Use --max_segments={needed} or more, or fewer --max_detections."
            )

    def signatures(self) -> Dict[str, tf.types.experimental.ConcreteFunction]:
        """Signature name to function, as `tf.saved_model.save` takes them."""
        return {name: function.get_concrete_function() for name, function in self.functions.items()}

    @property
    def functions(self) -> Dict[str, Any]:
        """Signature name to function, not yet traced."""
        functions = {
            "serving_default": self.serving_default,
            "serving_rest": self.serving_rest,
            "serving_thresholds": self.serving_thresholds,
            "panoptic": self.panoptic,
            "network": self.network,
            "metadata": self.metadata,
        }
        if self._has_instances:
            functions["serving_instances"] = self.serving_instances
        if self._has_semantics:
            functions["semantic"] = self.semantic
        else:
            functions["serving_default"] = self.serving_instances
        return functions

    @tf.function(input_signature=[_IMAGE_BYTES], autograph=False)
    def serving_default(self, image_bytes):
        return self._panoptic_of_files(image_bytes, *self._thresholds(tf.size(image_bytes)))

    @tf.function(input_signature=[_IMAGE_BYTES], autograph=False)
    def serving_rest(self, image_bytes):
        return _for_rest(self.serving_default(image_bytes))

    @tf.function(
        input_signature=[_IMAGE_BYTES, _SCORE_THRESHOLD, _OVERLAP_THRESHOLD, _STUFF_AREA_THRESHOLD],
        autograph=False,
    )
    def serving_thresholds(
        self, image_bytes, score_threshold, overlap_threshold, stuff_area_threshold_px
    ):
        number = tf.size(image_bytes)
        given = (score_threshold, overlap_threshold, stuff_area_threshold_px)
        checks = [
            tf.debugging.Assert(tf.size(t) == number, ["each image needs one of each threshold"])
            for t in given
        ]
        with tf.control_dependencies(checks):
            score, overlap = (tf.cast(t, tf.float64) for t in given[:2])
        # Masks are left out below the lowest threshold of a group, so no threshold may be NaN.
        score = tf.where(tf.math.is_nan(score), tf.constant(_NO_SCORE, tf.float64), score)
        return _for_rest(
            self._panoptic_of_files(image_bytes, score, overlap, stuff_area_threshold_px)
        )

    # As a function of its own it is in the file once, though several signatures call it.
    @tf.function(input_signature=[_IMAGE_BYTES, *_THRESHOLDS], autograph=False)
    def _panoptic_of_files(self, image_bytes, *thresholds):
        spec = tf.TensorSpec([], tf.string)
        answer = self._answering("panoptic_png", encode_panoptic_png, spec, thresholds)
        return self._inputs.of_files(image_bytes, *answer)

    @tf.function(input_signature=[_IMAGES], autograph=False)
    def panoptic(self, images):
        spec = tf.TensorSpec([None, None], tf.int32)
        thresholds = self._thresholds(tf.shape(images)[0])
        answer = self._answering("panoptic_ids", tf.identity, spec, thresholds)
        return self._inputs.of_images(images, *answer)

    def _answering(self, name, encode, spec, thresholds):
        """What `Inputs` wants to know: how a group of images is answered, and an answer's specs.

        Args:
          name: under which an answer has the map.
          encode: function of the map [h, w] to what the answer has.
          spec: of that.
          thresholds: of the request, [B] each.
        """
        signature = {name: spec, **self._table_signature()}

        def of_group(inputs, hw, original_hw, places):
            of_images = [tf.gather(threshold, places) for threshold in thresholds]
            outputs = self._network(inputs, hw, tf.reduce_min(of_images[0]))

            def one_image(image_outputs, hw, full_hw, *thresholds):
                result = self._fuse(image_outputs, hw, full_hw, *thresholds)
                return {name: encode(result.panoptic_ids), **self._table(result)}

            return fusion.map_images(one_image, outputs, hw, original_hw, signature, *of_images)

        return of_group, signature

    @tf.function(input_signature=[_IMAGE_BYTES], autograph=False)
    def serving_instances(self, image_bytes):
        width = self.config.model.max_detections
        signature = {
            "num_instances": tf.TensorSpec([], tf.int32),
            "boxes": tf.TensorSpec([width, 4], tf.float32),
            "scores": tf.TensorSpec([width], tf.float32),
            "category_ids": tf.TensorSpec([width], tf.int32),
            "windows": tf.TensorSpec([width, 4], tf.int32),
            "masks_png_bytes": tf.TensorSpec([width], tf.string),
        }

        def one_image(image_outputs, hw, full_hw):
            found = instances.place_instances(image_outputs.detections, hw, full_hw)
            windows = instances.box_windows(found.boxes)
            class_ids = tf.maximum(found.class_ids, 0)
            category_ids = tf.gather(tf.constant(self._fusion.thing_category_ids), class_ids)
            return {
                "num_instances": found.num_detections,
                "boxes": tf.ensure_shape(found.boxes, [width, 4]),
                "scores": found.scores,
                "category_ids": tf.where(found.class_ids < 0, 0, category_ids),
                "windows": tf.ensure_shape(windows, [width, 4]),
                "masks_png_bytes": _mask_pngs(found, windows),
            }

        def of_group(inputs, hw, original_hw, places):
            outputs = self._network(inputs, hw, _EVERY_SCORE)
            return fusion.map_images(one_image, outputs, hw, original_hw, signature)

        return self._inputs.of_files(image_bytes, of_group, signature)

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

    @tf.function(input_signature=[_IMAGES, _MASK_SCORE], autograph=False)
    def _run(self, images, mask_score):
        inputs, image_hw, original_hw = self._inputs.together(images)
        return self._network(inputs, image_hw, mask_score), image_hw, original_hw

    def _thresholds(self, number):
        """Those of the run for each image, as `_fuse` takes them. Fusion leaves out what has a
        lower score than the first, so that the mask head may leave it out, too.
        """
        settings = self._fusion
        values = settings.score_threshold, settings.overlap_threshold
        return (
            *(tf.fill([number], tf.constant(value, tf.float64)) for value in values),
            tf.fill([number], settings.stuff_area_threshold_px),
        )

    @tf.function(autograph=False)
    def _fuse(self, image_outputs, hw, full_hw, score, overlap, stuff_area_px):
        settings = self._fusion._replace(
            score_threshold=score, overlap_threshold=overlap, stuff_area_threshold_px=stuff_area_px
        )
        return fusion.fuse_image(image_outputs, hw, full_hw, settings)

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
        """One image's table, widened to --max_segments rows."""
        more = self.config.export.max_segments - self._table_rows()
        table = {"num_segments": result.num_segments}
        for name in _TABLE:
            column = getattr(result, name)
            table[name] = tf.pad(column, [[0, more]] + [[0, 0]] * (column.shape.rank - 1))
        return table


def _for_rest(reply):
    return {"panoptic_png_bytes": reply.pop("panoptic_png"), **reply}


def _mask_pngs(found, windows):
    """[D] string: a grey PNG of each instance's window; empty in padded rows."""
    probs = instances.mask_probabilities(found.mask_logits)

    def encode(item):
        index, prob, box, window = item

        def png():
            mask = instances.paste_window(prob, box, window)
            return tf.io.encode_png(255 * tf.cast(mask, tf.uint8)[..., tf.newaxis])

        return tf.cond(index < found.num_detections, png, lambda: "")

    boxes = tf.cast(found.boxes, tf.float64)
    items = (tf.range(tf.shape(boxes)[0]), probs, boxes, windows)
    return tf.map_fn(encode, items, fn_output_signature=tf.TensorSpec([], tf.string))


@in_scope("png")
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
            "max_request_images": config.export.max_request_images,
        },
        ensure_ascii=False,
    )
