"""Twenty pictures with labels of YOLO or Pascal VOC: docs/OWN_DATA.md's six commands to found.yaml."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from converting import RESNET18, reference_of
from detectors import ROOT, command_line, run_script

from crnas_d2.config import read_config

PICTURES = {"yolo": "images/A", "voc": "JPEGImages"}  # A stands for a split
SPLITS = {"train": 14, "test": 6}
# Small pictures, narrow heads and a short schedule, after which boxes of BCCD's size are met at times.
SHORT = [
    *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
    *("INPUT.MIN_SIZE_TRAIN", [96], "INPUT.MIN_SIZE_TEST", 96),
    *("SOLVER.MAX_ITER", 12, "SOLVER.STEPS", [], "SOLVER.WARMUP_ITERS", 0),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 50, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.001),
    *("MODEL.CRNAS.STAGE_SPACE", [[1, 2], [2, 3], [2], [2]], "SEARCH.DILATION.TOP_K", 1),
    *("SEARCH.FINALISTS.NUM", 1, "SEARCH.FINALISTS.SEEDS", 1, "SEARCH.RETRAIN.SEEDS", 1),
]


def write_labels(form: str, shared: Path, mine: Path) -> dict[str, tuple[int, int]]:
    """Twenty pictures of bccd in a person's folder; the numbers of images and boxes by split."""
    content = json.loads((shared / "bccd" / "train.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    places = list(names)
    images = iter(content["images"])
    counts = {}
    for split, number in SPLITS.items():
        pictures = mine / PICTURES[form].replace("A", split)
        pictures.mkdir(parents=True, exist_ok=True)
        total = 0
        for image in (next(images) for _ in range(number)):
            shutil.copy(shared / "bccd" / "images" / image["file_name"], pictures)
            boxes = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            stem, width, height = Path(image["file_name"]).stem, image["width"], image["height"]
            total += len(boxes)
            if form == "yolo":
                lines = [
                    f"{places.index(a['category_id'])} {(x + w / 2) / width} {(y + h / 2) / height}"
                    f" {w / width} {h / height}\n"
                    for a in boxes
                    for x, y, w, h in [a["bbox"]]
                ]
                path, text = mine / "labels" / split / f"{stem}.txt", "".join(lines)
            else:
                objects = "".join(
                    f"<object><name>{names[a['category_id']]}</name><bndbox><xmin>{x + 1}</xmin>"
                    f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                    for a in boxes
                    for x, y, w, h in [a["bbox"]]
                )
                size = f"<size><width>{width}</width><height>{height}</height></size>"
                path = mine / "Annotations" / f"{stem}.xml"
                text = f"<annotation>{size}{objects}</annotation>"
                listed = mine / "ImageSets" / "Main" / f"{split}.txt"
                listed.parent.mkdir(parents=True, exist_ok=True)
                with listed.open("a") as file:
                    file.write(f"{stem}\n")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        counts[split] = (number, total)
    (mine / "data.yaml").write_text(json.dumps({"names": [names[i] for i in places]}))
    return counts


def checked(out: Path) -> None:
    """What a search on them leaves."""
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert {row["network"] for row in rows} >= {"baseline"}
    assert read_config(str(out / "found.yaml")).MODEL.ROI_HEADS.NUM_CLASSES == 3


@pytest.mark.slow
def test_the_commands_of_own_data(tmp_path: Path, shared_data: Path) -> None:
    """Of docs/OWN_DATA.md, as they stand there, with labels of YOLO; r18 for r50, and small."""
    counts = write_labels("yolo", shared_data, tmp_path / "mine")
    torch.save(reference_of(RESNET18).state_dict(), tmp_path / "resnet18.pth")
    (tmp_path / "new").mkdir()
    shutil.copy(next((tmp_path / "mine" / "images" / "test").iterdir()), tmp_path / "new")
    text = (ROOT / "docs" / "OWN_DATA.md").read_text().replace("\\\n", " ")
    (mine,) = re.findall(r'^ {4}MINE="(.*)"$', text, re.MULTILINE)
    mine = re.sub(r"https://\S+", "resnet18.pth", mine)
    lines = re.findall(r"^ {4}python (.*)$", text, re.MULTILINE)
    said = []
    for line in (line for line in lines if "convert_weights" not in line):  # test_convert_weights.py
        line = line.replace("$MINE", mine).replace("configs/OwnData/r50", f"{ROOT}/configs/OwnData/r18")
        script, *words = shlex.split(line)
        words += command_line(SHORT) if script == "search_net.py" else []
        words += command_line(["SOLVER.MAX_ITER", 1]) if "output/mine/again" in words else []
        said.append(run_script(str(ROOT / script), *words, folder=tmp_path))
    assert len(said) == 7
    for (images, boxes), shown in zip(counts.values(), said):
        assert f"{images} images" in shown and f"{boxes} boxes" in shown
    assert "14 images" in said[2] and "Evaluation results for bbox" in said[4]
    checked(tmp_path / "output" / "mine")
    assert (tmp_path / "output" / "mine" / "again" / "model_final.pth").is_file()
    assert len(list((tmp_path / "drawn").iterdir())) == 1


@pytest.mark.slow
def test_from_voc_to_found(tmp_path: Path, shared_data: Path) -> None:
    counts = write_labels("voc", shared_data, tmp_path / "mine")
    torch.save(reference_of(RESNET18).state_dict(), tmp_path / "resnet18.pth")

    def start(script: str, *options: Any) -> str:
        return run_script(str(ROOT / script), *options, folder=tmp_path)

    keys = []
    for split, ours in (("train", "TRAIN"), ("test", "TEST")):
        line = ["voc", "mine", "--split", split, "--output", f"mine/{split}.json"]
        shown = start("tools/prepare_data.py", *line)
        images, boxes = counts[split]
        assert f"{images} images" in shown and f"{boxes} boxes" in shown
        keys += [f"DATASETS.{ours}_JSON", f"mine/{split}.json"]
        keys += [f"DATASETS.{ours}_IMAGES", f"mine/{PICTURES['voc']}"]
    config = ["--config-file", str(ROOT / "configs" / "OwnData" / "r18.yaml")]
    mine = [*keys, *SHORT, "MODEL.CRNAS.WEIGHTS", "resnet18.pth"]
    start("search_net.py", *config, "OUTPUT_DIR", "out", *mine)
    checked(tmp_path / "out")
