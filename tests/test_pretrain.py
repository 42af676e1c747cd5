"""From a classifier to a detector: its checkpoint as MODEL.WEIGHTS, and SEARCH.PRETRAIN in a chain."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import FAMILIES, HEADS, TINY, command_line, tiny_config, tiny_shapes
from image_folders import tiny_classifier

from crnas_d2.config import read_config
from crnas_d2.engine.setup import check_weights
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.errors import InputError
from crnas_d2.pipeline.plan import plan_search
from crnas_d2.pipeline.run import run_search
from crnas_d2.pipeline.training import pretrained
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model

NECKS = ("FasterRCNN", "RetinaNet", "NASFPN")


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> DetectionTrainer:
    """Trained for 20 steps on a generated image folder."""
    folder = tmp_path_factory.mktemp("classifier")
    cfg = tiny_classifier(folder / "data", folder / "output", "SOLVER.MAX_ITER", 20)
    trainer = DetectionTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def weights_of(trainer: DetectionTrainer) -> str:
    return f"{trainer.cfg.OUTPUT_DIR}/model_final.pth"


@pytest.mark.parametrize("head", NECKS)
def test_a_detectors_backbone_is_the_classifiers(
    classifier: DetectionTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    cfg = tiny_config(tmp_path / "data", tmp_path / "output", *HEADS[head])
    cfg.MODEL.WEIGHTS = weights_of(classifier)
    check_weights(cfg, resume=False)
    caplog.set_level(logging.WARNING)
    trainer = DetectionTrainer(cfg)
    for name in ("fvcore", "detectron2"):
        logging.getLogger(name).propagate = True
    trainer.resume_or_load(resume=False)
    bare, below = classifier.model.backbone.eval(), trainer.model.backbone.bottom_up.eval()
    with torch.no_grad():
        expected, found = bare(images())["res5"], below(images())["res5"]
    assert torch.equal(expected, found)
    # What is of the one or the other is reported.
    assert "fc.bias" in caplog.text or "fc.{bias, weight}" in caplog.text
    assert "backbone.bottom_up" not in caplog.text


def test_a_project_with_detectron2s_own_checkpointer(classifier: DetectionTrainer) -> None:
    detector = build_model(read_config("", TINY))
    DetectionCheckpointer(detector).load(weights_of(classifier))
    expected = classifier.model.backbone.state_dict()
    found = detector.backbone.bottom_up.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.CRNAS.STAGE_CODE", [1, 1, 2, 1]], "is of another network"),
        (["MODEL.CRNAS.STAGE_CODE", [1, 2, 1, 2]], "is of another network"),
        (["MODEL.CRNAS.WIDTHS", [4, 6, 8, 14]], "is of another network"),
        (["INPUT.FORMAT", "RGB"], "INPUT.FORMAT: 'RGB': the weights in "),
        (["MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]], "MODEL.PIXEL_MEAN: [1.0, 2.0, 3.0]: the weights in "),
        (["MODEL.PIXEL_STD", [2.0, 2.0, 2.0]], "MODEL.PIXEL_STD: [2.0, 2.0, 2.0]: the weights in "),
        (["MODEL.CRNAS.STRIDE_IN_1X1", True], "MODEL.CRNAS.STRIDE_IN_1X1: True: the weights in "),
    ],
)
def test_weights_of_another_network_or_input_are_refused(
    classifier: DetectionTrainer, options: list[Any], message: str
) -> None:
    cfg = read_config("", [*TINY, *options, "MODEL.WEIGHTS", weights_of(classifier)])
    with pytest.raises(InputError) as caught:
        check_weights(cfg, resume=False)
    assert message in str(caught.value) and "allowed is" in str(caught.value)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    path.write_bytes(b"anything")
    cfg = read_config("", [*TINY, "MODEL.WEIGHTS", str(path)])
    with pytest.raises(InputError, match=r"R-50.pkl: does not say .* tools/convert_weights.py"):
        check_weights(cfg, resume=False)


# ---- in a chain ----------------------------------------------------------------------------------


def search_arguments(tmp_path: Path, *options: Any) -> Any:
    """A tiny search of all three steps with pre-training, as the command line would give it."""
    classification = tiny_classifier(tmp_path / "labelled", tmp_path / "unused", "SOLVER.MAX_ITER", 4)
    (tmp_path / "classify.yaml").write_text(classification.dump())
    (tmp_path / "search.yaml").write_text(read_config("", [*TINY, *options]).dump())
    own = [*tiny_shapes(tmp_path / "shapes"), "OUTPUT_DIR", str(tmp_path / "output")]
    own += ["SEARCH.PRETRAIN", "classify.yaml"]
    line = ["--config-file", str(tmp_path / "search.yaml"), "--resume", *command_line(own)]
    return default_argument_parser().parse_args(line)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_network_of_a_chain_starts_as_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    started = []
    load = SupernetTrainer.resume_or_load

    def resume_or_load(trainer: Any, resume: bool = True) -> None:
        load(trainer, resume)
        started.append((trainer.cfg, {k: v.clone() for k, v in trainer.model.state_dict().items()}))

    monkeypatch.setattr(DetectionTrainer, "resume_or_load", resume_or_load)
    steps = ["SEARCH.PHASES", ("stage", "dilation", "retrain"), "SOLVER.MAX_ITER", 2]
    steps += ["SEARCH.EVAL.RECALIBRATION_IMAGES", 3]
    args = search_arguments(tmp_path, *steps, *FAMILIES[family])
    run_search(plan_search(args), resume=True)
    kinds = [(cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.CRNAS.SUPERNET) for cfg, _ in started]
    alone = len(list((tmp_path / "output/trainings/train_0").iterdir()))  # the baseline may be found
    assert alone in (1, 2, 3)
    assert kinds == [
        (architecture, supernet)
        for supernet in ("stage", "dilation", *[""] * alone)
        for architecture in ("ImageClassifier", "GeneralizedRCNN")
    ]
    for (classifier, _), (detector, state) in zip(started[::2], started[1::2]):
        path = Path(classifier.OUTPUT_DIR) / "model_final.pth"
        assert path.parent == Path(detector.OUTPUT_DIR) / "pretrain"
        trained = torch.load(path, weights_only=True)["model"]
        for name, value in trained.items():
            if name.startswith("backbone."):
                assert torch.equal(value, state[name.replace("backbone.", "backbone.bottom_up.")])
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "output").rglob("model_final.pth")}
    assert len(written) == 2 * (2 + alone)
    # Done is done: a second start trains nothing again.
    run_search(plan_search(args), resume=True)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "output").rglob("model_final.pth")} == written


def test_pretraining_goes_on_where_it_was(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / "shapes", tmp_path / "output", "MODEL.CRNAS.SUPERNET", "stage")
    classification = tiny_classifier(tmp_path / "labelled", tmp_path / "unused", "SOLVER.MAX_ITER", 4)
    path = tmp_path / "classify.yaml"
    path.write_text(classification.dump())
    cfg.freeze()
    whole = pretrained(cfg, str(path), resume=True).MODEL.WEIGHTS
    expected = torch.load(whole, weights_only=True)["model"]
    folder = Path(whole).parent
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    Path(whole).unlink()
    pretrained(cfg, str(path), resume=True)
    again = torch.load(whole, weights_only=True)["model"]
    assert all(torch.equal(expected[name], again[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SEARCH.PRETRAIN", "none.yaml"], "SEARCH.PRETRAIN: 'none.yaml': no such config"),
        (["SEARCH.PRETRAIN", "search.yaml"], "has MODEL.META_ARCHITECTURE 'GeneralizedRCNN'"),
        (["MODEL.PIXEL_STD", [58.0, 57.0, 57.0]], "SEARCH.PRETRAIN: "),
    ],
)
def test_what_cannot_pretrain(tmp_path: Path, options: list[Any], message: str) -> None:
    args = search_arguments(tmp_path)
    args.opts += command_line(options)
    with pytest.raises(InputError) as caught:
        plan_search(args)
    assert message in str(caught.value)
    assert not (tmp_path / "output").exists()
