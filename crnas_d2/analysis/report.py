"""report.html: what a search found, every candidate it scored, and which ones its races dropped.

Read from results.json and {stage,dilation*}/{journal,race}.jsonl of OUTPUT_DIR.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from tabulate import tabulate

from crnas_d2.files import write_text
from crnas_d2.search.journal import Journal, open_digits

Row = Mapping[str, Any]
STYLE = (
    "body {font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em}"
    " h3 {font: inherit; margin: 1em 0 .5em} table {border-collapse: collapse}"
    " td, th {border-bottom: 1px solid #ccc; padding: .1em .7em; text-align: right}"
    " td:first-child, th:first-child {text-align: left; font-family: monospace}"
)

ERROR = "error: standard error over images; the supernet's own noise is not in it"


def write_report(folder: Path) -> Path:
    """Write report.html of OUTPUT_DIR over an earlier one; its path. InputError: a damaged journal."""
    name = escape(folder.resolve().name)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    parts = ["<!doctype html>", head, f"<h1>{name}</h1>"]
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for budget, verdict in results.get("verdicts", {}).items():
        found, text, weights = (escape(verdict[key]) for key in ("found", "text", "weights"))
        parts.append(f"<p><b>{escape(budget)}: {found}</b>: {text}<br>weights: {weights}</p>")
    for noise in results.get("noise", []):
        parts.append(f"<p>noise of {escape(noise['base'])}: {escape(noise['text'])}</p>")
    for name, rows in results.items():
        if name.endswith("test set"):
            parts += [f"<h2>{escape(name)}</h2>", _table(rows, "results.json")]
    for pattern in ("stage/journal.jsonl", "dilation*/journal.jsonl"):
        for journal in sorted(folder.glob(pattern)):
            parts += _search(journal.parent)
    path = folder / "report.html"
    write_text(path, "\n".join([*parts, ""]))
    return path


def _search(folder: Path) -> Iterable[str]:
    """Candidates with whole codes, then partial ones, by how far they have grown; then the dropped."""
    records = Journal(folder / "journal.jsonl", writes=False).records
    yield f"<h2>{escape(folder.name)}: {len(records)} candidates saw all of archval</h2>"
    ranked = sorted(records, key=lambda r: (open_digits(r), -r["score"], r["macs"], r["architecture"]))
    for number, alike in groupby(ranked, key=open_digits):
        kind = f"codes with {number} digits left open" if number else "whole codes"
        yield _table(list(alike), f"{kind}, best first. {ERROR}")
    dropped = Journal(folder / "race.jsonl", writes=False).records
    for phase in sorted({record["phase"] for record in dropped}):
        rows = [record for record in dropped if record["phase"] == phase]
        means = "images: seen by then; behind: fraction of bootstraps outside the leading quarter"
        yield _table(rows, f"{phase}: {len(rows)} dropped. {means}")


def _table(rows: Sequence[Row], caption: str) -> str:
    keys = dict.fromkeys(key for row in rows for key in row if key != "phase")
    shown = [{key: _shown(row.get(key, "")) for key in keys} for row in rows]
    table = tabulate(shown, headers="keys", tablefmt="html", disable_numparse=True)
    return f"<h3>{escape(caption)}</h3>\n{table}"


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
