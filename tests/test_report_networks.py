"""report.html: weights and pictures of the networks that it compares."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from report_pages import TITLES, ended_run, page_of, with_config

from crnas_d2.report.folder import RunFolder
from crnas_d2.report.networks import compared
from detectron2.modeling import build_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return ended_run(tmp_path / "run")


def test_pictures(run: Path, tmp_path: Path) -> None:
    """Of the networks that have weights, beside the objects; or why there are none."""
    with_config(run, tmp_path)
    assert (
        "Without baseline, resnet_basic/1-1-1-2/0-0-0-00: there are no"
        in page_of(run).sections[TITLES[4]]
    )
    for network in compared(RunFolder(run))[:2]:
        assert network.cfg is not None
        content = {"model": build_model(network.cfg).state_dict()}
        torch.save(content, run / f"{network.name}.pth")
    (run / "splits").mkdir()
    shutil.copy(tmp_path / "shapes" / "val.json", run / "splits" / "archval.json")
    page = page_of(run)
    pictures = [a for a in page.addresses if a.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 4 * 3
    assert page.sections[TITLES[4]].split()[-9:] == ["objects", "baseline", "found"] * 3
    sizes = {Image.open(path).size for path in (run / "report" / "pictures").glob("*.jpg")}
    assert sizes == {(640, 640)}
    base = tmp_path / "base.yaml"
    text = base.read_text()
    base.write_text(text.replace("FORMAT: BGR", "FORMAT: YUV"))
    assert "There are none: INPUT.FORMAT: 'YUV': allowed" in page_of(run).sections[TITLES[4]]
    base.write_text(text)
    shutil.copy(run / "baseline.pth", run / "found.pth")
    assert "found.pth: is of another network" in page_of(run).sections[TITLES[4]]
    shutil.rmtree(tmp_path / "shapes" / "images")
    assert "is not there" in page_of(run).sections[TITLES[4]]


def test_weights_of_several_budgets(run: Path, tmp_path: Path) -> None:
    """Not those of another budget, whose name comes first."""
    with_config(run, tmp_path)
    results = json.loads((run / "results.json").read_text())
    (row,) = (
        r for r in results["networks on the test set"] if r["network"] == "found" and r["seed"] == 0
    )
    rows = [{**row, "network": f"found_N{n}", "seed": "mean"} for n in (5, 10)]
    results["networks on the test set"] = rows
    (run / "results.json").write_text(json.dumps(results))
    for name in ("found_N10.pth", "found_N5.pth"):
        (run / name).write_bytes(b"")
    found = {network.name: network for network in compared(RunFolder(run))}
    assert found["found_N5"].weights == run / "found_N5.pth"
    assert found["found_N10"].weights == run / "found_N10.pth"
    assert [found[name].role for name in ("baseline", "found_N5")] == ["baseline", "found"]
