"""Pictures: what is drawn where, and that no input makes drawing fail."""

import numpy as np
import pytest

from pfpn_tf.data import categories
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.utils import lettering, visualize

INFO = DatasetInfo.from_coco_categories(
    [
        {"id": 0, "name": "road", "isthing": 0, "color": [10, 20, 200]},
        {"id": 4, "name": "vélo", "isthing": 1, "color": [200, 30, 30]},
    ]
)
IMAGE = np.full((120, 200, 3), 100, np.uint8)


def scene():
    ids = np.zeros((120, 200), np.int32)
    ids[60:] = 1
    ids[20:100, 20:80] = 2
    ids[20:100, 120:180] = 70000
    segments = [
        {"id": 1, "category_id": 0},
        {"id": 2, "category_id": 4, "score": 0.87},
        {"id": 70000, "category_id": 4, "score": 0.5},
    ]
    return ids, segments


@pytest.fixture
def no_labels(monkeypatch):
    monkeypatch.setattr(visualize, "_draw_labels", lambda *arguments: None)


def test_panoptic_overlay_colours_segments_and_marks_void(no_labels):
    ids, segments = scene()
    image = IMAGE + np.uint8([50, 0, 0])
    drawn = visualize.overlay_panoptic(image, ids, segments, INFO)
    void = drawn[:10, :, 0]
    assert np.ptp(drawn[:10], axis=2).max() == 0, "void has no colour"
    assert len(np.unique(void)) == 2 and void.max() < 0.5 * image.max(), "dark, with stripes"
    drawn = visualize.overlay_panoptic(IMAGE, ids, segments, INFO)
    road = 100 + visualize.STUFF_OPACITY * (np.array([10, 20, 200]) - 100)
    np.testing.assert_allclose(drawn[110, 100], road, atol=1)
    thing = 100 + visualize.THING_OPACITY * (np.array([200, 30, 30]) - 100)
    np.testing.assert_allclose(drawn[50, 50], thing, atol=1)
    assert not np.array_equal(drawn[50, 50], drawn[50, 150]), "instances of a class differ"
    assert drawn[20, 50].sum() > drawn[30, 50].sum() + 60, "the outline lies on the border only"


def test_labels_are_drawn_and_do_not_overlap(monkeypatch):
    ids, segments = scene()
    drawn = visualize.overlay_panoptic(IMAGE, ids, segments, INFO, scale=3)
    monkeypatch.setattr(visualize, "_draw_labels", lambda *arguments: None)
    plain = visualize.overlay_panoptic(IMAGE, ids, segments, INFO, scale=3)
    assert drawn.shape == (360, 600, 3)
    for row in (60, 180):
        for column in (75, 450):
            area = np.s_[row - 60 : row + 120, column - 75 : column + 150]
            assert np.any(plain[area] != drawn[area])
    tags = lettering.Tags(np.zeros((100, 100, 3), np.uint8), 10)
    assert tags._first_free([(10, 10)], 30, 10) == (10, 10)
    assert tags._first_free([(15, 20), (20, 20)], 30, 10) == (20, 20)
    assert tags._first_free([(15, 20)], 30, 10) is None
    assert tags._first_free([(95, 95)], 30, 10) == (90, 70), "moved into the picture"
    assert tags._first_free([(0, 0)], 120, 10) is None, "wider than the picture"
    assert tags._first_free([(40, 0)], 50, 20) == (40, 0)
    assert tags._first_free([(70, 0)], 40, 20) is None, "more than a quarter would be covered"


def contrast(a, b):
    """Of two colours, as WCAG defines it: 1 to 21; text needs 4.5, lines need 3."""

    def luminance(color):
        c = np.asarray(color, float) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    brighter, darker = sorted([luminance(a), luminance(b)])[::-1]
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("ground", [0, 90, 170, 255])
@pytest.mark.parametrize("color", [(64, 0, 128), (0, 60, 0), (250, 250, 120), (200, 200, 200)])
def test_labels_and_outlines_show_on_every_ground(ground, color):
    picture = np.full((900, 1000, 3), ground, np.uint8)
    box = np.float32([[300, 300, 600, 700]])
    drawn = visualize.overlay_instances(picture, box, ["object"], [color], [])
    plate = drawn[:300, 300:700].reshape(-1, 3)
    plate = plate[(plate != ground).any(1)]
    brightness = plate.astype(int).sum(1)
    assert contrast(plate[brightness.argmax()], np.median(plate, axis=0)) > 4.5
    across = drawn[450, 290:310]  # from the ground over the left side of the box
    best = max(contrast(a, b) for a, b in zip(across[:-1], across[1:]))
    assert best > 3


def test_an_enlarged_outline_has_no_steps(no_labels):
    """Of a disc: all points of the outline are equally far from its middle."""
    rows, columns = np.mgrid[:60, :60]
    disc = np.int32((rows - 29.5) ** 2 + (columns - 29.5) ** 2 < 20**2)
    segments = [{"id": 1, "category_id": 4}]
    image = np.zeros((60, 60, 3), np.uint8)
    drawn = visualize.overlay_panoptic(image, disc, segments, INFO, scale=8)
    line = np.argwhere(drawn.sum(-1) > 0.95 * drawn.sum(-1).max())
    radii = np.hypot(*(line - 239.5).T)
    assert abs(radii.mean() - 160) < 4 and radii.std() < 1.5, "steps of 8 pixels give 1.9"


@pytest.mark.parametrize("hw", [(1, 1), (1, 300), (400, 2), (7, 5)])
def test_tiny_pictures(hw):
    image, ids = np.zeros((*hw, 3), np.uint8), np.ones(hw, np.int32)
    drawn = visualize.overlay_panoptic(
        image, ids, [{"id": 1, "category_id": 4, "score": 0.9}], INFO
    )
    assert drawn.shape == image.shape
    visualize.overlay_instances(image, np.float32([[0, 0, *hw]]), ["x"], [(1, 2, 3)], [np.ones(hw)])
    visualize.side_by_side([image, image], ["a", "b"])


def test_no_segments_and_another_size():
    """None in the map, whether one is listed or not."""
    void = np.zeros(IMAGE.shape[:2], int)
    drawn = visualize.overlay_panoptic(IMAGE, void, [{"id": 5, "category_id": 4}], INFO)
    np.testing.assert_array_equal(drawn, visualize.overlay_panoptic(IMAGE, void, [], INFO))
    assert drawn.shape == IMAGE.shape and drawn.max() < IMAGE.max()
    with pytest.raises(ValueError, match=r"The image is \(120, 200\), its map \(200, 120\)"):
        visualize.overlay_panoptic(IMAGE, void.T, [], INFO)


def test_instances_with_boxes_and_masks():
    mask = np.zeros((120, 200), np.uint8)
    mask[30:60, 30:60] = 1
    before = IMAGE.copy()
    drawn = visualize.overlay_instances(
        IMAGE, np.float32([[20, 20, 90, 150]]), ["bike 90%"], [(255, 0, 0)], [mask]
    )
    np.testing.assert_array_equal(IMAGE, before)
    np.testing.assert_array_equal(drawn[20, 140], (255, 115, 115), "lighter than the mask")
    assert drawn[45, 45, 0] > 150 and np.array_equal(drawn[80, 100], IMAGE[80, 100])


def test_semantic_classes_and_void(no_labels):
    """Class 0 is any thing, class 1 the road."""
    image = np.full((120, 200, 3), 100, np.uint8)
    labels = np.repeat(np.uint8([0, 1, 255]), 40)[:, None] + np.zeros((1, 200), np.uint8)
    drawn = visualize.overlay_semantic(image, labels, INFO, "other")
    for row, color in ((20, categories.OTHER_COLOR), (60, (10, 20, 200))):
        expected = 100 + visualize.STUFF_OPACITY * (np.array(color) - 100)
        np.testing.assert_allclose(drawn[row, 100], expected, atol=1)
    assert drawn[90:].max() < 50


def test_side_by_side_scales_to_the_tallest():
    row = visualize.side_by_side([IMAGE, IMAGE[::2, ::2]])
    assert row.shape == (120, 408, 3)
    assert visualize.stack([row, IMAGE]).shape == (248, 408, 3)


def test_letters():
    sizes = {lettering.text_size(text, 20) for text in ("velo", "vélo", "вело")}
    assert len(sizes) == 2, "Latin with accents, Cyrillic"
    canvas = np.zeros((30, 90, 3), np.uint8)
    lettering.write(canvas, "", (2, 2), (255, 255, 255), 20)
    assert not canvas.any()
    lettering.write(canvas, "vélo 木\n\ud800, wider than the picture", (2, 2), (255, 255, 255), 20)
    assert canvas[:, -20:].any(), "cut off at the border"


def test_shades_are_stable_and_distinct():
    colors = visualize.segment_colors([{"id": i, "category_id": 4} for i in range(12)], INFO)
    assert colors[0] == (200, 30, 30) and len(set(colors)) == 12
    assert colors[:5] == visualize.segment_colors(
        [{"id": i, "category_id": 4} for i in range(5)], INFO
    )


def test_side_by_side_of_narrow_images_with_titles_of_different_length():
    image = np.zeros((64, 60, 3), np.uint8)
    titles = ["short", "a title that needs a smaller font"]
    row = visualize.side_by_side([image, image], titles)
    assert row.shape[1] == 128
    assert (row[-64:, :60] == 0).all() and (row[-64:, 68:] == 0).all()
