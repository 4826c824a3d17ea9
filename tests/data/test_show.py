import numpy as np

from pfpn_tf.config import Config
from pfpn_tf.data import convert, pipeline, show
from tests.data import tiny


def test_draws_the_batches_of_the_run(tmp_path):
    tiny.make(tmp_path / "d", [(40, 60, [(5, 0, 4, 6, 30, 40)]), (40, 60, [])])
    dataset = tiny.open_panoptic(
        tmp_path / "d/panoptic.json", tmp_path / "d/panoptic", tmp_path / "d/images"
    )
    convert.convert(dataset, str(tmp_path), "train", num_workers=1)
    settings = dict(global_batch_size=2, train_min_sides=(64,), train_max_side=96)
    config = Config().replace(train_records=f"{tmp_path}/train-*", **settings)
    pictures = dict(show.draw_examples(config, pipeline.load_info(config), num_images=3))
    assert [name.split("_")[:2] for name in pictures] == [
        ["step000000", "00"],
        ["step000000", "01"],
        ["step000001", "00"],
    ]
    for picture in pictures.values():
        assert picture.dtype == np.uint8 and picture.shape[1] > 2 * 96 and picture.std() > 10
