#!/usr/bin/env python3
"""Sends images to a TensorFlow Serving that serves an exported model; writes what it answers.

    python export/client.py --url=grpc://localhost:8500 --images=photos --output_dir=predictions
    python export/client.py --url=http://localhost:8501 --images=a.jpg --num_requests=200 \\
        --concurrency=4

With --output_dir: predictions.json (COCO panoptic format), its maps in predictions/, overlays in
pictures/. With --num_requests: latency percentiles, as one line of JSON. Categories and colours
come from the model. Exit codes: 0 all done, 1 some images were refused, or the server failed (what
is done is written), 2 unusable settings.
"""

import sys

from absl import flags

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli
from pfpn_tf.utils.errors import UserError

FLAGS = flags.FLAGS
SOME_FAILED = 1

flags.DEFINE_string(
    "url", "", "grpc://HOST:8500, http://HOST:8501 (may have a path), or with TLS grpcs, https."
)
flags.DEFINE_string(
    "ca_file", "", "With TLS: PEM file of the authorities to trust; empty: the usual ones."
)
flags.DEFINE_string("model_name", "panoptic", "Name under which the server serves the model.")
flags.DEFINE_list("images", [], "Files, folders (every image in them) or globs, comma-separated.")
flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags.DEFINE_float("score_threshold", None, "Of instances in the map; empty: the export's.")
flags.DEFINE_float(
    "overlap_threshold", None, "Share of an instance that others may hide; likewise."
)
flags.DEFINE_integer("stuff_area_threshold_px", None, "Of stuff in the map; likewise.")
flags.DEFINE_bool("overlays", True, "Also draw each result over its image.")
flags.DEFINE_bool(
    "serving_reply", False, "Also write what TensorFlow Serving's REST interface replies."
)
flags.DEFINE_integer("num_requests", 0, "Measure the latency of this many requests; 0: none.")
flags.DEFINE_integer("concurrency", 1, "Requests on their way at the same time.")
flags.DEFINE_integer("images_per_request", 1, "Images in each request that is measured.")
flags.DEFINE_float("timeout_s", 60.0, "Seconds to wait for an answer.")


@cli.command
def main():
    flags_lib.check_given(["url", "images"])
    if not (FLAGS.output_dir or FLAGS.num_requests):
        raise UserError("Give --output_dir to keep the answers or --num_requests to measure.")
    for name in ("concurrency", "images_per_request", "timeout_s"):
        if FLAGS[name].value <= 0:
            raise UserError(f"--{name}={FLAGS[name].value} must be above 0.")
    from pfpn_tf.serving import client, results

    paths = results.find_images(FLAGS.images)
    if FLAGS.output_dir:
        flags_lib.make_output_dir("output_dir")
    connection = client.connect(FLAGS.url, FLAGS.model_name, FLAGS.timeout_s, FLAGS.ca_file)
    state = connection.status()
    if state != client.AVAILABLE:
        raise UserError(f"{FLAGS.url}: the model {FLAGS.model_name} is in state {state}.")
    failures = send_files(connection, paths) if FLAGS.output_dir else []
    if FLAGS.num_requests:
        measure(connection, paths)
    return SOME_FAILED if failures else 0


def send_files(connection, paths):
    from pfpn_tf.serving import client, results

    given = {name: FLAGS[name].value for name in client.THRESHOLDS}
    model = connection.model({k: value for k, value in given.items() if value is not None})
    options = FLAGS.overlays, FLAGS.serving_reply
    with results.Writer(FLAGS.output_dir, model.info, *options) as writer:
        try:
            found = model.predict_files(paths, writer, FLAGS.concurrency)
            failures = [result for result in found if isinstance(result, results.Failure)]
        finally:
            print(f"Wrote {writer.count} of {len(paths)} answers to {FLAGS.output_dir}.")
    for failure in failures:
        print(f"No answer for {failure.path}: {failure.reason}", file=sys.stderr)
    return failures


def measure(connection, paths):
    import json

    from pfpn_tf.serving import latency, results

    images = []
    for path in paths:
        try:
            images.append(results.read_image(path))
        except results.Refused as error:
            raise UserError(f"{path}: {error}") from None
    options = FLAGS.num_requests, FLAGS.concurrency, FLAGS.images_per_request
    found = latency.measure(connection, images, *options)
    print(json.dumps({"concurrency": FLAGS.concurrency, **found}))


if __name__ == "__main__":
    main()
