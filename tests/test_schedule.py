"""Schedules in epochs: to iterations from the images that are trained on, and what is refused."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import tiny_config, tiny_shapes, tiny_yaml

from crnas_d2.config import add_crnas_config, read_config
from crnas_d2.data.datasets import use_own_data
from crnas_d2.engine.schedule import check_schedule, resolve_schedule
from crnas_d2.engine.setup import train_config
from crnas_d2.engine.trainer import DetectionTrainer
from crnas_d2.errors import InputError
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser


def config(**solver: Any) -> CfgNode:
    cfg = get_cfg()
    add_crnas_config(cfg)
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    cfg.freeze()
    return cfg


# images, batch, epochs, steps; iterations and steps worked out by hand
SCHEDULES = [
    pytest.param(117266, 16, 13, (8, 11), 95279, (58633, 80621), id="COCO, paper Sec. 4.1"),
    pytest.param(112266, 16, 25, (16, 22), 175416, (112266, 154366), id="archtrain, paper A.1"),
    pytest.param(1281167, 1024, 150, (), 187671, (), id="ImageNet, paper A.1"),
    pytest.param(100, 10, 3, (1, 2), 30, (10, 20), id="without a remainder"),
    pytest.param(101, 10, 3, (1, 2), 31, (11, 21), id="with a remainder"),
    pytest.param(10, 4, 2, (0.5, 1.5), 5, (2, 4), id="parts of an epoch"),
    pytest.param(3, 8, 9, (), 4, (), id="less than a batch"),
]
# The same with SOLVER.MIN_ITER: all of the schedule is stretched, or nothing of it.
FLOORS = [
    pytest.param(100, 8, 12, (8, 11), 3000, 3000, (2000, 2750), id="a small set"),
    pytest.param(7, 8, 12, (8, 11), 3000, 3000, (2000, 2750), id="less than a batch, stretched"),
    pytest.param(117266, 16, 13, (8, 11), 3000, 95279, (58633, 80621), id="a large set"),
]


@pytest.mark.parametrize(("images", "batch", "epochs", "steps", "least", "iterations", "at"), FLOORS)
def test_a_small_set_has_a_floor(
    images: int, batch: int, epochs: int, steps: Any, least: int, iterations: int, at: tuple[int, ...]
) -> None:
    cfg = config(EPOCHS=epochs, STEP_EPOCHS=steps, IMS_PER_BATCH=batch, MIN_ITER=least)
    solver = resolve_schedule(cfg, images).SOLVER
    assert (solver.MAX_ITER, solver.STEPS) == (iterations, at)


@pytest.mark.parametrize(("images", "batch", "epochs", "steps", "iterations", "at"), SCHEDULES)
def test_epochs_become_iterations(
    images: int, batch: int, epochs: int, steps: Any, iterations: int, at: tuple[int, ...]
) -> None:
    cfg = config(EPOCHS=epochs, STEP_EPOCHS=steps, IMS_PER_BATCH=batch, BASE_LR=0.3)
    before = cfg.clone()
    found = resolve_schedule(cfg, images)
    assert (found.SOLVER.MAX_ITER, found.SOLVER.STEPS) == (iterations, at)
    assert found.is_frozen() and cfg == before
    found.defrost()
    found.SOLVER.MAX_ITER, found.SOLVER.STEPS = cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS
    assert found == cfg  # nothing else changes, the learning rate included


@pytest.mark.parametrize(
    ("per_image", "batch", "rate"), [(0.00125, 16, 0.02), (0.4 / 1024, 1024, 0.4), (0.01, 3, 0.03)]
)
def test_the_learning_rate_of_an_image(per_image: float, batch: int, rate: float) -> None:
    cfg = config(LR_PER_IMAGE=per_image, IMS_PER_BATCH=batch, MAX_ITER=77, STEPS=(5,))
    found = resolve_schedule(cfg, 1000)
    assert found.SOLVER.BASE_LR == pytest.approx(rate, rel=1e-12)
    assert (found.SOLVER.MAX_ITER, found.SOLVER.STEPS) == (77, (5,))


def test_the_log_says_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing, where none of our keys changes anything."""
    monkeypatch.setattr(logging.getLogger("crnas_d2"), "propagate", True)  # setup_logger ends that
    caplog.set_level(logging.INFO, "crnas_d2")
    cfg = config(BASE_LR=0.07, MAX_ITER=123, STEPS=(50, 100))
    assert resolve_schedule(cfg, 1000) == cfg
    assert not caplog.messages
    resolve_schedule(config(EPOCHS=13, STEP_EPOCHS=(8, 11), LR_PER_IMAGE=0.00125), 117266)
    line = "13 epochs of 117266 images at batch 16: 95279 iterations, steps [58633, 80621]"
    assert caplog.messages == [line, "learning rate 0.02"]


# ---- in training ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("drops", "images"), [(True, 11), (False, 12)])
def test_dropped_images_are_not_counted(drops: bool, images: int, tmp_path: Path) -> None:
    """Twelve pictures, one of them made empty; the trainer goes by what is left."""
    tiny_shapes(tmp_path / "data")
    path = tmp_path / "data" / "train.json"
    content = json.loads(path.read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first]
    path.write_text(json.dumps(content))
    options = ["SOLVER.EPOCHS", 4, "SOLVER.STEP_EPOCHS", (1, 3), "SOLVER.LR_PER_IMAGE", 0.003]
    options += ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", drops]
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", *options)
    trainer = DetectionTrainer(cfg)
    assert trainer.data_loader.num_images == images
    steps = tuple(math.ceil(epochs * images / 2) for epochs in (1, 3))
    for solver in (trainer.cfg.SOLVER, resolve_schedule(cfg, images).SOLVER):
        assert (solver.MAX_ITER, solver.STEPS) == (2 * images, steps)
        assert solver.BASE_LR == 0.006
    assert trainer.max_iter == 2 * images
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.006}
    assert {g["lr"] for g in trainer.optimizer.param_groups} == {0.006 * cfg.SOLVER.WARMUP_FACTOR}


def test_a_run_goes_by_its_epochs(tmp_path: Path) -> None:
    """Half an epoch more than a batch of all images; the last checkpoint is the schedule's end."""
    options = ["SOLVER.EPOCHS", 1, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.CHECKPOINT_PERIOD", 1000]
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", *options)
    cfg.DATASETS.TEST = ()
    DetectionTrainer(cfg).train()
    final = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert final["iteration"] == 2 - 1  # twelve images, a batch of eight
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_the_learning_rate_of_each_iteration(name: str) -> None:
    """Against the two formulas: steps by ten, or half a cosine; after a straight warm-up."""
    keys = {"LR_SCHEDULER_NAME": name, "WARMUP_ITERS": 10, "WARMUP_FACTOR": 0.1}
    cfg = resolve_schedule(
        config(EPOCHS=13, STEP_EPOCHS=(8, 11), LR_PER_IMAGE=0.00125, IMS_PER_BATCH=16, **keys), 101
    )
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (83, (51, 70))

    def rate(iteration: int) -> float:
        if name == "WarmupCosineLR":
            return 0.02 * (1 + math.cos(math.pi * iteration / 83)) / 2
        return 0.02 * 0.1 ** sum(iteration >= step for step in (51, 70))

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    scheduler = DetectionTrainer.build_lr_scheduler(cfg, optimizer)
    for iteration in range(83):
        expected = rate(iteration)
        if iteration < 10:
            expected = 0.002 + (rate(10) - 0.002) * iteration / 10
        (group,) = optimizer.param_groups
        assert group["lr"] == pytest.approx(expected, rel=1e-9), iteration
        optimizer.step()
        scheduler.step()


# ---- what is refused -----------------------------------------------------------------------------

REFUSED = [
    *((13, steps) for steps in [(11, 8), (8, 8), (8, 14), (8, 13), (0, 8), (-1,), ("8",)]),
    (0, (8, 11)),
]


@pytest.mark.parametrize(("epochs", "steps"), REFUSED, ids=str)
def test_a_schedule_that_is_none(epochs: int, steps: Any, tmp_path: Path) -> None:
    cfg = config(EPOCHS=epochs, STEP_EPOCHS=steps)
    options = ["SOLVER.EPOCHS", str(epochs), "SOLVER.STEP_EPOCHS", repr(steps)]
    arguments = [*options, *map(str, tiny_shapes(tmp_path / "data"))]
    arguments += ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.BACKBONE.FREEZE_AT", "0"]
    args = default_argument_parser().parse_args(arguments)
    checks = (lambda: check_schedule(cfg), lambda: resolve_schedule(cfg, 1), lambda: train_config(args))
    for check in checks:
        with pytest.raises(InputError) as caught:
            check()
        assert str(caught.value).startswith(f"SOLVER.STEP_EPOCHS: {steps}: ascending numbers")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", [(1, 2), (12.9,)])
def test_steps_that_fall_on_one_iteration(steps: tuple[int, ...]) -> None:
    cfg = config(EPOCHS=13, STEP_EPOCHS=steps, IMS_PER_BATCH=16)
    with pytest.raises(InputError, match=r"SOLVER\.STEP_EPOCHS: .* 5 images at batch 16: 5 iter"):
        resolve_schedule(cfg, 5)


# ---- --resume with other keys --------------------------------------------------------------------

KEPT = "which --resume keeps; set it back, or start in another OUTPUT_DIR"
CHANGED = [
    (["SOLVER.BASE_LR", "0.001"], "SOLVER.BASE_LR: 0.001: the run in {out} has 0.01, " + KEPT),
    (["SOLVER.LR_PER_IMAGE", "0.1"], "SOLVER.BASE_LR: 0.2: the run in {out} has 0.01, " + KEPT),
    (["SOLVER.MOMENTUM", "0.8"], "SOLVER.MOMENTUM: 0.8: the run in {out} has 0.9, " + KEPT),
    (["SOLVER.NESTEROV", "True"], "SOLVER.NESTEROV: True: the run in {out} has False, " + KEPT),
    (["SOLVER.WEIGHT_DECAY", "0.1"], "SOLVER.WEIGHT_DECAY: 0.1: the run in {out} has 0.0001, " + KEPT),
    (["SOLVER.LR_PER_IMAGE", "0.005"], ""),  # the same for a batch of two
    (["SOLVER.MAX_ITER", "12", "SOLVER.STEPS", "(8,)", "SOLVER.WARMUP_ITERS", "3"], ""),
    (["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CHECKPOINT_PERIOD", "5"], ""),
]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a run that has a checkpoint."""
    folder = tmp_path_factory.mktemp("started")
    trainer = DetectionTrainer(tiny_config(folder / "data", folder / "out"))
    trainer.checkpointer.save("model_0000001", iteration=1)
    pairs = ["OUTPUT_DIR", str(folder / "out"), *tiny_shapes(folder / "data")]
    command = ["--resume", "--config-file", str(tiny_yaml(folder / "tiny.yaml")), *map(str, pairs)]
    cfg = train_config(default_argument_parser().parse_args(command))
    (folder / "out" / "config.yaml").write_text(cfg.dump())
    return command


@pytest.mark.parametrize(("changed", "message"), CHANGED, ids=lambda value: " ".join(value[:2]))
def test_keys_that_a_resumed_optimizer_does_not_take(
    changed: list[str], message: str, started: list[str]
) -> None:
    """They are in the optimizer's state, which comes from the checkpoint; the schedule's are taken."""
    args = default_argument_parser().parse_args([*started, *changed])
    if not message:
        assert train_config(args).SOLVER.MAX_ITER == (12 if "SOLVER.MAX_ITER" in changed else 6)
        return
    with pytest.raises(InputError) as caught:
        train_config(args)
    assert str(caught.value) == message.format(out=started[4])
    # Nothing resumes in an evaluation, or in a folder without a checkpoint.
    fresh = [*started[:4], str(Path(started[4]).with_name("fresh")), *started[5:], *changed]
    for command in (["--eval-only", *started, *changed], fresh):
        train_config(default_argument_parser().parse_args(command))


def test_what_a_resumed_run_takes(started: list[str]) -> None:
    """The trainer itself: settings of the checkpoint's optimizer, and the schedule of the config."""
    changed = ["SOLVER.BASE_LR", "0.5", "SOLVER.MOMENTUM", "0.5", "SOLVER.MAX_ITER", "12"]
    cfg = read_config(started[2], [*started[3:], *changed])
    use_own_data(cfg)
    trainer = DetectionTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert (trainer.start_iter, trainer.max_iter) == (1, 12)
    assert {(g["initial_lr"], g["momentum"]) for g in trainer.optimizer.param_groups} == {(0.01, 0.9)}
