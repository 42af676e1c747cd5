"""Scores by way of matches on disk: against COCOeval, in a race, damaged, deleted and resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_data import reference_score
from detectors import HEADS, tiny_config
from fake_scorer import costs, lines, timeless
from torch import nn
from trained import scores_of, trained

from crnas_d2.budget import Budget, Limit
from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.errors import InputError
from crnas_d2.evaluation.batches import FixedBatches
from crnas_d2.evaluation.matches import Matches
from crnas_d2.evaluation.matching import Detections
from crnas_d2.evaluation.path_detector import PathDetector
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.pipeline.scorer import Split, build_scorer, ground_truth
from crnas_d2.pipeline.search_hook import check_told_apart, run_searches
from crnas_d2.search.journal import Journal
from crnas_d2.search.race import PORTIONS, Race
from crnas_d2.space import StageSpace
from detectron2.config import CfgNode
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances


def searched(
    cfg: CfgNode,
    split: Split,
    detector: nn.Module,
    build: Callable[[nn.Module], ArchvalScorer] | None = None,
) -> list[Any]:
    """The candidates of a whole search of 16 stage codes, or of a greedy one, journalled."""
    space, cfg.SEARCH.DILATION.TOP_K = find_supernet(detector).space, 1
    scorer = build(detector) if build else build_scorer(cfg, split, detector)
    results = run_searches(cfg, scorer, space, [Budget((Limit("blocks", 6, 0.5),))], costs)
    return next(iter(results.values()))


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_every_score_is_cocoevals_of_the_same_detections(
    kind: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole search: its matches are on disk, and pycocotools scores what was detected alike."""
    options = ["SEARCH.EVAL.TASK", task, *(HEADS["MaskRCNN"] if task == "segm" else [])]
    cfg, split, detector = trained(tmp_path, kind, *options)
    detect, results = PathDetector.detect, {}
    ids = sorted(category["id"] for category in split.archval_content["categories"])

    def noting(self: PathDetector, group: Any, *args: Any) -> Any:
        _, _, inputs, masks = args
        assert masks == (task == "segm")
        for member, outputs in detect(self, group, *args):
            for image, instances in zip(inputs, outputs):
                for result in instances_to_coco_json(instances, image["image_id"]):
                    result["category_id"] = ids[result["category_id"]]
                    if task == "segm":
                        del result["bbox"]  # else pycocotools takes the box's area for the mask's
                    results.setdefault(str(group[member]), []).append(result)
            yield member, outputs

    monkeypatch.setattr(PathDetector, "detect", noting)
    searched(cfg, split, detector)
    journal = lines(Path(cfg.OUTPUT_DIR) / "journal.jsonl")
    assert len(journal) >= 13 and max(line["score"] for line in journal) > 0
    for line in journal:
        name = line["architecture"]
        found = results.get(name, [])
        expected = max(0.0, reference_score(split.archval_content, found, task, "AP"))
        assert line["score"] == pytest.approx(expected, abs=1e-9)
        path = Path(cfg.OUTPUT_DIR) / "matches" / "0" / f"{name.replace('/', '_')}.npz"
        matches = Matches.from_bytes(path.read_bytes())
        assert matches.scores(np.ones((1, 4))).tolist() == [line["score"]]


@pytest.mark.parametrize("confidence", [0.0, 0.51])
@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_matches_may_be_deleted_after_a_search(kind: str, confidence: float, tmp_path: Path) -> None:
    """As the documents say: the journal has the scores; a race sees the images again."""
    options = ["SEARCH.RACE.CONFIDENCE", confidence, "SEARCH.EVAL.BATCH_SIZE", 1]
    cfg, split, detector = trained(tmp_path, kind, *options)
    expected = searched(cfg, split, detector)
    out = Path(cfg.OUTPUT_DIR)
    before = [path.read_bytes() for path in sorted(out.glob("*.jsonl"))]
    shutil.rmtree(out / "matches")
    assert searched(cfg, split, detector) == expected
    assert (out / "matches").exists() == (confidence > 0)
    assert [path.read_bytes() for path in sorted(out.glob("*.jsonl"))] == before
    assert (out / "race.jsonl").exists() == (confidence > 0)


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_what_has_matches_is_not_detected_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matches without a line in the journal, as a kill between the two leaves them."""
    cfg, split, detector = trained(tmp_path, kind)
    expected = searched(cfg, split, detector)
    journal = Path(cfg.OUTPUT_DIR) / "journal.jsonl"
    before = timeless(journal)
    journal.unlink()

    def nothing(*_: Any) -> Any:
        raise AssertionError("detected again")

    monkeypatch.setattr(PathDetector, "detect", nothing)
    assert searched(cfg, split, detector) == expected
    assert timeless(journal) == before


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_who_sees_all_of_archval_in_a_race_has_the_score_of_the_whole_search(
    kind: str, tmp_path: Path
) -> None:
    """Partial codes, too; from what is on disk after the first time, and nothing else."""
    cfg, split, detector = trained(tmp_path, kind, "SEARCH.EVAL.BATCH_SIZE", 1)
    space = find_supernet(detector).space
    if isinstance(space, StageSpace):
        codes = list(space.codes())[:6]
    else:
        codes = [
            longer for partial in space.extensions(space.root) for longer in space.extensions(partial)
        ]
    whole = scores_of(build_scorer(cfg, split, detector), codes)
    assert max(whole) > 0
    cfg.OUTPUT_DIR = str(tmp_path / "race")
    cfg.SEARCH.RACE.CONFIDENCE = 0.51

    def raced(name: str, keep: int) -> list[Any]:
        compare = Race(
            *(kind, name, build_scorer(cfg, split, detector), costs),
            journal=Journal(tmp_path / f"{name}.jsonl"),
            dropped=Journal(tmp_path / f"{name}-race.jsonl"),
            confidence=0.51,
            group_size=4,
        )
        return compare(codes, keep)

    all_of_them = raced("all", len(codes))
    assert {c.architecture: c.score for c in all_of_them} == dict(zip(codes, whole))
    files = sorted((tmp_path / "race" / "matches").rglob("*.npz"))
    assert len(files) == 4 * len(codes)  # portions of one image each
    before = [file.stat().st_mtime_ns for file in files]
    few = raced("few", 1)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert 1 <= len(few) < len(codes) and all(candidate in all_of_them for candidate in few)

    content = files[0].read_bytes()
    files[0].write_bytes(content[:-9])
    with pytest.raises(InputError, match=rf"{files[0].name}: not the matches .*; delete it"):
        raced("again", len(codes))
    files[0].write_bytes(files[-1].read_bytes())
    with pytest.raises(InputError, match=rf"{files[0].name}: matches on other images.*; delete it"):
        raced("strange", len(codes))
    files[0].unlink()
    assert raced("fixed", len(codes)) == all_of_them
    assert files[0].read_bytes() == content
    cfg.SEARCH.EVAL.METRIC = "AP50"
    with pytest.raises(InputError, match=rf"{files[0].name}: matches for bbox AP; delete it"):
        raced("other", len(codes))


def test_a_portion_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches are matched at once."""
    cfg, split, detector = trained(tmp_path, "stage", "SEARCH.EVAL.BATCH_SIZE", 1)
    codes = list(find_supernet(detector).space.codes())[:3]
    files = Path(cfg.OUTPUT_DIR) / "matches" / "0"
    contents = []
    for count in (64, 2, 1):
        monkeypatch.setattr("crnas_d2.evaluation.scorer.BATCHES_AT_ONCE", count)
        scores_of(build_scorer(cfg, split, detector), codes)
        contents.append([path.read_bytes() for path in sorted(files.iterdir())])
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize(("in_config", "counted"), [(30, 100), (300, 300)])
def test_as_many_detections_count_as_the_detector_gives(
    tmp_path: Path, in_config: int, counted: int
) -> None:
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", "TEST.DETECTIONS_PER_IMAGE", in_config)
    content = read_coco_json(cfg.DATASETS.TEST_JSON, "")
    assert ground_truth(cfg, content).max_detections == counted


@pytest.mark.parametrize(
    ("count", "ends"),
    [(1, [1]), (2, [1, 2]), (8, [1, 2, 3, 4, 5, 6, 7, 8]), (100, [17, 24, 35, 50, 60, 70, 83, 100])],
)
def test_portions_are_of_batches_in_random_order(count: int, ends: list[int], tmp_path: Path) -> None:
    dicts = [{"image_id": i, "height": 9, "width": 9} for i in range(2 * count)]
    batches = FixedBatches(dicts, lambda record: {**record, "image": torch.zeros(1)}, batch_size=2)
    nothing: Any = None
    scorer = ArchvalScorer(nothing, batches, nothing, tmp_path, PORTIONS)
    assert scorer.images == [2 * end for end in ends]
    assert [number for portion in scorer._batches for number in portion] == batches.order
    assert ArchvalScorer(nothing, batches, nothing, tmp_path).images == [2 * count]


def test_segmentation_goes_by_the_masks_area() -> None:
    """Boxes are not looked at, and masks survive as they are."""
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 30:32, 8:60], masks[1, 4:6, 4:60] = True, True
    instances = Instances((64, 64))
    instances.pred_boxes = Boxes(torch.tensor([[8.0, 30.0, 60.0, 62.0], [4.0, 4.0, 60.0, 60.0]]))
    instances.pred_classes = torch.tensor([0, 1])
    instances.scores = torch.tensor([0.9, 0.8])
    instances.pred_masks = masks
    expected = instances_to_coco_json(instances, 1)
    found = Detections.of([instances, instances[:0]], [5, 6], "segm")
    assert [rle["counts"].decode() for rle in found.shapes] == [
        result["segmentation"]["counts"] for result in expected
    ]
    assert found.row.tolist() == [5, 5] and found.column.tolist() == [0, 1]
    boxes = Detections.of([instances[:0], instances], [5, 6], "bbox")
    assert boxes.shapes.tolist() == [result["bbox"] for result in expected]
    assert boxes.row.tolist() == [6, 6] and boxes.score.dtype == "float32"


# ---- scores that mean nothing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([0.0, 0.0], r"every candidate scored 0 \(2 of them\): the supernet detects nothing"),
        ([0.0], r"stage search: every candidate scored 0 \(1 of them\)"),
        ([7.5, 7.5, 7.5], r"stage search: all 3 candidates scored 7\.5: archval does not tell"),
        ([7.5], None),
        ([0.0, 7.5], None),
        ([], None),
    ],
    ids=str,
)
def test_a_search_whose_scores_mean_nothing_stops(
    tmp_path: Path, found: list[float], message: str | None
) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.add("dilation", "another phase's", 1.0)
    for number, score in enumerate(found):
        journal.add("stage", str(number), score)
    with pytest.raises(FloatingPointError, match=message) if message else nullcontext():
        check_told_apart(journal.records, "stage")


def test_a_supernet_that_detects_nothing_ends_the_search(tmp_path: Path) -> None:
    """Every budget's candidates are in the journal by then."""
    options = ["SOLVER.MAX_ITER", 1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99]
    cfg, split, detector = trained(tmp_path, "stage", *options)
    with pytest.raises(FloatingPointError, match="every candidate scored 0"):
        searched(cfg, split, detector)
    assert len(lines(Path(cfg.OUTPUT_DIR) / "journal.jsonl")) == 16
