"""report.html: what a search found, every candidate it scored, and which ones its races dropped.

It reads the files of the run's folder alone:

    OUTPUT_DIR/found*.yaml  stage/ and dilation*/journal.jsonl, race.jsonl  retrain/table.csv

One page without scripts or other files.
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
    """Write report.html over an earlier one.

    Args:
        folder: OUTPUT_DIR of a search.

    Returns:
        its path.

    Raises:
        InputError: a damaged journal.
    """
    parts = [f"<h1>{escape(folder.resolve().name)}</h1>", *_found(folder)]
    for pattern in ("stage", "dilation*"):
        for journal in sorted(folder.glob(f"{pattern}/journal.jsonl")):
            parts += _search(journal.parent)
    parts += _retrained(folder / "retrain" / "table.csv")
    path = folder / "report.html"
    head = f'<meta charset="utf-8"><title>{escape(folder.resolve().name)}</title><style>{STYLE}</style>'
    write_text(path, "\n".join(["<!doctype html>", head, *parts, ""]))
    return path


def _found(folder: Path) -> Iterable[str]:
    for path in sorted(folder.glob("found*.yaml")):
        comment = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        yield f"<p><b>{escape(path.name)}</b>: {escape(comment)}</p>"


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
        yield _table([_without_phase(record) for record in alike], f"{kind}, best first")
    yield from _dropped(Journal(folder / "race.jsonl", writes=False).records)


def _dropped(records: Sequence[Row]) -> Iterable[str]:
    for phase, of_race in groupby(sorted(records, key=lambda r: r["phase"]), key=lambda r: r["phase"]):
        rows = [_without_phase(record) for record in of_race]
        why = (
            f"{phase}: {len(rows)} dropped. images: seen by then; score: on them; behind: in what part "
            "of the bootstraps it was not among the leading quarter"
        )
        yield _table(rows, why)


def _retrained(path: Path) -> Iterable[str]:
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            yield "<h2>retrained, on the test set</h2>"
            yield _table(list(csv.DictReader(file)), str(path.name))


def _without_phase(record: Row) -> Row:
    """What a line of a journal says of its candidate, that first."""
    rest = {key: value for key, value in record.items() if key != "phase"}
    return {"architecture": rest.pop("architecture"), **rest}


def _table(rows: Sequence[Row], caption: str) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"<table><caption>{escape(caption)}</caption>", _line("th", columns)]
    lines += [_line("td", [_shown(row.get(column, "")) for column in columns]) for row in rows]
    return "\n".join([*lines, "</table>"])


def _line(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
