"""Charts of pages."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from pfpn_tf.utils import html_page


@pytest.mark.parametrize("log_scale", [False, True])
@pytest.mark.parametrize("high", [0, 1, 16, 32, 48, 100, 1000])
def test_every_value_is_in_a_bar_of_its_own_range(high, log_scale, monkeypatch):
    drawn = []
    hist = Axes.hist
    monkeypatch.setattr(Axes, "hist", lambda *args, **kw: drawn.append(hist(*args, **kw)))
    values = {"train": np.arange(high + 1), "val": [high]}
    assert "data:image/png" in html_page.histogram("sizes", values, log_scale)
    ((shares, edges, _),) = drawn
    assert len(edges) <= 18 and edges[-1] > high
    assert np.sum(shares, 1) == pytest.approx([1, 1])
    if not log_scale:
        expected = [np.histogram(v, edges)[0] / len(v) for v in values.values()]
        np.testing.assert_allclose(shares, expected)


def test_without_values_there_is_no_chart():
    assert html_page.histogram("sizes", {"train": []}, False) == ""
