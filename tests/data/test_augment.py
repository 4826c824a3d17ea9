import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.data import augment
from pfpn_tf.data.augment import Geometry
from tests.reference import preprocess as reference


def geometry(source, resized, offset, content, flip):
    return Geometry(*map(tf.constant, (source, resized, offset, content, flip)))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "resized, offset, content", [((18, 33), (0, 0), (18, 33)), ((9, 16), (3, 4), (5, 11))]
)
def test_image_labels_and_boxes_move_alike(flip, resized, offset, content, maybe_graph):
    """A single bright block: its labels, its pixels and its box stay in one place."""
    source = (12, 22)
    mask = np.zeros(source, np.uint8)
    mask[4:8, 10:16] = 1
    g = geometry(source, resized, offset, content, flip)
    expected = reference.resize_labels(mask, resized)
    expected = expected[offset[0] : offset[0] + content[0], offset[1] : offset[1] + content[1]]
    expected = expected[:, ::-1] if flip else expected

    labels = maybe_graph(augment.transform_labels)(
        tf.constant(mask[None]), g, tf.constant([32, 64]), 255
    ).numpy()[0]
    np.testing.assert_array_equal(labels[: content[0], : content[1]], expected)
    assert (labels[content[0] :] == 255).all() and (labels[:, content[1] :] == 255).all()

    image = maybe_graph(augment.transform_image)(
        tf.constant(np.repeat(mask[..., None] * 255, 3, -1)), g
    ).numpy()
    assert image.shape == (*content, 3)
    assert ((image[..., 0] > 127) != expected).mean() < 0.05

    box = maybe_graph(augment.transform_boxes)(tf.constant([[4.0, 10, 8, 16]]), g).numpy()[0]
    rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
    tight = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
    np.testing.assert_allclose(box, tight, atol=1.0)


def test_twice_flipped_is_the_same():
    boxes = tf.constant([[1.0, 2, 5, 9], [0, 0, 12, 22]])
    flip = geometry((12, 22), (12, 22), (0, 0), (12, 22), True)
    once = augment.transform_boxes(boxes, flip)
    np.testing.assert_array_equal(once[0], [1, 13, 5, 20])
    np.testing.assert_array_equal(augment.transform_boxes(once, flip), boxes)


def test_boxes_cut_by_the_crop_become_tight():
    masks = np.zeros((3, 8, 10), np.uint8)
    masks[0, 2:4, 3:5] = 1  # inside: keeps the annotator's box
    masks[1, 5:6, 0:2] = 1  # reached over the left edge; what is left is tight
    boxes = tf.constant([[1.5, 2.5, 4.5, 5.5], [4.0, -3.0, 7.0, 3.0], [9.0, 1.0, 12.0, 4.0]])
    out = augment.crop_boxes(boxes, tf.constant(masks), tf.constant([8, 10])).numpy()
    np.testing.assert_array_equal(out, [[1.5, 2.5, 4.5, 5.5], [5, 0, 6, 2], [0, 0, 0, 0]])


def test_tight_boxes_of_one_pixel_and_of_none():
    masks = np.zeros((3, 4, 6), np.uint8)
    masks[0, 3, 5] = 1
    masks[1] = 1
    boxes = augment.tight_boxes(tf.constant(masks)).numpy()
    np.testing.assert_array_equal(boxes, [[3, 5, 4, 6], [0, 0, 4, 6], [0, 0, 0, 0]])
    assert augment.tight_boxes(tf.zeros([0, 4, 6], tf.uint8)).shape == (0, 4)


def test_draws_depend_on_the_seed_alone_and_cover_the_range():
    def draw(i, flip=True):
        g = augment.draw_geometry(*map(tf.constant, ([20, 30], [10, 15], [8, 15])), flip, (7, i))
        return *g.offset.numpy().tolist(), bool(g.flip)

    drawn = [draw(i) for i in range(60)]
    tops, lefts, flips = zip(*drawn)
    assert set(tops) == {0, 1, 2} and set(lefts) == {0} and 15 < sum(flips) < 45
    assert draw(3) == drawn[3]
    assert not any(draw(i, flip=False)[-1] for i in range(20))


def test_color_jitter_stays_in_range_and_follows_its_seed():
    image = tf.constant(np.random.RandomState(0).randint(0, 256, (6, 7, 3), np.uint8))
    outs = [augment.jitter_color(image, (1, i)).numpy() for i in range(5)]
    for out in outs:
        assert out.min() >= 0 and out.max() <= 255 and out.dtype == np.float32
    np.testing.assert_array_equal(outs[0], augment.jitter_color(image, (1, 0)))
    assert np.abs(outs[0] - outs[1]).mean() > 1


@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_a_bootstrapped_crop_holds_a_class_that_is_rare(maybe_graph, scale):
    """One class covers the image but for 8x8 pixels in a corner; the crop is a sixteenth of it."""
    labels = np.full((64, 96), 7, np.uint8)
    labels[:8, 88:] = 3
    labels[40:, :50] = 255  # void is no class
    resized = int(64 * scale), int(96 * scale)
    content = resized[0] // 4, resized[1] // 4
    run = maybe_graph(lambda g, share, seed: augment.bootstrap_crop(g, labels, 255, share, seed))

    def crops(share):
        for i in range(40):
            g = geometry((64, 96), resized, (0, 0), content, False)
            g = run(g, tf.constant(share), tf.constant([5, i]))
            top, left = g.offset.numpy()
            assert 0 <= top <= resized[0] - content[0] and 0 <= left <= resized[1] - content[1]
            crop = augment.transform_labels(tf.constant(labels[None]), g, tf.constant(content), 255)
            yield crop.numpy()

    with_rare = [(crop == 3).any() for crop in crops(1.0)]
    assert 10 <= sum(with_rare) <= 36  # half of the draws, and a few crops around the other class
    moved = [crop.shape for crop in crops(0.0) if (crop == 3).any()]
    assert not moved  # a share of 0 leaves the crop at the top left


def test_a_bootstrapped_crop_of_void_stays_where_it_is():
    labels = np.full((8, 8), 255, np.uint8)
    g = geometry((8, 8), (8, 8), (2, 3), (4, 4), True)
    moved = augment.bootstrap_crop(g, tf.constant(labels), 255, 1.0, (1, 2))
    assert moved.offset.numpy().tolist() == [2, 3] and bool(moved.flip)


def test_bootstrapping_draws_every_crop_that_holds_the_pixel():
    """The only labelled pixel is (4, 4) of 8x8; 3x3 crops that hold it begin at 2..4."""
    labels = np.full((8, 8), 255, np.uint8)
    labels[4, 4] = 1
    g = geometry((8, 8), (8, 8), (0, 0), (3, 3), False)
    offsets = {
        tuple(augment.bootstrap_crop(g, tf.constant(labels), 255, 1.0, (0, i)).offset.numpy())
        for i in range(120)
    }
    assert offsets == {(top, left) for top in (2, 3, 4) for left in (2, 3, 4)}
