"""report.html: what a search found, every candidate it scored, and which ones its races dropped.

One page without scripts or other files. It reads the files of the run's folder alone:

    OUTPUT_DIR/found*.yaml  stage/ and dilation*/journal.jsonl, race.jsonl  retrain/table.csv
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from crnas_d2.architecture import Architecture
from crnas_d2.files import write_text
from crnas_d2.search.journal import Journal

Row = Mapping[str, Any]
STYLE = (
    "body {font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em}"
    " table {border-collapse: collapse; margin: .5em 0} caption {text-align: left}"
    " th, td {border-bottom: 1px solid #ccc; padding: .1em .7em; text-align: right}"
    " th:first-child, td:first-child {text-align: left; font-family: monospace}"
)


def write_report(folder: Path) -> Path:
    """Write report.html of OUTPUT_DIR over an earlier one; its path.

    Raises:
        InputError: a damaged journal.
    """
    name = escape(folder.resolve().name)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    parts = ["<!doctype html>", head, f"<h1>{name}</h1>"]
    for found in sorted(folder.glob("found*.yaml")):
        comment = found.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        parts.append(f"<p><b>{escape(found.name)}</b>: {escape(comment)}</p>")
    for pattern in ("stage", "dilation*"):
        for journal in sorted(folder.glob(f"{pattern}/journal.jsonl")):
            parts += _search(journal.parent)
    table = folder / "retrain" / "table.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            parts.append("<h2>retrained, on the test set</h2>")
            parts.append(_table(list(csv.DictReader(file)), table.name))
    path = folder / "report.html"
    write_text(path, "\n".join([*parts, ""]))
    return path


def _search(folder: Path) -> Iterable[str]:
    """Candidates with whole codes, then partial ones, by how far they have grown; then the dropped."""
    records = Journal(folder / "journal.jsonl", writes=False).records
    yield f"<h2>{escape(folder.name)}: {len(records)} candidates saw all of archval</h2>"

    def open_digits(record: Row) -> int:
        architecture = Architecture.parse(record["architecture"])
        return architecture.blocks - len(architecture.dilation_code)

    ranked = sorted(records, key=lambda r: (open_digits(r), -r["score"], r["macs"], r["architecture"]))
    for number, alike in groupby(ranked, key=open_digits):
        kind = f"codes with {number} digits left open" if number else "whole codes"
        yield _table(list(alike), f"{kind}, best first")
    dropped = Journal(folder / "race.jsonl", writes=False).records
    for phase in sorted({record["phase"] for record in dropped}):
        rows = [record for record in dropped if record["phase"] == phase]
        why = (
            f"{phase}: {len(rows)} dropped. images: seen by then; score: on them; behind: in what part "
            "of the bootstraps it was not among the leading quarter"
        )
        yield _table(rows, why)


def _table(rows: Sequence[Row], caption: str) -> str:
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "phase"]
    lines = [f"<table><caption>{escape(caption)}</caption>", _line("th", columns)]
    lines += [_line("td", [_shown(row.get(column, "")) for column in columns]) for row in rows]
    return "\n".join([*lines, "</table>"])


def _line(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
