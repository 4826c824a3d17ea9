"""Random damages of a dataset's files, a few of those that `damage.py` makes."""

from tests.data import damage


def test_random_damages_end_in_records_or_one_clear_line(tmp_path):
    found = [outcome for _, _, outcome in damage.run(tmp_path, range(60))]
    converted = found.count(["converted"])
    assert 5 < converted < 55  # Neither harmless nor hopeless.
