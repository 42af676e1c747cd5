"""Scores against the plain way: exact statistics by a loop, then detectron2's own evaluation."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
import statistics
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import FAMILIES, HEADS, tiny_config
from networks import randomise
from torch import nn
from torch.testing import assert_close

from crnas_d2.analysis.costs import backbone_costs, input_size
from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.errors import InputError
from crnas_d2.evaluation.archval import ArchvalScorer
from crnas_d2.evaluation.batches import FixedBatches
from crnas_d2.evaluation.coco import METRICS, TASKS, CocoMetric
from crnas_d2.evaluation.recalibration import recalibrated
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.pipeline.scorer import Split, build_scorer, recalibration_images
from crnas_d2.space import StageSpace
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.layers import CNNBlockBase, ROIAlign
from detectron2.structures import Boxes, Instances


def trained(tmp_path: Path, kind: str, *overrides: Any) -> tuple[CfgNode, Split, nn.Module]:
    """A supernet trained so far that its detections score above 0; archval is the test set."""
    options = ["MODEL.CRNAS.SUPERNET", kind, "SOLVER.MAX_ITER", 60, "SOLVER.IMS_PER_BATCH", 4]
    options += ["SOLVER.BASE_LR", 0.02, "SOLVER.CHECKPOINT_PERIOD", 1000]
    cfg = tiny_config(tmp_path / "data", tmp_path / kind, *options, *overrides)
    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    content = read_coco_json(cfg.DATASETS.TEST_JSON, "DATASETS.TEST_JSON")
    trainer = SupernetTrainer(cfg)
    trainer.train()
    return cfg, Split(train, test, content), trainer.model


def norms_of(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_recalibration_is_the_plain_loops(kind: str, tmp_path: Path) -> None:
    """Against population statistics collected by hooks in float64; state is back afterwards."""
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", "MODEL.CRNAS.SUPERNET", kind)
    detector = SupernetTrainer(cfg).model.eval()
    randomise(detector.backbone.bottom_up, seed=6)
    supernet = find_supernet(detector)
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    batches = FixedBatches(dicts, DatasetMapper(cfg, is_train=False), batch_size=5)
    path = supernet.space.sample(0, 0)

    inputs: dict[str, list[torch.Tensor]] = {}
    norms = norms_of(detector.backbone)
    handles = [
        norm.register_forward_pre_hook(
            lambda _, x, name=name: inputs.setdefault(name, []).append(x[0].double())
        )
        for name, norm in norms.items()
    ]
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    with torch.no_grad(), supernet.using_path(path):
        for norm in norms.values():
            norm.train()
        for _, batch in batches.mine():
            detector.backbone(detector.preprocess_image(batch).tensor)
    for handle in handles:
        handle.remove()
    detector.eval()
    detector.load_state_dict(before)

    with recalibrated(detector, supernet, batches, lambda _: path):
        assert 0 < len(inputs) < len(norms)  # on the path, and not all
        for name, norm in norms.items():
            if name in inputs:
                x = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs[name]], dim=1)
                assert_close(norm.running_mean.double(), x.mean(1), rtol=1e-5, atol=1e-5)
                assert_close(norm.running_var.double(), x.var(1), rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(norm.running_mean, before[f"backbone.{name}.running_mean"])
    after = detector.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any("forward" in vars(norm) for norm in norms.values())


def plain_score(cfg: CfgNode, split: Split, detector: nn.Module) -> float:
    """detectron2's own loop: one image at a time, COCOEvaluator."""
    with contextlib.redirect_stdout(io.StringIO()):
        results = inference_on_dataset(
            detector,
            build_detection_test_loader(cfg, split.archval),
            COCOEvaluator(split.archval, distributed=False, output_dir=cfg.OUTPUT_DIR),
        )
    return results["bbox"]["AP"]


def test_a_score_is_the_plain_loops(tmp_path: Path) -> None:
    """Without recalibration, whole codes: set the path, then detectron2's own evaluation."""
    cfg, split, detector = trained(tmp_path, "stage", "SEARCH.EVAL.RECALIBRATION_IMAGES", 0)
    score = build_scorer(cfg, split, detector).scores
    supernet = find_supernet(detector)
    paths = [supernet.space.sample(0, i) for i in range(3)]
    scores = score(paths)
    for path, found in zip(paths, scores):
        with supernet.using_path(path):
            assert found == pytest.approx(plain_score(cfg, split, detector), abs=1e-3)
    assert max(scores) > 0.05
    assert score(paths) == scores


NORMED_NECK = ["MODEL.FPN.NORM", "BN"]


@pytest.mark.parametrize("neck", [[], NORMED_NECK], ids=["plain neck", "normed neck"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("stage", []),
        ("stage", ["MODEL.CRNAS.NESTED_DEPTHS", True]),
        ("dilation", []),
        ("stage", FAMILIES["mobilenetv2"]),
        ("dilation", FAMILIES["mobilenetv2"]),
    ],
    ids=["stage", "nested", "dilation", "stage mobilenet", "dilation mobilenet"],
)
def test_a_group_scores_what_each_candidate_would_alone(
    tmp_path: Path, kind: str, options: list[Any], neck: list[Any]
) -> None:
    """To the bit, whole codes and partial ones; and what was shared was not computed again."""
    few = ["SOLVER.MAX_ITER", 8, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    cfg, split, detector = trained(tmp_path, kind, *options, *neck, *few)
    space = find_supernet(detector).space
    if isinstance(space, StageSpace):
        groups = [list(space.codes())]
    else:
        first = space.extensions(space.root)
        second = [longer for partial in first for longer in space.extensions(partial)]
        groups = [first, second, [space.sample(0, i) for i in range(6)]]
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    together, alone = (build_scorer(cfg, split, detector) for _ in range(2))
    for group in groups:
        found = together.scores(group)
        assert found == [alone.scores([architecture])[0] for architecture in group]
        assert len(set(found)) > 1
    after = detector.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert alone.macs.shared == alone.macs.alone == together.macs.alone
    assert 0 < together.macs.shared < 0.9 * together.macs.alone


def test_multiply_accumulates_are_those_of_the_architectures(tmp_path: Path) -> None:
    cfg, split, detector = trained(tmp_path, "stage")
    scorer = build_scorer(cfg, split, detector)
    codes = list(find_supernet(detector).space.codes())[:3]
    scorer.scores(codes)
    images = len(split.archval_content["images"]) + cfg.SEARCH.EVAL.RECALIBRATION_IMAGES
    costs = backbone_costs(cfg)
    height, width = input_size(cfg)
    pixels = 96 * 96 / (height * width)  # the pictures are square
    expected = sum(costs(code)["macs"] for code in codes) * images * pixels
    assert scorer.macs.alone == pytest.approx(expected, rel=1e-9)


def certainty_scorer(cfg: CfgNode, split: Split, detector: nn.Module) -> ArchvalScorer:
    """By the mean certainty of the detections: few iterations make no AP to speak of."""
    scorer = build_scorer(cfg, split, detector)
    scorer._metric = lambda found: 100 * statistics.mean(d["score"] for d in found)
    scorer._metric.task = "bbox"
    return scorer


BF16, CHANNELS_LAST, COMPILE = (
    ["SEARCH.EVAL.AMP", "bf16"],
    ["SEARCH.EVAL.CHANNELS_LAST", True],
    ["SEARCH.COMPILE", True],
)
NO_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        *[(kind, BF16, 0.1) for kind in ("stage", "dilation")],
        *[(kind, CHANNELS_LAST, 1e-3) for kind in ("stage", "dilation")],
        pytest.param("dilation", COMPILE, 1e-5, marks=NO_COMPILER),
    ],
    ids=str,
)
def test_faster_arithmetic_scores_about_the_same(
    tmp_path: Path, kind: str, options: list[Any], tolerance: float
) -> None:
    cfg, split, detector = trained(tmp_path, kind, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    paths = [find_supernet(detector).space.sample(0, i) for i in range(3)]
    exact = certainty_scorer(cfg, split, detector).scores(paths)
    cfg.merge_from_list(options)
    found = certainty_scorer(cfg, split, detector).scores(paths)
    assert found == pytest.approx(exact, rel=tolerance)
    assert found != exact or options is COMPILE


def test_mixed_precision_leaves_coordinates_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes go into RoIAlign, and masks into their boxes, in float32; convolutions are in bf16."""
    options = [*HEADS["MaskRCNN"], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "SEARCH.EVAL.TASK", "segm"]
    cfg, split, detector = trained(tmp_path, "stage", *options, "SEARCH.EVAL.AMP", "bf16")
    seen: dict[str, set[torch.dtype]] = {"roi": set(), "conv": set(), "mask": set()}

    for module in detector.modules():
        if isinstance(module, ROIAlign):
            module.register_forward_pre_hook(lambda _, inputs: seen["roi"].add(inputs[0].dtype))
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: seen["conv"].add(output.dtype))
    pasted = nn.functional.grid_sample

    def paste(masks: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen["mask"].add(masks.dtype)
        return pasted(masks, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "grid_sample", paste)
    scorer = certainty_scorer(cfg, split, detector)
    scorer._metric.task = "segm"
    scorer.scores([find_supernet(detector).space.sample(0, 0)])
    assert seen == {"roi": {torch.float32}, "conv": {torch.bfloat16}, "mask": {torch.float32}}
    assert not detector.backbone._forward_hooks and not detector.roi_heads._forward_hooks


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_equal_blocks_share_a_compilation(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths, digits, statistics and sizes change, and each is seen; traced, run by torch itself."""
    traced = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        traced.append(graph)
        return graph.forward

    options = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "SEARCH.EVAL.BATCH_SIZE", 4]
    options += ["SEARCH.EVAL.RECALIBRATION_IMAGES", 3]  # which is no size of a batch of archval
    cfg, split, detector = trained(tmp_path, kind, "MODEL.CRNAS.STAGE_CODE", [1, 3, 3, 1], *options)
    supernet = find_supernet(detector)
    paths = [supernet.space.sample(0, i) for i in range(12)]
    as_written = certainty_scorer(cfg, split, detector)
    exact = as_written.scores(paths)
    compiled = functools.partialmethod(nn.Module.compile, backend=backend)
    monkeypatch.setattr(CNNBlockBase, "compile", compiled, raising=False)
    torch.compiler.reset()
    cfg.SEARCH.COMPILE = True
    scorer = certainty_scorer(cfg, split, detector)

    def sizes(*shapes: tuple[int, int, int]) -> int:
        """How often anything was compiled, after images of these numbers, heights and widths, too."""
        for number, height, width in shapes:
            for path in paths:
                with torch.no_grad(), supernet.using_path(path):
                    supernet(torch.rand(number, 3, height, width))
        return len(traced)

    # The stem, and in each stage the first block and the others; with every rate.
    kinds = 1 + 2 * 4 if kind == "stage" else 1 + (2 * 4 - 2) * 3
    first = sizes((2, 160, 224))  # of which no two are equal, on any level
    assert 0 < first <= kinds < sum(isinstance(m, CNNBlockBase) for m in supernet.modules()) * (
        1 if kind == "stage" else 3
    )
    assert sizes((5, 224, 96), (3, 96, 64)) == first
    assert scorer.scores(paths) == exact
    assert scorer.macs.shared == as_written.macs.shared
    assert scorer.scores(paths[::-1]) == exact[::-1]
    assert len(traced) == first


def test_the_metric_runs_beside_the_next_group(tmp_path: Path) -> None:
    """The first group's waits until the second one detects; scores come in order all the same."""
    cfg, split, detector = trained(tmp_path, "stage")
    scorer = build_scorer(cfg, split, detector)
    codes = list(find_supernet(detector).space.codes())[:3]
    expected = [scorer.scores([code]) for code in codes]
    metric, detect, second = scorer._metric, scorer._detect, threading.Event()
    found, begun = [], []

    def waiting(detections: Any) -> float:
        assert second.wait(60)
        return metric(detections)

    def noted(group: Any, *args: Any) -> Any:
        begun.append(group)
        if len(begun) == 2:
            second.set()
        return detect(group, *args)

    waiting.task = metric.task  # type: ignore[attr-defined]
    scorer._metric, scorer._detect = waiting, noted
    scorer([[code] for code in codes], lambda group, scores: found.append((group, scores)))
    assert found == [([code], score) for code, score in zip(codes, expected)]


def test_a_metric_that_fails_ends_the_search(tmp_path: Path) -> None:
    cfg, split, detector = trained(tmp_path, "stage", "SOLVER.MAX_ITER", 1)
    scorer = build_scorer(cfg, split, detector)
    scorer._metric = lambda _: float("nan")
    scorer._metric.task = "bbox"
    done: list[Any] = []
    codes = list(find_supernet(detector).space.codes())[:3]
    with pytest.raises(FloatingPointError, match=f"{codes[0]}: score nan is not finite"):
        scorer([[code] for code in codes], lambda *args: done.append(args))
    assert done == []


def test_an_error_does_not_wait_for_the_metric(tmp_path: Path) -> None:
    """What was measured until then is told; the rest of the group is not measured."""
    cfg, split, detector = trained(tmp_path, "stage", "SOLVER.MAX_ITER", 1)
    scorer = build_scorer(cfg, split, detector)
    codes = list(find_supernet(detector).space.codes())[:4]
    begun, metric, detect = threading.Event(), scorer._metric, scorer._detect

    def slow(detections: Any) -> float:
        begun.set()
        assert scorer._stopping.wait(60)
        return metric(detections)

    def failing(group: Any, *args: Any) -> Any:
        if group == codes[3:]:
            assert begun.wait(60)
            raise OSError("gone")
        return detect(group, *args)

    slow.task = metric.task  # type: ignore[attr-defined]
    scorer._metric, scorer._detect, done = slow, failing, []
    with pytest.raises(OSError, match="gone"):
        scorer([codes[:3], codes[3:]], lambda group, scores: done.append((group, len(scores))))
    assert done == [(codes[:1], 1)]


def test_recalibration_changes_the_score_and_nothing_else(tmp_path: Path) -> None:
    cfg, split, detector = trained(tmp_path, "stage")
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    path = find_supernet(detector).space.sample(0, 0)
    with_it = build_scorer(cfg, split, detector).scores([path])
    cfg.SEARCH.EVAL.RECALIBRATION_IMAGES = 0
    assert build_scorer(cfg, split, detector).scores([path]) != with_it
    assert all(torch.equal(before[key], value) for key, value in detector.state_dict().items())


def test_partial_codes_meet_the_same_draws(tmp_path: Path) -> None:
    """The same partial code scores the same; a later step of the search draws anew."""
    cfg, split, detector = trained(tmp_path, "dilation")
    score = build_scorer(cfg, split, detector).scores
    space = find_supernet(detector).space
    first = score([space.root])
    assert score([space.root]) == first
    drawn = []

    def noting(name: str) -> Any:
        original = getattr(type(space), name)

        def complete(self: Any, partial: Any, seed: int, batch: int) -> Any:
            drawn.append((name, len(partial.dilation_code), batch))
            return original(self, partial, seed, batch)

        return complete

    with pytest.MonkeyPatch.context() as patch:
        for name in ("complete", "complete_evenly"):
            patch.setattr(type(space), name, noting(name))
        score([space.root.extended([2])])
    assert drawn == [(n, 1, batch) for n in ("complete_evenly", "complete") for batch in range(2)]


def test_partial_codes_of_different_lengths_are_no_group(tmp_path: Path) -> None:
    """Their random completions could meet, with statistics that differ."""
    cfg, split, detector = trained(tmp_path, "dilation", "SOLVER.MAX_ITER", 1)
    space = find_supernet(detector).space
    group = [space.root.extended([2]), space.root.extended([2, 1])]
    with pytest.raises(ValueError, match="same length"):
        build_scorer(cfg, split, detector).scores(group)


def test_segmentation_goes_by_the_masks_area() -> None:
    """Thin masks in large boxes: small by their masks, medium by their boxes."""
    size = {"height": 64, "width": 64}
    thin = [[4, 4, 60, 4, 60, 6, 4, 6, 4, 60, 4, 4]]
    content = {
        "images": [{"id": 1, "file_name": "x.jpg", **size}],
        "categories": [{"id": 1, "name": "thin"}],
        "annotations": [
            {
                **{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 112.0},
                **{"bbox": [4, 4, 56, 56], "segmentation": thin},
            }
        ],
    }
    metric = CocoMetric(content, "segm", "APs")
    scorer = object.__new__(ArchvalScorer)
    scorer._metric, scorer._category_ids = metric, [1]
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 4:6, 4:60] = True
    far = torch.zeros(1, 64, 64, dtype=torch.bool)
    far[0, 30:32, 8:60] = True
    instances = Instances((64, 64))
    instances.pred_boxes = Boxes(torch.tensor([[8.0, 30.0, 60.0, 62.0], [4.0, 4.0, 60.0, 60.0]]))
    instances.pred_classes = torch.tensor([0, 0])
    instances.scores = torch.tensor([0.9, 0.8])
    instances.pred_masks = torch.cat([far, mask])
    found = scorer._as_coco([{"image_id": 1}], [{"instances": instances}])
    assert all("bbox" not in result for result in found)
    assert 0 < metric(found) < 100  # the false one counts: it is small, whatever its box


def test_recalibration_images_do_not_depend_on_order() -> None:
    dicts = [{"image_id": i} for i in range(20)]
    chosen = recalibration_images(dicts, 5, seed=1)
    assert recalibration_images(dicts[::-1], 5, seed=1) == chosen
    assert recalibration_images(dicts, 5, seed=2) != chosen
    assert len(recalibration_images(dicts, 50, seed=1)) == 20


SEVEN = [{"image_id": i, "height": 10 + i % 3, "width": 10} for i in range(7)]
IN_THREES = [[0, 3, 6], [1, 4, 2], [5]]


def mapping(mapped: list[int]) -> Any:
    """A mapper that notes what it reads; each image has 30 bytes."""

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        mapped.append(record["image_id"])
        return {**record, "image": torch.zeros(30, dtype=torch.uint8)}

    return mapper


def test_images_are_mapped_once() -> None:
    mapped: list[int] = []
    batches = FixedBatches(SEVEN, mapping(mapped), batch_size=3)
    for _ in range(2):
        assert [[r["image_id"] for r in batch] for _, batch in batches.mine()] == IN_THREES
    assert sorted(mapped) == list(range(7))


@pytest.mark.parametrize(("images", "kept"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (7, 7)])
def test_what_does_not_fit_is_read_again(images: int, kept: int) -> None:
    mapped: list[int] = []
    batches = FixedBatches(SEVEN, mapping(mapped), batch_size=3, cache_bytes=images * 30)
    mapped.clear()
    for _ in range(2):
        assert [[r["image_id"] for r in batch] for _, batch in batches.mine()] == IN_THREES
    in_order = [i for batch in IN_THREES for i in batch]
    assert mapped == 2 * in_order[kept:]


def test_where_images_are_kept() -> None:
    """Those that fit; the device meta stands for any."""
    batches = FixedBatches(SEVEN, mapping([]), 3, cache_bytes=6 * 30, kept_on="meta")
    found = [record["image"].device.type for _, batch in batches.mine() for record in batch]
    assert found == 6 * ["meta"] + ["cpu"]


@pytest.mark.parametrize("kept", [0, 3, 7])
def test_some_batches(kept: int) -> None:
    """Those asked for, in order, and no other image is read."""
    mapped: list[int] = []
    batches = FixedBatches(SEVEN, mapping(mapped), batch_size=3, cache_bytes=kept * 30)
    assert batches.image_ids == IN_THREES
    for numbers in ([2, 0], [1], []):
        mapped.clear()
        found = [(n, [r["image_id"] for r in batch]) for n, batch in batches.mine(numbers)]
        assert found == [(n, IN_THREES[n]) for n in sorted(numbers)]
        assert mapped == [i for n in sorted(numbers) for i in IN_THREES[n] if 3 * n >= kept]


def test_an_image_that_cannot_be_read_again_is_an_error() -> None:
    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        if fails:
            raise OSError("gone")
        return {**record, "image": torch.zeros(30, dtype=torch.uint8)}

    fails = False
    batches = FixedBatches(SEVEN, mapper, batch_size=3, cache_bytes=0)
    fails = True
    with pytest.raises(OSError, match="gone"):
        list(batches.mine())


@pytest.mark.parametrize("metric", METRICS)
def test_the_metric_of_the_truth_is_100(metric: str, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / "data", tmp_path / "out")
    content = read_coco_json(cfg.DATASETS.TRAIN_JSON, "")
    if metric == "APl":  # nothing is 96 pixels large in a picture of 96 pixels
        with pytest.raises(InputError, match=r"SEARCH\.METRIC: bbox APl: archval of 12 images"):
            CocoMetric(content, "bbox", metric)
        return
    measure = CocoMetric(content, "bbox", metric)
    perfect = [
        {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in content["annotations"]
    ]
    assert measure(perfect) == pytest.approx(100)
    assert measure([]) == 0.0
    assert measure(perfect[:1]) < 100


@pytest.mark.parametrize("task", TASKS)
def test_the_metric_leaves_the_json_as_it_is(task: str, tmp_path: Path) -> None:
    """pycocotools writes into annotations; archval.json is written after the metric was checked."""
    cfg = tiny_config(tmp_path / "data", tmp_path / "out")
    content = read_coco_json(cfg.DATASETS.TRAIN_JSON, "")
    before = json.dumps(content)
    CocoMetric(content, task, "AP")
    assert json.dumps(content) == before


def test_unknown_task_and_metric() -> None:
    with pytest.raises(InputError, match=r"SEARCH\.TASK: 'mask': allowed are bbox, segm"):
        CocoMetric({}, "mask", "AP")
    with pytest.raises(InputError, match=r"SEARCH\.METRIC: 'mAP': allowed are AP, AP50"):
        CocoMetric({}, "bbox", "mAP")
