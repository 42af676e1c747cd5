"""A figure of a report: an SVG that takes the page's colours, and its data as rows of a CSV."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure as Canvas

# Readable on white and on black; the first is the baseline's, the second what was found.
GREY, ORANGE, BLUE, GREEN = "#8a8f98", "#e0762f", "#4a90d9", "#2fa36b"
INK = "#010203"  # drawn in the colour of the page's text
WIDTH = 5.0  # inches; 360 points, which a telephone shows without making them smaller
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: the page's font, and it can be searched
    "svg.hashsalt": "crnas_d2",  # the same figure is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}


class Figure(NamedTuple):
    """``rows`` is all that it shows."""

    name: str  # of its CSV file
    caption: str
    svg: str
    rows: Sequence[Mapping[str, Any]]


class _Drawing:
    svg = ""


@contextmanager
def drawing(height: float) -> Iterator[tuple[Any, _Drawing]]:
    """Axes; ``svg`` when the context has ended. ``height``: in inches."""
    drawn = _Drawing()
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        yield canvas.subplots(), drawn
        file = io.StringIO()
        canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    drawn.svg = text.replace(INK, "currentColor")


def legend(axes: Any, **options: Any) -> None:
    """Below the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    known = {"handles": handles, "labels": labels, **options}
    axes.figure.legend(loc="outside lower center", ncol=3, **known)
