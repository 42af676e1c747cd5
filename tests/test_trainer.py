"""Training: what moves and what does not, bit-exact resumption, the seed decides everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import HEADS, assert_same_weights, tiny_config

from crnas_d2.data.datasets import register_coco
from crnas_d2.engine import trainer as trainer_module
from crnas_d2.engine.trainer import DetectionTrainer, StepTrainer, SupernetTrainer
from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.pipeline.search_hook import SearchHook
from detectron2.engine import HookBase
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage


def trainer_of(data: Path, output: Path, *overrides: Any) -> DetectionTrainer:
    cfg = tiny_config(data, output, *overrides)
    trainer = (SupernetTrainer if cfg.MODEL.CRNAS.SUPERNET else DetectionTrainer)(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


def stop_after(trainer: DetectionTrainer, iterations: int) -> None:
    """Train as a run that is cut short: max_iter stays what schedules see."""

    class Cut(Exception):
        pass

    def step() -> None:
        if trainer.iter == iterations:
            raise Cut
        type(trainer).run_step(trainer)

    trainer.run_step = step
    with pytest.raises(Cut):
        trainer.train()


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_only_the_path_moves(kind: str, tmp_path: Path) -> None:
    """Weight decay and momentum included: the second step finds momentum from the first."""
    options = ["MODEL.CRNAS.SUPERNET", kind, "SOLVER.WARMUP_FACTOR", 1.0]
    options += ["SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_NORM", 0.1]
    trainer = trainer_of(tmp_path / "data", tmp_path / "out", *options)
    supernet = find_supernet(trainer.model)
    sampler = trainer._hooks[0]
    with EventStorage(0) as trainer.storage:
        for trainer.iter in range(4):
            trainer._trainer.iter = trainer.iter
            sampler.before_step()
            before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
            path = supernet.path
            assert path == supernet.space.sample(trainer.cfg.SEED, trainer.iter)
            trainer.run_step()
            off_path = supernet.state_dict().keys() - supernet.subnet_keys(path).keys()
            on_path = before.keys() - {f"backbone.bottom_up.{key}" for key in off_path}
            after = trainer.model.state_dict()
            moved = {key for key in before if not torch.equal(before[key], after[key])}
            assert moved <= on_path
            parameters = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
            assert moved & parameters == on_path & parameters


def test_one_group_a_setting_steps_like_detectron2s(tmp_path: Path) -> None:
    """Merged groups change nothing: equal to detectron2's own optimizer, norm decay apart."""
    overrides = ["SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_NORM", 0.01]
    stepped = []
    for build in (DetectionTrainer.build_optimizer, build_optimizer):
        trainer = trainer_of(tmp_path / "data", tmp_path / build.__module__, *overrides)
        optimizer = build(trainer.cfg, trainer.model)
        for parameter in trainer.model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()
        optimizer.step()
        stepped.append([p.detach() for p in trainer.model.parameters()])
        if build is DetectionTrainer.build_optimizer:
            assert len(optimizer.param_groups) == 2
    assert all(torch.equal(a, b) for a, b in zip(*stepped))


RESUMED = {
    "fixed": [],
    "stage": ["MODEL.CRNAS.SUPERNET", "stage"],
    "dilation": ["MODEL.CRNAS.SUPERNET", "dilation"],
    "RetinaNet": HEADS["RetinaNet"],  # divides losses by a running mean that is no buffer of the model
}


@pytest.mark.parametrize("kind", RESUMED)
@pytest.mark.parametrize("cut", [3, 5])
def test_a_resumed_run_is_the_same_run(kind: str, cut: int, tmp_path: Path) -> None:
    """Cut after a checkpoint and one step beyond it; bit-exact weights."""
    options = [*RESUMED[kind], "DATASETS.TEST_JSON", "", "DATASETS.TEST_IMAGES", ""]
    whole = trainer_of(tmp_path / "data", tmp_path / "whole", *options)
    whole.train()
    stop_after(trainer_of(tmp_path / "data", tmp_path / "cut", *options), cut)
    torch.manual_seed(cut)  # the global random state of the second process is another
    resumed = trainer_of(tmp_path / "data", tmp_path / "cut", *options)
    assert resumed.start_iter == cut - 1  # checkpoints after iterations 2, 4, 6
    resumed.train()
    assert_same_weights(resumed.model.state_dict(), whole.model.state_dict())


def test_the_seed_decides(tmp_path: Path) -> None:
    def first_weights(seed: int) -> torch.Tensor:
        trainer = trainer_of(tmp_path / "data", tmp_path / str(seed), "SEED", seed)
        return next(p.detach() for p in trainer.model.parameters() if p.dim() == 4)

    assert torch.equal(first_weights(1), first_weights(1))
    assert not torch.equal(first_weights(1), first_weights(2))


def test_random_draws_are_functions_of_seed_iteration_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's inside a step, whatever was drawn before it; two passes draw one after the other."""

    class Drawing(torch.nn.Linear):
        def forward(self, data: Any) -> dict[str, torch.Tensor]:
            drawn.append(torch.rand(()).item())
            return {"loss": self.weight.sum()}

    def draw(seed: int, iteration: int, rank: int) -> list[float]:
        drawn.clear()
        model = Drawing(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = StepTrainer(model, [[{}, {}]], optimizer, seed=seed, amp=False, passes=2)
        trainer.iter = iteration
        monkeypatch.setattr(trainer_module.comm, "get_rank", lambda: rank)
        with EventStorage(0):
            trainer.run_step()
        return list(drawn)

    drawn: list[float] = []
    places = [(0, 5, 0), (1, 5, 0), (0, 6, 0), (0, 5, 1)]
    first = [draw(*place) for place in places]
    assert len({number for numbers in first for number in numbers}) == 2 * len(places)
    assert [draw(*place) for place in places[::-1]] == first[::-1]


def test_an_error_before_training_is_not_hidden(tmp_path: Path) -> None:
    """Of a hook that starts before the progress bar does."""

    class Failing(HookBase):
        def before_train(self) -> None:
            raise LookupError("the real one")

    trainer = trainer_of(tmp_path / "data", tmp_path / "out")
    trainer._hooks.insert(0, Failing())
    with pytest.raises(LookupError, match="the real one"):
        trainer.train()


@pytest.mark.parametrize(("kind", "key"), [("stage", "TEST.PRECISE_BN"), ("", "MODEL.CRNAS.SUPERNET")])
def test_what_a_supernets_trainer_refuses(kind: str, key: str, tmp_path: Path) -> None:
    options = ["MODEL.CRNAS.SUPERNET", kind, "TEST.PRECISE_BN.ENABLED", True]
    with pytest.raises(InputError, match=f"^{key}"):
        SupernetTrainer(tiny_config(tmp_path / "data", tmp_path / "out", *options))


def test_training_leaves_its_memory_to_scoring(tmp_path: Path) -> None:
    """Gradients and momentum are gone when the scorer is built; the momentum is in the checkpoint."""

    class Seen(Exception):
        pass

    def search(detector: torch.nn.Module) -> Any:
        assert not trainer.optimizer.state
        assert all(parameter.grad is None for parameter in detector.parameters())
        raise Seen

    trainer = trainer_of(tmp_path / "data", tmp_path / "out", "MODEL.CRNAS.SUPERNET", "stage")
    trainer.register_hooks([SearchHook(search)])
    with pytest.raises(Seen):
        trainer.train()
    last = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert last["trainer"]["_trainer"]["optimizer"]["state"]


@pytest.mark.parametrize(("allowed", "perfect", "half"), [(100, 44.55, 44.55), (300, 100.0, 48.51)])
def test_ap_counts_as_many_detections_as_an_image_may_have(
    allowed: int, perfect: float, half: float, tmp_path: Path
) -> None:
    """A picture with 225 objects (case 08); all of them are found, and 110."""
    squares = [[40.0 * (i % 25), 40.0 * (i // 25), 20.0, 20.0] for i in range(225)]
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 400.0}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 400, "width": 1000}],
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "other"}],
        "annotations": [{"id": i, "bbox": box, **common} for i, box in enumerate(squares)],
    }
    path = tmp_path / "many.json"
    path.write_text(json.dumps(content))
    register_coco(str(path), str(path), str(tmp_path))
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", "TEST.DETECTIONS_PER_IMAGE", allowed)
    evaluator = DetectionTrainer.build_evaluator(cfg, str(path))
    for count, expected in ((225, perfect), (110, half)):
        found = Instances((400, 1000))
        corners = torch.tensor(squares[:count])
        corners[:, 2:] += corners[:, :2]
        found.pred_boxes, found.scores = Boxes(corners), torch.linspace(0.9, 0.1, count)
        found.pred_classes = torch.zeros(count, dtype=torch.int64)
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [{"instances": found}])
        results = evaluator.evaluate()["bbox"]
        for metric in ("AP", "AP50", "AP75", "APs", "AP-square"):
            assert results[metric] == pytest.approx(expected, abs=0.01), metric
