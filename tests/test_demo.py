"""make demo's two commands: the whole chain on the generated shapes finds something to choose from."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from detectors import ROOT, run_script


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    config = ROOT / "configs" / "Shapes" / "search.yaml"
    names = [
        *("DATASETS.TRAIN_JSON", f"{data}/train.json", "DATASETS.TRAIN_IMAGES", f"{data}/images"),
        *("DATASETS.TEST_JSON", f"{data}/val.json", "DATASETS.TEST_IMAGES", f"{data}/images"),
    ]
    run_script("-m", "crnas_d2.data.shapes", str(data))
    shown = run_script("search_net.py", "--config-file", str(config), "OUTPUT_DIR", str(out), *names)
    results = json.loads((out / "results.json").read_text())
    baseline, stage, found = results["paths on the test set"]
    assert baseline["AP"] >= 50 and found["images"] == 400
    for row in (stage, found):
        if row["architecture"] != baseline["architecture"]:
            assert row["95 % low"] < row["to the baseline"] < row["95 % high"]
    for phase, count in (("stage", 9), ("dilation", 3 + 9 * 7)):
        lines = (out / phase / "journal.jsonl").read_text().splitlines()
        scored = [json.loads(line) for line in lines]
        assert len(scored) in (count, count + 1)  # with rate 1 everywhere, where the winner has rates
        assert len({record["score"] for record in scored}) >= 0.9 * count
        assert all(0.1 < record["error"] < 10 for record in scored)
        median = statistics.median(record["score"] for record in scored)
        assert median >= baseline["AP"] * 0.8, (phase, median, baseline)
    assert "a path out of the supernet" in results["verdicts"]["N8"]["weights"]
    # The report has pictures of both paths, and nothing in it is empty.
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 12 and page.count("<svg") >= 6
    last = shown.splitlines()[-1]
    assert last.startswith("written: ") and last.count(str(out)) == 4
