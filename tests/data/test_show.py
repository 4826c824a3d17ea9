import numpy as np

from pfpn_tf.config import Config
from pfpn_tf.data import pipeline, show
from tests.data import tiny


def test_draws_the_batches_of_the_run(tmp_path):
    tiny.make(tmp_path / "d", [(40, 60, [(5, 0, 4, 6, 30, 40)]), (40, 60, [])])
    tiny.convert(tmp_path / "d", tmp_path)
    settings = dict(global_batch_size=2, train_min_sides=(64,), train_max_side=96)
    config = Config().replace(train_records=f"{tmp_path}/train-*", **settings)
    pictures = dict(show.draw_examples(config, pipeline.load_info(config), num_images=3))
    expected = ["step000000_00", "step000000_01", "step000001_00"]
    assert ["_".join(name.split("_")[:2]) for name in pictures] == expected
    for picture in pictures.values():
        assert picture.dtype == np.uint8 and picture.shape[1] > 2 * 96 and picture.std() > 10
