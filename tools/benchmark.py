#!/usr/bin/env python3
"""Measures speed and memory, and prints them as JSON.

    python tools/benchmark.py --what=inference
    python tools/benchmark.py --what=train --crop_size=512,512 --global_batch_size=2 --breakdown
    python tools/benchmark.py --what=pq --num_images=5000

--what is one of

    inference       the exported model: load, first answer, answer, memory; of --saved_model,
                    or with random weights; --precision, --serving_batch_size
    serving_memory  memory of --saved_model over --num_images requests of random sizes
    train           the training step, the input and both together
    step, input     one of them
    pq              scoring panoptic files, beside panopticapi
    scale           a tiny network on --num_records records: first batch, resume at --resume_step,
                    memory of --train_steps steps and of an evaluation of --max_images

Times are medians of --repeats calls after warm-up. Settings of model and data are flags as
everywhere. --output_json also writes a file. --breakdown, with inference, train or step, prints a
table in place of the JSON: where the time goes by component, beside the floor, which is the time of
the network's multiply-adds at the rate of a 3x3 convolution in the same run.
"""

import json

from absl import flags, logging

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli
from pfpn_tf.utils.files import atomic_write

FLAGS = flags.FLAGS

flags.DEFINE_string("what", "", "What to measure; see above.")
flags.DEFINE_integer("repeats", 7, "Timed calls, after warm-up.")
flags.DEFINE_string("saved_model", "", "Directory of an exported model.")
flags.DEFINE_integer("num_images", 0, "Images, or requests of serving_memory; 0: its own number.")
flags.DEFINE_integer("num_instances", 10, "Instances of a drawn training image.")
flags.DEFINE_integer("serving_batch_size", 1, "Images of a request.")
flags.DEFINE_integer("num_records", 120_000, "Records of the rehearsal.")
flags.DEFINE_integer("resume_step", 89_000, "Where its second run continues.", lower_bound=0)
flags.DEFINE_bool("breakdown", False, "Where the time goes by component; see above.")
flags.DEFINE_string("output_json", "", "Also write the figures here.")
flags_lib.define_config_flags()


@cli.command
def main():
    flags_lib.check_given(["what"])
    if FLAGS.output_json:
        flags_lib.make_parent("output_json")
    from pfpn_tf.benchmark import suite

    options = suite.Options(**{name: FLAGS[name].value for name in suite.Options._fields})
    logging.info("Measuring; warming up takes longer than what is measured.")
    figures = suite.run(FLAGS.what, flags_lib.given_settings(), options)
    text = json.dumps(figures, indent=2)
    print(suite.breakdown_table(figures) if FLAGS.breakdown else text)
    if FLAGS.output_json:
        with atomic_write(FLAGS.output_json) as f:
            f.write(text + "\n")


if __name__ == "__main__":
    main()
