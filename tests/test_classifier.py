"""The classifier: its loss, scores and keys, its training and resumption, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import FAMILIES, HEADS, ROOT, TINY, command_line, tiny_yaml
from image_folders import COLOURS, TINY_CLASSIFIER, make_image_folder, register, tiny_classifier
from test_trainer import stop_after

from crnas_d2.config import read_config
from crnas_d2.engine.setup import train_config
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.errors import InputError
from crnas_d2.evaluation.batches import FixedBatches
from crnas_d2.evaluation.path_detector import PathDetector
from crnas_d2.modeling.backbone.supernet import find_supernet
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model

KINDS = ["", "stage", "dilation"]


def classifier_config(*overrides: Any) -> CfgNode:
    return read_config("", [*TINY, *TINY_CLASSIFIER, *overrides])


def inputs(count: int, seed: int = 0, side: int = 32) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    size = (3, side, side)
    return [
        {
            "image": torch.randint(256, size, generator=generator, dtype=torch.uint8),
            "label": i % len(COLOURS),
            "image_id": i,
        }
        for i in range(count)
    ]


def trainer_of(cfg: CfgNode) -> DetectionTrainer:
    trainer = (SupernetTrainer if cfg.MODEL.CRNAS.SUPERNET else DetectionTrainer)(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


# ---- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [[103.5, 116.3, 123.7], [0.0, 10.0, 20.0]])
def test_loss_and_scores_are_the_formulas(mean: list[float]) -> None:
    """Mean over places, a linear layer, softmax, the mean log of the label's: in numpy."""
    cfg = classifier_config("MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", [57.4, 57.1, 58.4])
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.fc.weight)
    torch.nn.init.normal_(model.fc.bias)
    batch = inputs(4, side=64)  # res5 is 2x2
    model.backbone.eval()  # BatchNorm: the same features in both modes
    images = np.stack([x["image"].numpy() for x in batch]).astype(np.float64)
    normal = (images - np.reshape(mean, (3, 1, 1))) / np.reshape([57.4, 57.1, 58.4], (3, 1, 1))
    with torch.no_grad():
        features = model.backbone(torch.from_numpy(normal.astype(np.float32)))["res5"].double()
        assert tuple(model.preprocess_image(batch).tensor.shape) == (4, 3, 64, 64)
        loss = model(batch)
        scores = torch.stack([output["scores"] for output in model.eval()(batch)])
    weight, bias = (p.detach().double().numpy() for p in (model.fc.weight, model.fc.bias))
    logits = features.numpy().mean(axis=(2, 3)) @ weight.T + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = [x["label"] for x in batch]
    assert list(loss) == ["loss_classification"]
    assert loss["loss_classification"].item() == pytest.approx(
        -np.log(expected[range(4), labels]).mean(), rel=1e-5
    )
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_linear_layer_starts_small() -> None:
    """Normal of 0.01 (Goyal et al. 2017), no bias: 1,000 classes of 48 channels."""
    torch.manual_seed(0)
    fc = build_model(classifier_config("MODEL.CLASSIFIER.NUM_CLASSES", 1000)).fc
    assert fc.weight.shape == (1000, 48)
    assert fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(fc.weight.mean().item()) < 2e-4
    assert not fc.bias.any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_backbone_classifies(kind: str, family: str) -> None:
    """A detector's, below FPN, has the same names and shapes, so that it can take the weights."""
    options = [*FAMILIES[family], "MODEL.CRNAS.SUPERNET", kind]
    model = build_model(classifier_config(*options))
    detector = build_model(read_config("", [*TINY, *options]))
    bare, below = model.backbone.state_dict(), detector.backbone.bottom_up.state_dict()
    assert {name: v.shape for name, v in bare.items()} == {name: v.shape for name, v in below.items()}
    others = {name for name in model.state_dict() if not name.startswith("backbone.")}
    assert others == {"fc.weight", "fc.bias"}

    supernet = find_supernet(model)
    assert (supernet is None) == (kind == "")
    if supernet is not None:
        supernet.set_path(supernet.space.sample(0, 0))
    loss = model(inputs(4))["loss_classification"]
    loss.backward()
    assert loss.item() == pytest.approx(np.log(len(COLOURS)), abs=0.3)  # nothing learned yet
    assert model.fc.weight.grad.abs().sum() > 0
    with torch.no_grad():
        scores = [output["scores"] for output in model.eval()(inputs(4))]
    assert all(s.shape == (len(COLOURS),) and s.sum() == pytest.approx(1, abs=1e-5) for s in scores)


def test_mobilenetv2_is_classified_by_its_tail() -> None:
    """1,280 channels at full width (Sandler et al. 2018, Table 2)."""
    options = [*FAMILIES["mobilenetv2"], "MODEL.CRNAS.WIDTHS", [], "MODEL.CRNAS.STEM_CHANNELS", 0]
    assert build_model(classifier_config(*options)).fc.in_features == 1280


def test_recalibration_takes_a_classifier() -> None:
    model = build_model(classifier_config("MODEL.CRNAS.SUPERNET", "stage")).eval()
    supernet = find_supernet(model)
    path = supernet.space.sample(0, 0)
    records = [{**x, "height": 32, "width": 32} for x in inputs(6)]
    batches = FixedBatches(records, lambda record: record, 3)
    norm = supernet.stem.conv1.norm
    before = norm.running_mean.clone()
    (found,) = PathDetector(model, batches, seed=0).statistics([path])
    assert not torch.equal(found["stem.conv1.norm"][0], before)
    assert torch.equal(norm.running_mean, before)


# ---- training ------------------------------------------------------------------------------------


def test_it_learns(tmp_path: Path) -> None:
    """Three colours in 30 steps: far above the third that guessing gives; val is not seen."""
    options = ["SOLVER.MAX_ITER", 30, "SOLVER.IMS_PER_BATCH", 12]
    cfg = tiny_classifier(tmp_path / "data", tmp_path / "out", *options)
    trainer = trainer_of(cfg)
    losses = []
    write = trainer._trainer._write_metrics
    trainer._trainer._write_metrics = lambda metrics, time: (
        losses.append(metrics["loss_classification"].item()),
        write(metrics, time),
    )
    trainer.train()
    assert losses[0] == pytest.approx(np.log(3), abs=0.1)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    (results,) = trainer.last_results.values()
    assert results["top1"] >= 80 and results["top5"] == 100
    found = DetectionTrainer.test(cfg, trainer.model)
    assert found == trainer.last_results
    assert trainer.model.training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [3, 5])
def test_a_resumed_run_is_the_same_run(kind: str, cut: int, tmp_path: Path) -> None:
    """Six iterations, or a cut after a checkpoint and one step beyond it; bit-exact."""

    def trainer_in(folder: str) -> DetectionTrainer:
        overrides = ["MODEL.CRNAS.SUPERNET", kind, "DATASETS.TEST", ()]
        return trainer_of(tiny_classifier(tmp_path / "data", tmp_path / folder, *overrides))

    whole = trainer_in("whole")
    start = {key: value.clone() for key, value in whole.model.state_dict().items()}
    whole.train()
    stop_after(trainer_in("cut"), cut)
    torch.manual_seed(cut)
    resumed = trainer_in("cut")
    assert resumed.start_iter == cut - 1
    resumed.train()
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert not all(torch.equal(start[key], found[key]) for key in expected)


# ---- what is refused -----------------------------------------------------------------------------

REFUSED = [
    (["MODEL.CLASSIFIER.NUM_CLASSES", 1000], ["MODEL.CLASSIFIER.NUM_CLASSES: 1000: ", "has 3"]),
    (["MODEL.CLASSIFIER.NUM_CLASSES", 0], ["MODEL.CLASSIFIER.NUM_CLASSES: 0: ", "at least 1"]),
    (["MODEL.CRNAS.OUT_FEATURES", ["res4"]], ["MODEL.BACKBONE.NAME: ", "returns res4; ", "needs res5"]),
    (["INPUT.CLASSIFIER_CROP", 37], ["INPUT.CLASSIFIER_CROP: 37: ", "1 to 36"]),
    (["INPUT.CLASSIFIER_CROP", 0], ["INPUT.CLASSIFIER_CROP: 0: ", "at least 1"]),
    (["DATASETS.TRAIN", ("bccd_train",)], ["MODEL.META_ARCHITECTURE: ", "boxes", "a detector"]),
    (["DATASETS.TEST", ("bccd_val",)], ["MODEL.META_ARCHITECTURE: ", "DATASETS.TEST", "bccd_val"]),
    (
        ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", *HEADS["FasterRCNN"]],
        ["MODEL.META_ARCHITECTURE: 'GeneralizedRCNN': ", "labelled images", "ImageClassifier"],
    ),
    (["DATASETS.TRAIN", ("nobody's",)], ["DATASETS.TRAIN: ", "nobody's", "not a registered"]),
    (["DATASETS.TRAIN", ("{tmp}/gone",)], ["DATASETS.TRAIN: ", "{tmp}/gone", "No such file"]),
]


@pytest.mark.parametrize(("options", "shown"), REFUSED, ids=str)
@pytest.mark.usefixtures("shared_data")
def test_one_line_before_anything_is_written(
    options: list[Any], shown: list[str], tmp_path: Path
) -> None:
    make_image_folder(tmp_path / "train", 2)
    train = register(tmp_path / "train", tmp_path / "train")
    register(tmp_path / "gone", tmp_path / "gone")
    sets = ["DATASETS.TRAIN", (train,), "DATASETS.TEST", (train,)]
    good = [*TINY, *TINY_CLASSIFIER, *sets, "OUTPUT_DIR", str(tmp_path / "out")]

    def check(*changed: Any) -> CfgNode:
        words = [word.replace("{tmp}", str(tmp_path)) for word in command_line([*good, *changed])]
        return train_config(default_argument_parser().parse_args(words))

    assert check().MODEL.META_ARCHITECTURE == "ImageClassifier"
    with pytest.raises(InputError) as caught:
        check(*options)
    message = str(caught.value)
    expected = [part.replace("{tmp}", str(tmp_path)) for part in shown]
    assert "\n" not in message and message.startswith(expected[0])
    assert all(part in message for part in expected), message
    assert not (tmp_path / "out").exists()


# ---- the script ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_net_trains_and_evaluates_a_classifier(tmp_path: Path) -> None:
    """$DETECTRON2_DATASETS/imagenet, two processes, epochs; then --eval-only of what they left."""
    make_image_folder(tmp_path / "imagenet" / "train", 8)
    make_image_folder(tmp_path / "imagenet" / "val", 3, seed=1)
    options = [*TINY, *TINY_CLASSIFIER, "DATASETS.TRAIN", ("imagenet_train",)]
    options += ["DATASETS.TEST", ("imagenet_val",), "SOLVER.EPOCHS", 2, "SOLVER.IMS_PER_BATCH", 6]
    options += ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "OUTPUT_DIR", str(tmp_path / "out")]

    def run(*start: str, weights: str = "") -> str:
        config = str(tiny_yaml(tmp_path / "tiny.yaml"))
        script = [sys.executable, *start, str(ROOT / "train_net.py"), "--config-file", config]
        flags = ["--eval-only"] if weights else []
        done = subprocess.run(
            [*script, *flags, *command_line([*options, "MODEL.WEIGHTS", weights])],
            env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout + done.stderr

    log = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert "2 epochs of 24 images at batch 6: 8 iterations" in log
    assert "UnbiasedSyncBatchNorm" in log
    final = str(tmp_path / "out" / "model_final.pth")
    log = run(weights=final)
    assert f"Loading from {final}" in log and "copypaste: top1,top5" in log
