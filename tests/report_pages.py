"""What tests of report.html share: a search's folder, and the page read by an HTML parser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from detectors import TINY, tiny_shapes

from crnas_d2.config import read_config
from crnas_d2.report.page import write_report

TITLES = [
    "What was found, and is it better?",
    "Where the computation went",
    "How the search went",
    "What it cost",
    "Pictures of archval",
    "How to do it again",
    "All candidates",
]
VOID = {"meta", "link", "img", "path", "use", "rect", "circle", "line", "image"}


class Page(HTMLParser):
    """``sections``: by title, the text below; ``tables``: by caption, rows of cells; ``addresses``."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.figures = 0
        self._open: list[str] = []
        self._is_caption = False
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        known = dict(attributes)
        self.addresses += [known[key] for key in ("src", "href", "xlink:href") if key in known]
        self.figures += tag == "svg"
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self.sections[""] = ""
        self._is_caption = tag == "summary" or known.get("class") == "caption"
        if self._is_caption:
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag
        if tag == "h2":
            self.sections[self._title] = self.sections.pop("")

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "h2":
            self._title = data
        elif self._is_caption and inside in ("p", "summary"):
            self._caption += data
        elif inside in ("td", "th"):
            self.tables[self._caption][-1][-1] += data
        elif self.sections and "section" in self._open:
            self.sections[list(self.sections)[-1]] += data


def page_of(folder: Path, measure: bool = False) -> Page:
    path = write_report(folder, measure)
    assert path == folder / "report.html" and not (folder / "report.html.part").exists()
    page = Page(path)
    assert list(page.sections) == TITLES
    # It asks for nothing: parts of the page itself, and what stands in it.
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "url(http" not in path.read_text() and "@import" not in path.read_text()
    return page


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def scored(step: str, code: str, score: float, macs: int = 9, **more: Any) -> dict[str, Any]:
    known = {"phase": step, "architecture": f"resnet_basic/{code}", "score": score}
    return {**known, "error": 0.5, "macs": macs, "params": 7, "seconds": 2.0, **more}


STAGE = [
    scored("stage", "1-1-1-2/0-0-0-00", 31.256),
    scored("stage", "1-1-2-1/0-0-00-0", 33.0, macs=10),
    scored("stage", "2-1-1-1/00-0-0-0", 33.0),
    scored("stage", "2-1-3-1/00-0-000-0", 32.0, macs=11),  # a budget of macs has codes of any length
]
RACE = {
    **scored("stage race N5", "1-2-1-1/0-00-0-0", 21.5),
    **{"images": 34, "leader": "resnet_basic/2-1-1-1/00-0-0-0", "leader_score": 35.1},
    **{"racing": 4, "behind": 0.975},
}
DILATION = [
    scored("dilation", "2-1-1-1/0_-_-_-_", 30.0),
    scored("dilation", "2-1-1-1/1_-_-_-_", 40.0),
    scored("dilation", "2-1-1-1/00-0-0-1", 35.0),
]
ALONE = [
    scored("archtrain 0", "1-1-1-2/0-0-0-00", 50.0),
    scored("archtrain 1", "1-1-1-2/0-0-0-00", 51.0),
    scored("archtrain 0", "2-1-1-1/00-0-0-0", 52.0),
]


def rows_on_the_test_set(low: float | None, high: float | None, value: float = 0.5) -> list[Any]:
    baseline = {"network": "baseline", "architecture": "resnet_basic/1-1-1-2/0-0-0-00"}
    found = {"network": "found", "architecture": "resnet_basic/2-1-1-1/00-0-0-1"}
    ends = {"to the baseline": value, "95 % low": low, "95 % high": high}
    return [
        {**baseline, "seed": 0, "AP": 50.0},
        {**baseline, "seed": "mean", "AP": 50.0},
        {**found, "seed": 0, "AP": 50.0 + value},
        {**found, "seed": "mean", "AP": 50.0 + value, "APs": 12.0, **ends},
    ]


def ended_run(folder: Path) -> Path:
    """The folder of a search that has ended, but for its checkpoints."""
    write_lines(folder / "stage" / "journal.jsonl", STAGE)
    write_lines(folder / "stage" / "race.jsonl", [RACE])
    write_lines(folder / "dilation" / "journal.jsonl", DILATION)
    write_lines(folder / "trainings" / "journal.jsonl", ALONE)
    found = {"found": "resnet_basic/2-1-1-1/00-0-0-1", "text": "the baseline < it", "weights": "a path"}
    results = {"noise": [{"base": "r.yaml", "text": "seeds differ"}], "verdicts": {"N5": found}}
    results["networks on the test set"] = rows_on_the_test_set(0.1, 0.9)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def with_config(run: Path, tmp_path: Path) -> Path:
    """The run as search_net.py leaves it: with its config, its start, and a trained joint supernet."""
    base = tmp_path / "base.yaml"
    codes = [*TINY, "MODEL.CRNAS.FAMILY", "resnet_basic", "MODEL.CRNAS.STAGE_CODE", [1, 1, 1, 2]]
    base.write_text(read_config("", codes).dump())
    own = [*codes, *tiny_shapes(tmp_path / "shapes"), "SEARCH.FOUND_BASE", (str(base),), "SEED", 3]
    own += ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "SEARCH.BUDGETS", (5,), "MODEL.CRNAS.SHARED", True]
    cfg = read_config("", [*own, "MODEL.DEVICE", "cpu"])
    (run / "config.yaml").write_text(cfg.dump())
    supernet = read_config("", [*own, "MODEL.CRNAS.SUPERNET", "joint"])
    supernet.defrost()
    supernet.MODEL.CRNAS.STAGE_SPACE = [[1, 2], [1, 2], [1, 3], [1, 2]]
    (run / "joint").mkdir()
    (run / "joint" / "config.yaml").write_text(supernet.dump())
    losses = [{"iteration": i, "time": 0.5, "total_loss": 1.0, "lr": 1} for i in (19, 39, 19, 39, 59)]
    write_lines(run / "joint" / "metrics.json", losses)
    start = {"time": "2026-01-01", "command": "search_net.py --timed", "folder": "/x", "processes": 2}
    start |= {"device": "cpu", "versions": {"torch": "2"}, "bases": {"N5": str(base)}}
    start |= {"environment": {"DETECTRON2_DATASETS": "/data"}, "launcher": "by torchrun"}
    start["estimate"] = {"joint supernet": 100.0}
    resumed = {**start, "command": "search_net.py --resume", "estimate": None}
    write_lines(run / "starts.jsonl", [start, resumed])
    return run
