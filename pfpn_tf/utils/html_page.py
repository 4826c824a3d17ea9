"""Parts of HTML pages that need no other file: pictures are inside, so a page can be mailed."""

import base64
import html
import io
from typing import Iterable, Mapping, Sequence

import numpy as np

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 1200px;
  padding: 0 1em; background: #fff }
h1, h2 { font-weight: 600 }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto }
table { border-collapse: collapse } th, td { padding: .2em .7em; text-align: right }
th { border-bottom: 1px solid #aaa } th:first-child, td:first-child { text-align: left }
tr:nth-child(even) { background: #f7f7f7 }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em;
  vertical-align: -.1em }
.text td, .text th { text-align: left; overflow-wrap: anywhere }
.scroll { overflow-x: auto } figure { margin: 1em 0 } figure img { max-width: 100% }
.row { display: flex; flex-wrap: wrap; gap: 2em } .row figure { margin: 0 }
"""
_BINS = 16  # of a histogram


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page; `parts` are HTML."""
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    return f"<!DOCTYPE html><html lang='en'><head>{head}</head><body>\n{body}\n</body></html>\n"


def table(header: Sequence[str], rows: Iterable[Sequence], css_class: str = "") -> str:
    """A table that scrolls by itself if it is wide; cells are HTML."""
    lines = ["".join(f"<th>{cell}</th>" for cell in header)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<div class='scroll'><table class='{css_class}'>{body}</table></div>"


def swatch(color: Sequence[int]) -> str:
    """A small square of an RGB colour."""
    return f"<span class='swatch' style='background:rgb{tuple(color)}'></span>"


def figure(caption: str, picture: str) -> str:
    """`picture` is HTML, `caption` plain text."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{picture}</figure>"


def image(data: bytes, kind: str, text: str) -> str:
    """A picture inside the page; `text` is read out instead of it."""
    encoded = base64.b64encode(data).decode()
    return f"<img alt='{html.escape(text, quote=True)}' src='data:image/{kind};base64,{encoded}'>"


def histogram(title: str, values: Mapping[str, Sequence[float]], log_scale: bool) -> str:
    """Bars of the shares of each split's values, over bins that all splits have in common.

    Args:
      title: what the values are.
      values: split -> its values, 0 or more; whole numbers unless `log_scale`.
      log_scale: bins grow by one factor instead of having one width.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    arrays = {name: np.asarray(v, float) for name, v in values.items() if len(v)}
    if not arrays:
        return ""
    chart = Figure((4.5, 2.4), layout="constrained")
    axes = chart.add_subplot()
    low = min(float(v.min()) for v in arrays.values())
    high = max(float(v.max()) for v in arrays.values())
    if log_scale:
        low = max(low, 1.0)
        # Over a power of two at least, so that the axis has a number.
        edges = np.geomspace(low, 1.001 * max(high, 2 * low), _BINS + 1)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    else:
        width = high // _BINS + 1
        edges = np.arange(0, high + 1 + width, width) - 0.5
    shares = [np.full(len(v), 1 / len(v)) for v in arrays.values()]
    clipped = [np.clip(v, edges[0], edges[-1]) for v in arrays.values()]
    axes.hist(clipped, edges.tolist(), weights=shares, label=list(arrays))
    if len(arrays) > 1:
        axes.legend()
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    drawn = io.BytesIO()
    chart.savefig(drawn)
    return figure(title, image(drawn.getvalue(), "png", title))
