"""Parts of HTML pages that need no other file: pictures are inside, so a page can be mailed."""

import base64
import html
from typing import Iterable, List, Mapping, Sequence

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
_BARS = ("#4878a8", "#e08b3a", "#6aa56a", "#a06aa8", "#8a8a8a")  # one for each split
_BAR_AREA = 110  # height in pixels
_MOST_BINS = 16


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
      values: split -> its values, 0 or more.
      log_scale: bins grow by the square root of 2, or a power of it, instead of having one width.
    """
    arrays = {name: np.asarray(v, float) for name, v in values.items() if len(v)}
    if not arrays:
        return ""
    starts = _bin_starts(np.concatenate(list(arrays.values())), log_scale)
    edges = np.append(starts, np.inf)
    shares = [np.histogram(v, edges)[0] / len(v) for v in arrays.values()]
    tallest = max(float(share.max()) for share in shares)
    bar = max(4, 20 // len(shares))
    step = bar * len(shares) + 6
    parts: List[str] = []
    for i, (name, share) in enumerate(zip(arrays, shares)):
        color = _BARS[i % len(_BARS)]
        parts.append(
            f"<rect x='{i * 90}' y='2' width='10' height='10' fill='{color}'/>"
            f"<text x='{i * 90 + 14}' y='11'>{html.escape(name)}</text>"
        )
        for n, value in enumerate(share):
            size = _BAR_AREA * value / tallest
            parts.append(
                f"<rect x='{n * step + i * bar}' y='{_BAR_AREA + 20 - size:.1f}' width='{bar - 1}'"
                f" height='{size:.1f}' fill='{color}'><title>from {_short(starts[n])}:"
                f" {value:.1%}</title></rect>"
            )
    for n in range(0, len(starts), -(-40 // step)):  # labels need 40 pixels
        parts.append(f"<text x='{n * step}' y='{_BAR_AREA + 34}'>{_short(starts[n])}</text>")
    size = f"width='{max(step * len(starts) + 30, 90 * len(arrays))}' height='{_BAR_AREA + 40}'"
    drawn = f"<svg {size} font-size='11' fill='#222'>{''.join(parts)}</svg>"
    return figure(title, f"<br>{drawn}")


def _bin_starts(values, log_scale):
    """Where bins begin: at each value if there are few, else at most `_MOST_BINS` regular ones."""
    different = np.unique(values)
    if len(different) <= _MOST_BINS // 2:
        return different
    if log_scale:
        low, high = (2 * np.log2(max(v, 1.0)) for v in (different[0], different[-1]))
        first, last = np.floor(low), np.floor(high) + 1
        starts = 2 ** (np.arange(first, last, -(-(last - first) // _MOST_BINS)) / 2)
        starts[0] = min(starts[0], different[0])
        return starts
    return np.arange(0, different[-1] + 1, -(-(different[-1] + 1) // _MOST_BINS))


def _short(value):
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
