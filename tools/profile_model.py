#!/usr/bin/env python3
"""Counts multiply-adds, activations and parameters of a network, or of several side by side.

    python tools/profile_model.py --flagfile=configs/cityscapes/semantic_fpn_r101.flags
    python tools/profile_model.py --flagfile=configs/cityscapes/semantic_fpn_r101.flags \\
        --compare=figure4 --output_dir=out/figure4
    python tools/profile_model.py --compare=table1a
    python tools/profile_model.py --flagfile=configs/cityscapes/panoptic_fpn_r50.flags \\
        --compare=two_networks --measure --output_dir=out/two_networks

Counted are the convolutions of the traced network for one image of --image_size: nothing is
computed, and no data is needed. --measure also runs the networks, each in a process of its own: how
long they take one after the other, and how much memory if all of them answer at the same time.
--measure_training adds a forward pass with the gradients of one image. With --output_dir the
figures also go to profile.json and, of a comparison, a picture to profile.png.
"""

import dataclasses
import json
import os

from absl import flags

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli  # before TensorFlow

flags.DEFINE_string("image_size", "1024x2048", "Padded input, HEIGHTxWIDTH, multiples of 32.")
flags.DEFINE_enum(
    "compare",
    "",
    ["", "figure4", "table1a", "two_networks"],
    "Several side by side; empty: the one, by component.",
)
flags.DEFINE_bool(
    "measure", False, "Also run the networks: time in turn, memory of all at the same time."
)
flags.DEFINE_bool(
    "measure_training", False, "Like --measure, and the forward pass with gradients, too."
)
flags.DEFINE_integer("measure_repeats", 5, "Timed runs of each network.", lower_bound=1)
flags.DEFINE_integer("num_thing_classes", 8, "Cityscapes has 8, COCO 80.", lower_bound=1)
flags.DEFINE_integer("num_semantic_classes", 19, "Cityscapes 19, COCO 54.", lower_bound=1)
flags.DEFINE_string("output_dir", "", "Folder for profile.json and profile.png; empty: none.")
flags_lib.define_config_flags()


@cli.command
def main():
    args = flags.FLAGS
    # This process only counts: the GPU's memory is for those that measure.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    from pfpn_tf.benchmark import measure
    from pfpn_tf.experiments import model_cost
    from pfpn_tf.utils.files import atomic_write

    image_hw = model_cost.parse_size(args.image_size)
    config = flags_lib.config_from_flags()
    if args.output_dir:
        flags_lib.make_output_dir("output_dir")
    example = model_cost.Example(args.num_thing_classes, args.num_semantic_classes, image_hw)
    print(
        f"One image of {image_hw[0]}x{image_hw[1]}; {args.num_thing_classes} thing classes, "
        f"{args.num_semantic_classes} semantic classes.\n"
    )
    works = [model_cost.INFERENCE] * (args.measure or args.measure_training)
    works += [model_cost.TRAINING] * args.measure_training
    content = {"image_hw": image_hw}
    rows = [model_cost.Row(f"{config.model.task} {config.model.backbone}", [config.model])]
    if args.compare:
        rows = model_cost.COMPARISONS[args.compare](config)
    else:
        costs = model_cost.count(config.model, example)
        content["components"] = {name: dataclasses.asdict(cost) for name, cost in costs.items()}
    results = model_cost.compare(rows, example, works, args.measure_repeats)
    components = [{"label": name, **cost} for name, cost in content.get("components", {}).items()]
    print(model_cost.table(components + results))
    if works:
        print("\n" + model_cost.measured_table(results))
        content["machine"] = measure.machine()
    if args.output_dir:
        with atomic_write(os.path.join(args.output_dir, "profile.json")) as f:
            json.dump({**content, "networks": results}, f, indent=2)
            f.write("\n")
        if args.compare:
            path = os.path.join(args.output_dir, "profile.png")
            model_cost.draw(results, path, f"One image of {args.image_size}")
        print(f"\nWrote {args.output_dir}.")


if __name__ == "__main__":
    main()
