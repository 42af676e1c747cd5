"""BatchNorm statistics of paths against a plain loop, and the images that they are taken over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectors import tiny_config
from networks import randomise
from torch import nn
from torch.testing import assert_close
from trained import scores, trained

from crnas_d2.config import read_config
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.errors import InputError
from crnas_d2.evaluation.batches import FixedBatches
from crnas_d2.evaluation.path_detector import PathDetector
from crnas_d2.modeling.backbone.supernet import ChoiceBlock, find_supernet
from crnas_d2.pipeline.scorer import build_scorer, check_scoring
from detectron2.data import DatasetMapper, get_detection_dataset_dicts


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_recalibration_is_the_plain_loops(kind: str, tmp_path: Path) -> None:
    """Against population statistics collected by hooks in float64; nothing of the network changes."""
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", "MODEL.CRNAS.SUPERNET", kind)
    detector = SupernetTrainer(cfg).model.eval()
    randomise(detector.backbone.bottom_up, seed=6)
    supernet = find_supernet(detector)
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    batches = FixedBatches(dicts, DatasetMapper(cfg, is_train=False), batch_size=5)
    path = supernet.space.sample(0, 0)

    inputs: dict[str, list[torch.Tensor]] = {}
    names = {m: n for n, m in detector.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}

    def note(norm: nn.Module, x: tuple[torch.Tensor]) -> None:
        inputs.setdefault(names[norm], []).append(x[0].double())

    handles = [norm.register_forward_pre_hook(note) for norm in names]
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    with torch.no_grad(), supernet.using_path(path):
        for norm in names:
            norm.train()
        for _, batch in batches.mine():
            detector.backbone(detector.preprocess_image(batch).tensor)
    for handle in handles:
        handle.remove()
    detector.eval()
    detector.load_state_dict(before)

    (found,) = PathDetector(detector, batches, seed=0).statistics([path])
    assert found.keys() == inputs.keys() < set(names.values())  # on the path, and not all
    for name, (mean, var) in found.items():
        x = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs[name]], dim=1)
        assert_close(mean.double(), x.mean(1), rtol=1e-5, atol=1e-5)
        assert_close(var.double(), x.var(1), rtol=1e-4, atol=1e-5)
    after = detector.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any("forward" in vars(norm) for norm in names)


def test_recalibration_changes_the_score_and_nothing_else(tmp_path: Path) -> None:
    cfg, split, detector = trained(tmp_path, "stage")
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    path = find_supernet(detector).space.sample(0, 0)
    with_it = scores(cfg, split, detector, [path])
    cfg.SEARCH.EVAL.RECALIBRATION_IMAGES = 0
    assert scores(cfg, split, detector, [path]) != with_it
    assert all(torch.equal(before[key], value) for key, value in detector.state_dict().items())


@pytest.mark.parametrize("images", [3, 5, 8])
def test_few_images_reach_every_rate(tmp_path: Path, images: int) -> None:
    """At least three batches, whatever their size is to be: each rate is drawn by one of them."""
    options = ["SEARCH.EVAL.RECALIBRATION_IMAGES", images, "SEARCH.EVAL.BATCH_SIZE", 4]
    cfg, split, detector = trained(tmp_path, "dilation", "SOLVER.MAX_ITER", 1, *options)
    supernet = find_supernet(detector)
    (found,) = build_scorer(cfg, split, detector)._detector.statistics([supernet.space.root])
    choices = [f"bottom_up.{n}." for n, m in supernet.named_modules() if isinstance(m, ChoiceBlock)]
    norms = [n for n, m in detector.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)]
    of_rates = [name for name in norms if name.startswith(tuple(choices))]
    assert len(of_rates) == 3 * len(choices) > 0
    assert set(of_rates) <= found.keys()


def test_fewer_than_three_images_are_refused(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / "data", tmp_path / "out")
    _, split, _ = trained(tmp_path, "stage", "SOLVER.MAX_ITER", 1)
    check_scoring(cfg, 3, split.archval_content)
    with pytest.raises(InputError, match=r"RECALIBRATION_IMAGES: 4: archtrain has 2 images"):
        check_scoring(cfg, 2, split.archval_content)
    cfg.SEARCH.EVAL.RECALIBRATION_IMAGES = 0
    check_scoring(cfg, 2, split.archval_content)
    for few in (1, 2):
        with pytest.raises(InputError, match=rf"RECALIBRATION_IMAGES: {few}: 0 or at least 3"):
            read_config("", ["SEARCH.EVAL.RECALIBRATION_IMAGES", few])
