"""What a conversion leaves beside the records for people: statistics and recipe.flags."""

from absl import logging

from pfpn_tf.data import recipe, statistics
from pfpn_tf.data.categories import DatasetInfo


def write(
    folder: str, split: str, found: statistics.Statistics, info: DatasetInfo, epochs: float = 0
) -> None:
    """Adds a split to the statistics in a folder of records and writes the rest anew.

    The records are complete by then, so whatever fails here is only told.
    """
    try:
        splits = {**statistics.load(folder), split: found}
        statistics.save(folder, splits)
        recipe.write(folder, splits, info, epochs)
    except Exception as error:  # pylint: disable=broad-except
        logging.warning(
            "%s: the records are complete, but not what lies beside them: %s", folder, error
        )
