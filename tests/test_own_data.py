"""Your own pictures and COCO JSON, with no code: four config values, both scripts.

The pictures of the test lie apart from those of the training, so that they can be taken away.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectors import ROOT, TINY, run_script

from crnas_d2.config import read_config
from crnas_d2.data.shapes import make_shapes
from detectron2.config import CfgNode

# Ids as people have them: with gaps, and not in the order of the names.
CLASSES = {7: "square", 4: "disc"}
KEYS = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
FILES = ("mine/train.json", "mine/train", "mine/test.json", "mine/test")


def write_own_data(folder: Path) -> None:
    """Two of the three shapes, under ``FILES``."""
    make_shapes(folder / "shapes", 12, 4, seed=2, size=(96, 96))
    for split, ours in (("train", "train"), ("val", "test")):
        content = json.loads((folder / "shapes" / f"{split}.json").read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        ids = {name: number for number, name in CLASSES.items()}
        content["categories"] = [{"id": i, "name": name} for i, name in CLASSES.items()]
        content["annotations"] = [
            {**a, "category_id": ids[names[a["category_id"]]]}
            for a in content["annotations"]
            if names[a["category_id"]] in ids
        ]
        images = folder / "mine" / ours
        images.mkdir(parents=True)
        for image in content["images"]:
            shutil.copy(folder / "shapes" / "images" / image["file_name"], images)
        (folder / "mine" / f"{ours}.json").write_text(json.dumps(content))
    shutil.rmtree(folder / "shapes")


def start(script: str, folder: Path, config: str, *options: Any) -> str:
    """Run a script in a folder; its output."""
    return run_script(str(ROOT / script), "--config-file", config, *options, folder=folder)


def own_keys() -> list[str]:
    return [part for key, file in zip(KEYS, FILES) for part in (f"DATASETS.{key}", file)]


def written_config(folder: Path) -> CfgNode:
    return read_config(str(folder / "config.yaml"), [])


def test_a_training(tmp_path: Path) -> None:
    write_own_data(tmp_path)
    config = str(ROOT / "configs" / "BCCD" / "faster_rcnn_R_50.yaml")
    own = [*own_keys(), "OUTPUT_DIR", "out", "SOLVER.MAX_ITER", 2]
    shown = start("train_net.py", tmp_path, config, *TINY, *own)
    cfg = written_config(tmp_path / "out")
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 2
    assert (tmp_path / "out" / "model_final.pth").is_file()
    assert "Evaluation results for bbox" in shown
    # detectron2's table of categories, and its AP of each: names from the JSON, in the order of ids.
    assert shown.index("disc") < shown.index("square")
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").open()]
    assert {"bbox/AP", "bbox/AP-disc", "bbox/AP-square"} <= set(metrics[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with found.yaml in out/, of a search without the test set's files."""
    folder = tmp_path_factory.mktemp("chain")
    write_own_data(folder)
    for gone in ("test", "test.json"):
        (folder / "mine" / gone).rename(folder / f"hidden_{gone}")
    base = read_config("", [*TINY, "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0])
    (folder / "base.yaml").write_text(base.dump())
    (folder / "search.yaml").write_text(
        yaml.safe_dump(
            {
                "_BASE_": "base.yaml",
                "SEARCH": {"BUDGETS": [5], "ARCHVAL": {"SIZE": 3}, "FOUND_BASE": ["base.yaml"]},
                "MODEL": {"CRNAS": {"STAGE_SPACE": [[1, 2], [1], [1], [1, 2]]}},
            }
        )
    )
    shown = start("search_net.py", folder, "search.yaml", *own_keys(), "OUTPUT_DIR", "out")
    assert (
        shown.splitlines()[-1]
        == "written: out/found.yaml, out/found.pth, out/results.json, out/report.html"
    )
    return folder


def scored(folder: Path) -> list[str]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["architecture"] for line in lines]


def test_a_search_without_the_test_set(found: Path) -> None:
    out = found / "out"
    assert sorted(scored(out / "stage")) == ["resnet/1-1-1-2/0-0-0-00", "resnet/2-1-1-1/00-0-0-0"]
    assert len(scored(out / "dilation")) == 3 + 9 * 4
    content = yaml.safe_load((out / "found.yaml").read_text())
    assert content["_BASE_"] == str(found / "base.yaml")
    stages = [int(n) for n in scored(out / "dilation")[0].split("/")[1].split("-")]
    assert content["MODEL"]["CRNAS"]["STAGE_CODE"] == stages
    assert len(content["MODEL"]["CRNAS"]["DILATION_CODE"]) == 5
    assert content["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 2
    # Whole paths: found.yaml is of use from any folder.
    assert content["DATASETS"] == {key: str(found / file) for key, file in zip(KEYS, FILES)}
    (start,) = map(json.loads, (out / "starts.jsonl").read_text().splitlines())
    assert f"{ROOT}/search_net.py --config-file search.yaml DATASETS.TRAIN_JSON" in start["command"]
    assert start["bases"] == {"N5": str(found / "base.yaml")} and start["folder"] == str(found)
    parts = [json.loads((out / "splits" / f"arch{p}.json").read_text()) for p in ("train", "val")]
    assert [len(part["images"]) for part in parts] == [9, 3]


@pytest.mark.slow
def test_what_was_found_is_trained_as_it_is(found: Path, tmp_path: Path) -> None:
    for back in ("test", "test.json"):
        (found / f"hidden_{back}").rename(found / "mine" / back)
    config = str(found / "out" / "found.yaml")
    shown = start("train_net.py", tmp_path, config, "OUTPUT_DIR", "out")
    assert "Evaluation results for bbox" in shown
    cfg = written_config(tmp_path / "out")
    content = yaml.safe_load((found / "out" / "found.yaml").read_text())
    assert cfg.MODEL.CRNAS.DILATION_CODE == content["MODEL"]["CRNAS"]["DILATION_CODE"]
    weights = str(tmp_path / "out" / "model_final.pth")
    options = ["--eval-only", "OUTPUT_DIR", "again", "MODEL.WEIGHTS", weights]
    again = start("train_net.py", tmp_path, config, *options)
    first, second = (re.findall(r"copypaste: (0\..+)", text) for text in (shown, again))
    assert len(first) == 1 and first == second
