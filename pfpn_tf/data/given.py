"""What the readers of datasets are given."""

from typing import NamedTuple, Sequence


class Given(NamedTuple):
    """What a dataset is read from; the flags of tools/create_tfrecords.py have these names and tell
    what they are. `ignore` holds values, or names of classes, of pixels without a label.
    """

    image_dir: str = ""
    panoptic_json: str = ""
    panoptic_dir: str = ""
    instances_json: str = ""
    class_map_dir: str = ""
    class_names: Sequence[str] = ()
    things: Sequence[str] = ()
    ignore: Sequence[str] = ("255",)
    image_info_json: str = ""
    image_ids: Sequence[str] = ()
    output_dir: str = ""
    allow_mismatch: bool = False
    crowds: bool = True
