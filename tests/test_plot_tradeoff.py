"""tools/plot_tradeoff.py: cost against AP beside the paper's numbers, and accuracy against AP."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from detectors import ROOT

PAPER = ROOT.parent / "shared" / "paper" / "tables.json"
CONFIGS = ROOT / "configs"


@pytest.fixture
def tool(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "plot_tradeoff.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    return run


def search_folder(folder: Path) -> None:
    """As a search of one budget leaves it."""
    rows = [
        {"network": name, "architecture": codes, "seed": seed, "AP": ap + place, "backbone GMACs": cost}
        for name, codes, cost, ap in (
            ("baseline", "resnet_basic/2-2-2-2/00-00-00-00", 0.2, 40.0),
            ("stage", "resnet_basic/1-1-2-4/0-0-00-0000", 0.21, 41.0),
            ("found", "resnet_basic/1-1-2-4/0-0-10-1021", 0.21, 42.0),
        )
        for place, seed in ((-1, 0), (1, 1), (0, "mean"))
    ]
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"networks on the test set": rows}))


def trained_folder(folder: Path, base: Path, metrics: list[dict[str, float]]) -> None:
    """As train_net.py leaves it, cut off in its last line."""
    folder.mkdir()
    (folder / "model_final.pth").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump({"_BASE_": str(base)}))
    (folder / "metrics.json").write_text("".join(f"{json.dumps(m)}\n" for m in metrics) + '{"iterat')


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_cost_against_ap(tool: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    search_folder(tmp_path / "paper")  # is a name like any other
    (tmp_path / "t.csv").write_text("a table of somebody else's")
    done = tool("--output", "t.svg", "paper")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "t_points.csv")
    own = [row for row in rows if row["from"] == "searches here"]
    assert (tmp_path / "t.csv").read_text() == "a table of somebody else's"
    networks = ["baseline", "stages searched", "stages and rates searched"]
    assert [(row["network"], float(row["AP"])) for row in own] == [
        *((networks[0], 39.0), (networks[0], 41.0), (networks[1], 40.0), (networks[1], 42.0)),
        *((networks[2], 41.0), (networks[2], 43.0)),
    ]
    paper = [row for row in rows if row["from"] == "paper"]
    assert len(paper) == 6 + 6 + 4 and {row["network"] for row in paper} == {*networks}
    text = (tmp_path / "t.svg").read_text()
    assert text.count("<!-- GMACs of") == 2 and "searches here" in text


@pytest.mark.skipif(not PAPER.is_file(), reason="shared/paper is not there")
def test_the_papers_numbers(
    tool: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert tool("--output", "paper.png").returncode == 0
    found = {
        (row["name"], row["network"]): (float(row["AP"]), float(row["GMACs"]))
        for row in rows_of(tmp_path / "paper_points.csv")
    }
    tables = json.loads(PAPER.read_text())
    printed = tables["table1_faster_rcnn_fpn_coco_minival_1x"]
    for name, its in (
        *(("MNV2", "MobileNetV2"), ("R-18", "ResNet18")),
        *(("R-50", "ResNet50"), ("R-101", "ResNet101")),
    ):
        for network, of in (("baseline", its), ("stages and rates searched", f"CR-{its}")):
            gflops, ap = printed[of][:2]
            assert found[name, network] == (ap, pytest.approx(gflops, rel=0.01))
    stages = tables["table4_stage_only_AP"]
    for place, name in enumerate(("MNV2", "R-18", "R-50", "R-101", "X-50-32x4d", "X-101-32x4d")):
        assert found[name, "baseline"][0] == stages["baseline"][place]
        assert found[name, "stages searched"][0] == stages["stage_cr"][place]


def test_accuracy_against_ap(
    tool: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    classifier = CONFIGS / "ImageNet-Classification" / "R_50.yaml"
    detector = CONFIGS / "COCO-Detection" / "faster_rcnn_R_50_FPN_1x.yaml"
    other = CONFIGS / "COCO-Detection" / "faster_rcnn_R_18_FPN_1x.yaml"
    top1 = [{"iteration": 9, "classification/top1": 60.0}, {"iteration": 19, "classification/top1": 70}]
    trained_folder(tmp_path / "c0", classifier, top1)
    for seed, ap in enumerate((36.0, 37.0)):
        trained_folder(tmp_path / f"d{seed}", detector, [{"iteration": 9, "bbox/AP": ap}])
    trained_folder(tmp_path / "lone", other, [{"iteration": 9, "bbox/AP": 30.0}])
    done = tool("--accuracy", "--output", "a.png", "c0", "d0", "d1", "lone")
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path / "a_points.csv")  # the last value; the mean of the seeds; the pair alone
    assert (row["codes"], row["top1"], row["AP"]) == (
        *("resnet/3-4-6-3/000-0000-000000-000", "70.0", "36.5"),
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "t.jpg"], "t.jpg: a name that ends in .png, .svg, .pdf is needed"),
        (["--output", "t.png", "none"], "none/results.json: has no table"),
        (["--output", "t.png", "--accuracy"], "no folder: no architecture has both top1 and AP"),
        (["--output", "t.png", "--accuracy", "none"], "none/config.yaml: no such file"),
        (
            ["--output", "t.png", "--accuracy", "foreign"],
            "foreign: MODEL.BACKBONE.NAME: 'build_resnet_fpn",
        ),
        (["--output", "t.png", "broken"], "broken/results.json: not JSON"),
        (["--output", "t.png", "--accuracy", "lone"], "no architecture has both top1 and AP"),
        (["--output", "t.png", "--accuracy", "untested"], "classification/top1 or bbox/AP in untested"),
    ],
)
def test_what_it_refuses(
    tool: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    base = CONFIGS / "COCO-Detection" / "faster_rcnn_R_18_FPN_1x.yaml"
    trained_folder(tmp_path / "lone", base, [{"bbox/AP": 30.0}])
    trained_folder(tmp_path / "untested", base, [{"total_loss": 1.0}])
    trained_folder(tmp_path / "foreign", base, [{"bbox/AP": 30.0}])
    backbone = {"BACKBONE": {"NAME": "build_resnet_fpn_backbone"}}
    (tmp_path / "foreign" / "config.yaml").write_text(yaml.safe_dump({"VERSION": 2, "MODEL": backbone}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    done = tool(*arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and message in line
    assert not list(tmp_path.glob("t.*"))
