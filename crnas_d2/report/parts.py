"""What a page consists of: sections of paragraphs, tables, figures, pictures and lines of code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crnas_d2.report.figures import Figure
from crnas_d2.report.pictures import Picture


@dataclass
class Table:
    """Cells are shown as they are; ``folded``: until someone clicks on the caption."""

    caption: str
    rows: Sequence[Mapping[str, Any]]
    folded: bool = False

    @property
    def header(self) -> list[str]:
        """Columns in which any row has something."""
        keys = dict.fromkeys(key for row in self.rows for key in row)
        return [key for key in keys if any(row.get(key) is not None for row in self.rows)]


@dataclass
class Section:
    """A part of the page. What it shows stands in this order."""

    text: list[str] = field(default_factory=list)  # paragraphs
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    code: list[str] = field(default_factory=list)  # lines
