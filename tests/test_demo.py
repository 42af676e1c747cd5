"""make demo's two commands: the whole chain on the generated shapes finds something to choose from."""

from __future__ import annotations

import csv
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
    with (out / "retrain" / "table.csv").open(newline="") as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    baseline = float(rows["baseline"]["AP"])
    assert baseline >= 20
    assert rows["baseline"]["backbone GMACs"] == rows["found"]["backbone GMACs"]
    for step, count in (("stage", 9), ("dilation", 3 + 9 * 7)):
        lines = (out / step / "journal.jsonl").read_text().splitlines()
        scores = [json.loads(line)["score"] for line in lines]
        assert len(scores) == count
        assert len(set(scores)) >= 0.9 * count
        assert statistics.median(scores) >= baseline / 3, (step, statistics.median(scores), baseline)
    last = shown.splitlines()[-1]
    assert last.startswith("written: ") and last.count(str(out)) == 3
