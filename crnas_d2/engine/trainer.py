"""DetectionTrainer: DefaultTrainer for detectors and classifiers, whose run is a function of the seed.
SupernetTrainer: the same for a supernet, with one path sampled in each iteration.

Everything random is seeded by iteration, so that a resumed run is bit-exact; gradients are averaged for
the active path only, without DistributedDataParallel; a loss that is not finite ends all processes.
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from typing import Any

import torch
from torch import nn

from crnas_d2.architecture import Architecture
from crnas_d2.data.datasets import as_scored
from crnas_d2.data.imagenet import is_image_folder
from crnas_d2.data.loader import TrainLoader, build_test_loader, build_train_loader
from crnas_d2.engine.checkpoint import SafeCheckpointer
from crnas_d2.engine.gradients import average_gradients, broadcast_model, path_only
from crnas_d2.engine.hooks import PathSampler
from crnas_d2.engine.progress import progress_bar
from crnas_d2.engine.schedule import resolve_schedule
from crnas_d2.engine.setup import check_weights, published_weights
from crnas_d2.errors import Diverged, InputError, MemoryIsFull
from crnas_d2.evaluation.coco import DetectionEvaluator
from crnas_d2.evaluation.topk import TopKEvaluator
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.checkpoint.weights import below_neck
from crnas_d2.seeding import derive_seed
from crnas_d2.space import Space, StageSpace
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm


def seed_of(cfg: CfgNode) -> int:
    """The seed of a run; detectron2's -1 (draw one) is read as 0, so that runs can be resumed."""
    return max(cfg.SEED, 0)


class StepTrainer(SimpleTrainer):
    """One training step: forward and backward, once or more; average the gradients; optimize.

    ``passes``: parts of the batch that go through the network one by one; losses are means over images,
    so the step is that of the whole batch. ``amp``: mixed precision, on a GPU.
    """

    def __init__(self, *args: Any, seed: int, amp: bool, passes: int) -> None:
        super().__init__(*args)
        self._seed, self._amp, self._passes = seed, amp, passes
        self._parameters = list(self.model.parameters())  # a walk through a supernet takes milliseconds
        self._scaler = torch.amp.GradScaler("cuda", enabled=amp)

    def run_step(self) -> None:
        """Raises Diverged, on every process, before the step if the loss is not finite."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        torch.manual_seed(derive_seed(self._seed, "step", self.iter, comm.get_rank()))
        # None instead of zeros: the optimizer skips such a parameter, and neither weight decay nor
        # momentum moves what is off the path.
        self.optimizer.zero_grad(set_to_none=True)
        size = len(data) // self._passes
        of_passes = [self._backward(data[i * size : (i + 1) * size]) for i in range(self._passes)]
        losses = {key: sum(each[key] for each in of_passes) / self._passes for key in of_passes[0]}
        total = sum(losses.values())
        normalizer = total.new_tensor(self._normalizer or 0.0)
        average_gradients(self._parameters, total, normalizer)  # all processes judge the same loss
        if self._normalizer is not None:
            self.model.loss_normalizer = normalizer.item()  # one for all, as in the checkpoint
        if not math.isfinite(total):
            raise Diverged(f"the loss is {float(total)}")
        self._write_metrics(losses, data_time)
        with path_only(self.optimizer):
            self._scaler.step(self.optimizer)  # removes the scale from the gradients, then clips
        self._scaler.update()

    def _backward(self, data: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        with torch.autocast("cuda", enabled=self._amp):
            losses = self.model(data)
        self._scaler.scale(sum(losses.values()) / self._passes).backward()
        return {key: loss.detach() for key, loss in losses.items()}

    @property
    def _normalizer(self) -> float | None:
        """RetinaNet's running mean of positive anchors, a plain attribute that no state dict has."""
        return getattr(self.model, "loss_normalizer", None)

    def state_dict(self) -> dict[str, Any]:
        state = {"grad_scaler": self._scaler.state_dict(), "loss_normalizer": self._normalizer}
        return {**super().state_dict(), **state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict["grad_scaler"]:  # empty: saved without mixed precision
            self._scaler.load_state_dict(state_dict["grad_scaler"])
        if state_dict.get("loss_normalizer") is not None:
            self.model.loss_normalizer = state_dict["loss_normalizer"]


class DetectionTrainer(DefaultTrainer):
    """See the module's docstring; ``cfg`` has the schedule in iterations, even if given in epochs."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own would wrap the model for DDP
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        loader = self.build_train_loader(cfg)
        cfg = resolve_schedule(cfg, loader.num_images)
        seed, passes = seed_of(cfg), cfg.SOLVER.ACCUMULATE
        amp = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE.startswith("cuda")
        torch.manual_seed(derive_seed(seed, "init"))
        model = self.build_model(cfg)
        broadcast_model(model)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = StepTrainer(model, loader, optimizer, seed=seed, amp=amp, passes=passes)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(model, cfg, trainer=weakref.proxy(self))
        self.max_iter, self.cfg = cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    def state_dict(self) -> dict[str, Any]:
        # 0.5 leaves the optimizer out of the trainer's state; main has it there.
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @property
    def last_results(self) -> dict[str, dict[str, float]]:
        """Results of the evaluation at the end of training, by task; on rank 0."""
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer's, of what check_weights finds: a damaged checkpoint is passed over."""
        path, resumes = check_weights(self.cfg, resume)
        if not path and self.cfg.MODEL.CRNAS.WEIGHTS:
            state, origins = published_weights(self.cfg, self.model.backbone)
            below_neck(self.model.backbone).load_state_dict(state)
            blocks = ", ".join(f"{block} <- {origin}" for block, origin in origins.items())
            text = "blocks from those of %s, by position: %s"
            logging.getLogger(__name__).info(text, self.cfg.MODEL.CRNAS.WEIGHTS, blocks)
            return
        self.checkpointer.load(path, checkpointables=None if resumes else [])
        if resumes:
            self.start_iter = self.data_loader.start_iteration = self.iter + 1
            if self.start_iter >= self.max_iter and not path.endswith("model_final.pth"):
                self.checkpointer.save("model_final", iteration=self.iter)  # no step is left to do it

    def train(self) -> Any:
        """Raises FloatingPointError: naming iteration, a supernet's path, and the last checkpoint.

        Raises MemoryIsFull: naming them, and what to change.
        """
        try:
            return super().train()
        except (FloatingPointError, torch.cuda.OutOfMemoryError) as error:
            if self.iter >= self.max_iter:
                raise  # not from a step
            supernet, solver = find_supernet(self.model), self.cfg.SOLVER
            where = f"iteration {self.iter}" + (f", {supernet.path}" if supernet else "")
            if not isinstance(error, FloatingPointError):
                keys = f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} or INPUT's sizes"
                raise MemoryIsFull(
                    f"{where}: the GPU's memory is too small: lower {keys}, raise SOLVER.ACCUMULATE "
                    f"{solver.ACCUMULATE}, or set MODEL.CRNAS.RECOMPUTE True, which --resume may change"
                ) from error
            saved = self.checkpointer.has_checkpoint()
            last = self.checkpointer.get_checkpoint_file() if saved else "none"
            raise type(error)(f"{where}: {error}; last checkpoint: {last}") from error

    def before_train(self) -> None:
        self._bar = progress_bar(desc="training", total=self.max_iter, initial=self.start_iter)
        super().before_train()

    def after_step(self) -> None:
        super().after_step()
        if comm.is_main_process():
            self._bar.set_postfix(loss=self.storage.history("total_loss").latest(), refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """After an error without hooks: they need processes that may be gone."""
        self._bar.close()
        if self.iter >= self.max_iter:
            super().after_train()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """detectron2's, with one group for each (lr, weight decay); 0.5 has one for each parameter."""
        optimizer = super().build_optimizer(cfg, model)
        groups: dict[str, dict[str, Any]] = {}
        for group in optimizer.param_groups:
            parameters = group.pop("params")
            merged = groups.setdefault(repr(group), {**group, "params": []})
            merged["params"] += parameters
        optimizer.param_groups = list(groups.values())
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg, seed_of(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """By the kind of data set: top-k accuracy of labelled images, PASCAL VOC's AP, or COCO's."""
        if is_image_folder(dataset_name):
            return TopKEvaluator()
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        with as_scored(dataset_name) as scored:
            folder, most = f"{cfg.OUTPUT_DIR}/inference", cfg.TEST.DETECTIONS_PER_IMAGE
            task, metric = cfg.SEARCH.EVAL.TASK, cfg.SEARCH.EVAL.METRIC
            return DetectionEvaluator(scored, folder, most, task, metric)


class SupernetTrainer(DetectionTrainer):
    """Trains a supernet: one path an iteration, the same on every process; no test set is seen."""

    def build_hooks(self) -> list[HookBase]:
        supernet = find_supernet(self.model)
        if supernet is None:
            raise InputError("MODEL.CRNAS.SUPERNET: '': 'stage', 'dilation' or 'joint' is needed")
        codes = sampled_codes(self.cfg, supernet.space)
        others = [hook for hook in super().build_hooks() if not isinstance(hook, hooks.EvalHook)]
        return [PathSampler(supernet, seed_of(self.cfg), codes), *others]


def sampled_codes(cfg: CfgNode, space: Space) -> list[Architecture]:
    """The codes that paths are drawn from; empty: all of the space."""
    if not isinstance(space, StageSpace) or cfg.SEARCH.STAGE.SAMPLING != "eligible":
        return []
    return [code for budget in cfg.SEARCH.BUDGETS for code in space.eligible(budget)]
