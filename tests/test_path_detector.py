"""Detections along paths: against detectron2's own loop, alone and in groups, in other arithmetic."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import FAMILIES, HEADS
from torch import nn
from trained import scores, trained

from crnas_d2.modeling.backbone.supernet import Segment, find_supernet
from crnas_d2.pipeline.scorer import Split, build_scorer
from crnas_d2.space import DilationSpace, JointSpace, StageSpace
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.layers import ROIAlign
from detectron2.structures import Instances


def test_a_score_is_the_plain_loops(tmp_path: Path) -> None:
    """Without recalibration, whole codes: set the path, then detectron2's own loop, image by image."""
    cfg, split, detector = trained(tmp_path, "stage", "SEARCH.EVAL.RECALIBRATION_IMAGES", 0)
    supernet = find_supernet(detector)
    paths = [supernet.space.sample(0, i) for i in range(3)]
    found = scores(cfg, split, detector, paths)
    for path, score in zip(paths, found):
        loader = build_detection_test_loader(cfg, split.archval)
        evaluator = COCOEvaluator(split.archval, distributed=False, output_dir=cfg.OUTPUT_DIR)
        with supernet.using_path(path), contextlib.redirect_stdout(io.StringIO()):
            expected = inference_on_dataset(detector, loader, evaluator)["bbox"]["AP"]
        assert score == pytest.approx(expected, abs=1e-3)
    assert max(found) > 0.05
    assert scores(cfg, split, detector, paths) == found


NORMED_NECK = ["MODEL.FPN.NORM", "BN"]


@pytest.mark.parametrize("neck", [[], NORMED_NECK], ids=["plain neck", "normed neck"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("stage", []),
        ("stage", ["MODEL.CRNAS.SHARED", True]),
        ("dilation", []),
        ("dilation", ["MODEL.CRNAS.SHARED", True]),
        ("joint", ["MODEL.CRNAS.SHARED", True]),
        ("stage", FAMILIES["mobilenetv2"]),
        ("dilation", FAMILIES["mobilenetv2"]),
    ],
    ids=[
        *("stage", "shared depths", "dilation", "shared rates", "joint"),
        *("stage mobilenet", "dilation mobilenet"),
    ],
)
def test_a_group_scores_what_each_candidate_would_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: list[Any],
    neck: list[Any],
) -> None:
    """Bit-exact, whole codes and partial ones; and what was shared was not computed again."""
    few = ["SOLVER.MAX_ITER", 8, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    cfg, split, detector = trained(tmp_path, kind, *options, *neck, *few)
    space = find_supernet(detector).space
    if isinstance(space, JointSpace):
        groups = [list(space.codes()), [space.sample(0, i) for i in range(6)]]
        dilations = DilationSpace(space.family, (1, 2, 1, 1))
        groups.append(dilations.extensions(dilations.root))
    elif isinstance(space, StageSpace):
        groups = [list(space.codes())]
    else:
        first = space.extensions(space.root)
        second = [longer for partial in first for longer in space.extensions(partial)]
        groups = [first, second, [space.sample(0, i) for i in range(6)]]
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    run, computed = Segment.__call__, []
    monkeypatch.setattr(Segment, "__call__", lambda self, x: computed.append(self.name) or run(self, x))
    together = [scores(cfg, split, detector, group) for group in groups]
    computed_together = len(computed)
    alone = [[scores(cfg, split, detector, [a])[0] for a in group] for group in groups]
    assert together == alone
    assert all(len(set(found)) > 1 for found in together)
    after = detector.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert 0 < computed_together < 0.9 * (len(computed) - computed_together)


def before_boxes(
    cfg: CfgNode, split: Split, detector: nn.Module, paths: list[Any]
) -> tuple[list[torch.Tensor], set[torch.dtype]]:
    """Features and RPN outputs of each path and batch, and the dtypes that convolutions compute in.

    Boxes are selected from them, which makes leaps of small differences.
    """
    found: list[torch.Tensor] = []
    dtypes = set()

    def note(_: nn.Module, inputs: Any, outputs: Any) -> None:
        assert {feature.dtype for feature in inputs[0]} == {torch.float32}
        found.extend(torch.cat([x.float().flatten() for x in xs]) for xs in (*inputs, *outputs))

    convs = [module for module in detector.modules() if isinstance(module, nn.Conv2d)]
    hooks = [detector.proposal_generator.rpn_head.register_forward_hook(note)]
    hooks += [c.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype)) for c in convs]
    scorer = build_scorer(cfg, split, detector)
    statistics = scorer._detector.statistics(paths)
    for number, inputs in scorer._archval.mine():
        list(scorer._detector.detect(paths, statistics, number, inputs, masks=False))
    for hook in hooks:
        hook.remove()
    return found, dtypes


def apart(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / (exact - exact.mean()).norm())


@pytest.mark.parametrize("kind", ["stage", "dilation"])
@pytest.mark.parametrize(
    ("options", "dtype", "least", "most"),
    [
        (["SEARCH.EVAL.AMP", "bf16"], torch.bfloat16, 1e-3, 0.08),
        (["SEARCH.EVAL.CHANNELS_LAST", True], torch.float32, 0, 1e-5),
    ],
    ids=["bf16", "channels_last"],
)
def test_faster_arithmetic_computes_about_the_same(
    tmp_path: Path, kind: str, options: list[Any], dtype: torch.dtype, least: float, most: float
) -> None:
    """With other weights, another path's, the difference would be larger than is allowed."""
    cfg, split, detector = trained(tmp_path, kind, "SOLVER.MAX_ITER", 20)
    paths = [find_supernet(detector).space.sample(0, i) for i in range(2)]
    exact, dtypes = before_boxes(cfg, split, detector, paths)
    assert len(exact) == 2 * 2 * 3 and dtypes == {torch.float32}
    cfg.merge_from_list(options)
    found, dtypes = before_boxes(cfg, split, detector, paths)
    assert dtypes == {dtype}
    assert all(least < apart(*pair) < most for pair in zip(found, exact))
    assert all(apart(*pair) > 0.5 for pair in zip(found, exact[3:]))


def test_mixed_precision_leaves_coordinates_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes go into RoIAlign, and masks into their boxes, in float32; convolutions are in bf16."""
    options = [*HEADS["MaskRCNN"], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    options += ["SEARCH.EVAL.TASK", "segm", "SEARCH.EVAL.AMP", "bf16"]
    cfg, split, detector = trained(tmp_path, "stage", *options)
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
    scores(cfg, split, detector, [find_supernet(detector).space.sample(0, 0)])
    assert seen == {"roi": {torch.float32}, "conv": {torch.bfloat16}, "mask": {torch.float32}}
    assert not detector.backbone._forward_hooks and not detector.roi_heads._forward_hooks


def test_masks_are_as_asked_and_of_one_member_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are as large as the images; boxes are the same without them."""
    options = [*HEADS["MaskRCNN"], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    cfg, split, detector = trained(tmp_path, "stage", "SOLVER.MAX_ITER", 1, *options)
    paths = [find_supernet(detector).space.sample(0, i) for i in range(3)]
    scorer = build_scorer(cfg, split, detector)
    statistics = scorer._detector.statistics(paths)
    number, inputs = next(iter(scorer._archval.mine()))
    events: list[str] = []
    detector.register_forward_hook(lambda *_: events.append("detects"))
    found: list[list[Instances]] = []
    for masks in (True, False):
        events.clear()
        for _, instances in scorer._detector.detect(paths, statistics, number, inputs, masks):
            events.append("yields")
            found += [instances]
            assert all(len(i) and i.has("pred_masks") == masks for i in instances)
        assert events == ["detects", "yields"] * 3 and detector.roi_heads.mask_on
    for instances, boxed in zip(found[:3], found[3:]):
        for field in ("scores", "pred_classes"):
            assert all(torch.equal(i.get(field), b.get(field)) for i, b in zip(instances, boxed))
        assert all(
            torch.equal(i.pred_boxes.tensor, b.pred_boxes.tensor) for i, b in zip(instances, boxed)
        )


def test_partial_codes_meet_the_same_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same partial code scores the same; a later block of the search draws anew."""
    cfg, split, detector = trained(tmp_path, "dilation")
    space = find_supernet(detector).space
    first = scores(cfg, split, detector, [space.root])
    assert scores(cfg, split, detector, [space.root]) == first
    drawn = []

    def noting(name: str, original: Any) -> Any:
        def complete(self: Any, partial: Any, seed: int, batch: int) -> Any:
            drawn.append((name, len(partial.dilation_code), batch))
            return original(self, partial, seed, batch)

        return complete

    for name in ("complete", "complete_evenly"):
        monkeypatch.setattr(type(space), name, noting(name, getattr(type(space), name)))
    scores(cfg, split, detector, [space.root.extended([2])])
    assert drawn == [
        *[("complete_evenly", 1, batch) for batch in range(4)],  # 4 images, at least three batches
        *[("complete", 1, batch) for batch in range(2)],
    ]


def test_partial_codes_of_different_lengths_are_no_group(tmp_path: Path) -> None:
    """Their random completions could meet, with statistics that differ."""
    cfg, split, detector = trained(tmp_path, "dilation", "SOLVER.MAX_ITER", 1)
    space = find_supernet(detector).space
    group = [space.root.extended([2]), space.root.extended([2, 1])]
    with pytest.raises(ValueError, match="same length"):
        scores(cfg, split, detector, group)
