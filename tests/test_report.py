"""report.html: a table for what each journal holds, read back by an HTML parser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from crnas_d2.analysis.report import write_report
from crnas_d2.errors import InputError


class Tables(HTMLParser):
    """Attributes: found, (caption, rows of cells) of each table; text, all that is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[list[str]]]] = []
        self.text = ""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self._open.append(tag)
        if tag == "h3":
            self.found.append(("", []))
        if tag == "tr":
            self.found[-1][1].append([])

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        if "h3" in self._open:
            self.found[-1] = (data, self.found[-1][1])
        if self._open and self._open[-1] in ("td", "th"):
            self.found[-1][1][-1].append(data.strip())  # padded by tabulate


def tables(folder: Path) -> Tables:
    page = write_report(folder)
    assert page == folder / "report.html" and not (folder / "report.html.part").exists()
    parser = Tables()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def scored(step: str, code: str, score: float, macs: int = 9) -> dict[str, Any]:
    return {"phase": step, "architecture": f"resnet/{code}", "score": score, "macs": macs, "params": 7}


STAGE = [
    scored("stage", "1-1-1-2/0-0-0-00", 31.256),
    scored("stage", "1-1-2-1/0-0-00-0", 33.0, macs=10),
    scored("stage", "2-1-1-1/00-0-0-0", 33.0),
    scored("stage", "2-1-3-1/00-0-000-0", 32.0, macs=11),  # a budget of macs has codes of any length
]
RACE = {
    **scored("stage race N5", "1-2-1-1/0-00-0-0", 21.5),
    **{"images": 34, "leader": "resnet/2-1-1-1/00-0-0-0", "leader_score": 35.1},
    **{"racing": 4, "behind": 0.975},
}
DILATION = [
    scored("dilation", "2-1-1-1/0_-_-_-_", 30.0),
    scored("dilation", "2-1-1-1/1_-_-_-_", 40.0),
    scored("dilation", "2-1-1-1/00-0-0-1", 35.0),
]


def test_every_candidate_best_first_and_whole_codes_first(tmp_path: Path) -> None:
    """Ties as in a search: fewer multiply-accumulates first."""
    write_lines(tmp_path / "stage/journal.jsonl", STAGE)
    write_lines(tmp_path / "stage/race.jsonl", [RACE])
    write_lines(tmp_path / "dilation/journal.jsonl", DILATION)
    verdict = {"found": "resnet/2-1-1-1/00-0-0-1", "text": "the baseline < it", "weights": "a path"}
    rows = [{"network": "baseline", "AP": 21.5}, {"network": "found", "AP": 22.25, "low": -0.125}]
    noise = [{"base": "r.yaml", "text": "seeds differ"}]
    results = {"noise": noise, "verdicts": {"N5": verdict}, "networks on the test set": rows}
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = tables(tmp_path)
    retrained, stage, dropped, whole, partial = [rows for _, rows in page.found]
    assert stage == [
        ["architecture", "score", "macs", "params"],
        ["resnet/2-1-1-1/00-0-0-0", "33.00", "9", "7"],
        ["resnet/1-1-2-1/0-0-00-0", "33.00", "10", "7"],
        ["resnet/2-1-3-1/00-0-000-0", "32.00", "11", "7"],
        ["resnet/1-1-1-2/0-0-0-00", "31.26", "9", "7"],
    ]
    assert dict(zip(*dropped)) == {
        "architecture": "resnet/1-2-1-1/0-00-0-0",
        **{"score": "21.50", "macs": "9", "params": "7", "images": "34"},
        **{"leader": "resnet/2-1-1-1/00-0-0-0", "leader_score": "35.10"},
        **{"racing": "4", "behind": "0.975"},
    }
    assert [row[0] for row in whole[1:]] == ["resnet/2-1-1-1/00-0-0-1"]
    assert [row[1] for row in partial[1:]] == ["40.00", "30.00"]
    header = ["network", "AP", "low"]
    assert retrained == [header, ["baseline", "21.50", ""], ["found", "22.25", "-0.125"]]
    for text in (
        "N5: resnet/2-1-1-1/00-0-0-1: the baseline < it",
        "weights: a path",
        "noise of r.yaml: seeds differ",
        "networks on the test set",
        "stage: 4 candidates saw all of archval",
        "codes with 4 digits left open, best first. error: standard error over images",
        "stage race N5: 1 dropped",
        "dilation: 3 candidates",
    ):
        assert text in page.text


def test_names_are_no_markup(tmp_path: Path) -> None:
    folder = tmp_path / "<b>&"
    write_lines(folder / "stage/journal.jsonl", [{**STAGE[0], "<i>": "&amp;"}])
    page = tables(folder)
    assert page.text.count("<b>&") == 2 and page.found[0][1][0][-1] == "<i>"
    assert page.found[0][1][1][-1] == "&amp;"


def test_a_folder_without_a_search_and_a_damaged_journal(tmp_path: Path) -> None:
    assert tables(tmp_path).found == []
    before = (tmp_path / "report.html").read_bytes()
    write_lines(tmp_path / "stage/journal.jsonl", [STAGE[0], STAGE[0]])
    with pytest.raises(InputError, match=r"journal\.jsonl:2: .*a second time"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
