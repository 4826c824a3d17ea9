"""How far a long job is: a bar on a terminal, a log line every half minute elsewhere."""

import io
import sys

import tqdm
from absl import logging

_LOG_SECONDS = 30.0


class _LogLines(io.TextIOBase):
    """Takes what tqdm writes over its last line, and logs it as a line of its own.

    tqdm writes a finished bar once more when it is closed, with another rate; that is left out.
    """

    _last = ""

    def write(self, text: str) -> int:
        done = text.strip().rsplit(", ", 2)[0]
        if done not in ("", self._last):
            logging.info("%s", text.strip())
            self._last = done
        return len(text)


class Bar(tqdm.tqdm):
    """`update(n)` counts what is done, and so does going through `items`.

    A job that ends within half a minute logs nothing.

    Args:
      description: what is being done, e.g. "Evaluating".
      total: how many there are; None: nobody knows.
      unit: of what, e.g. "image".
      items: what to go through, if anything.
    """

    monitor_interval = 0  # no thread: processes are forked while a bar is open

    def __init__(self, description, total, unit, items=None):
        settings = {"desc": description, "unit": f" {unit}", "smoothing": 0.1}
        if not sys.stderr.isatty():
            settings |= {"file": _LogLines(), "mininterval": _LOG_SECONDS, "delay": _LOG_SECONDS}
            line = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
            settings |= {"bar_format": line if total else None, "maxinterval": _LOG_SECONDS}
        super().__init__(items, total=total, **settings)

    @staticmethod
    def format_meter(*args, **kwargs):
        """tqdm's text; its rate of a slow job reads "2.00s/image", not "2.00s/ image"."""
        return tqdm.tqdm.format_meter(*args, **kwargs).replace("s/ ", "s/")
