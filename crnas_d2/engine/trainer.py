"""DetectionTrainer: DefaultTrainer, for detectors and classifiers, whose run is a function of the seed.
SupernetTrainer: the same, on a supernet, with one path sampled an iteration.

What differs from DefaultTrainer: batches, augmentation, the draws in the losses and the initial
weights are functions of (seed, iteration, image), so that a resumed run is the same run; gradients
are averaged for the parameters that have one, without DistributedDataParallel, so that a step costs
what the sampled subnet alone would cost; checkpoints appear whole or not at all; a loss that is not
finite ends training on all processes together.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from crnas_d2.data.datasets import as_scored
from crnas_d2.data.imagenet import is_image_folder
from crnas_d2.data.loader import TrainLoader, build_test_loader, build_train_loader
from crnas_d2.engine.checkpoint import SafeCheckpointer
from crnas_d2.engine.draws import seeded_draws
from crnas_d2.engine.gradients import average, broadcast_model, path_only
from crnas_d2.engine.hooks import PathSampler, ProgressBar
from crnas_d2.engine.schedule import resolve_schedule
from crnas_d2.errors import InputError
from crnas_d2.evaluation.topk import TopKEvaluator
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.build import architecture_of, input_convention
from crnas_d2.modeling.checkpoint.weights import check_backbone_weights
from crnas_d2.seeding import derive_seed
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm


def seed_of(cfg: CfgNode) -> int:
    """The seed of a run; detectron2's -1 (draw one) is read as 0, so that runs can be resumed."""
    return max(cfg.SEED, 0)


class StepTrainer(SimpleTrainer):
    """One training step: forward and backward, once or more, average, step.

    Args:
        seed: of the draws in the losses.
        amp: mixed precision, on a GPU.
        passes: parts of the batch that go through the network one after another, so that a large batch
            fits; the losses are means over images, so the step is that of the whole batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: TrainLoader,
        optimizer: torch.optim.Optimizer,
        seed: int,
        amp: bool,
        passes: int,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._seed = seed
        self._amp = amp
        self._passes = passes
        self._parameters = list(model.parameters())  # to find them takes milliseconds of every step
        self._scaler = torch.amp.GradScaler("cuda", enabled=amp)

    def run_step(self) -> None:
        """Raises FloatingPointError, on every process, before the step if the loss is not finite."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        # No gradient at all, instead of zeros: the optimizer then passes over a parameter, and
        # neither weight decay nor momentum moves what is off the path.
        self.optimizer.zero_grad(set_to_none=True)
        size = len(data) // self._passes
        of_passes = [self._backward(data[i * size : (i + 1) * size]) for i in range(self._passes)]
        losses = {key: sum(each[key] for each in of_passes) / self._passes for key in of_passes[0]}
        total = sum(losses.values())
        # The loss travels with the gradients, so that all processes judge the same number.
        average([total, *(p.grad for p in self._parameters if p.grad is not None)])
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {float(total)}")
        self._write_metrics(losses, data_time)
        with path_only(self.optimizer):
            self._scaler.step(self.optimizer)  # takes the scale off the gradients, then clips
        self._scaler.update()

    def _backward(self, data: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = [record["image_id"] for record in data]
        with seeded_draws(self._seed, self.iter, images), torch.autocast("cuda", enabled=self._amp):
            losses = self.model(data)
        self._scaler.scale(sum(losses.values()) / self._passes).backward()
        return {key: loss.detach() for key, loss in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "grad_scaler": self._scaler.state_dict()}
        # RetinaNet's running mean of positive anchors is a plain attribute of the model.
        if hasattr(self.model, "loss_normalizer"):
            state["loss_normalizer"] = float(self.model.loss_normalizer)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._scaler.load_state_dict(state_dict["grad_scaler"])
        if "loss_normalizer" in state_dict:
            self.model.loss_normalizer = state_dict["loss_normalizer"]


def parameter_groups(params: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """detectron2's one group a parameter, joined to one group a distinct setting (lr, decay)."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group in params:
        setting = {key: value for key, value in group.items() if key != "params"}
        joined = groups.setdefault(tuple(sorted(setting.items())), {**setting, "params": []})
        joined["params"].extend(group["params"])
    return list(groups.values())


class DetectionTrainer(DefaultTrainer):
    """DefaultTrainer for detectors and classifiers, resumable to the bit; see the module's docstring.

    Attributes:
        cfg: with the schedule in iterations, where it was given in epochs.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own would wrap the model for DDP
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        loader = self.build_train_loader(cfg)
        cfg = resolve_schedule(cfg, loader.num_images)
        seed = seed_of(cfg)
        torch.manual_seed(derive_seed(seed, "init"))
        model = self.build_model(cfg)
        broadcast_model(model)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = StepTrainer(
            model, loader, optimizer, seed, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.ACCUMULATE
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            model, cfg.OUTPUT_DIR, input_convention(cfg), trainer=weakref.proxy(self)
        )
        ours = "crnas" in cfg.MODEL.BACKBONE.NAME
        self._network = str(architecture_of(cfg)) if ours else cfg.MODEL.META_ARCHITECTURE
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def state_dict(self) -> dict[str, Any]:
        # 0.5 leaves the optimizer out of the trainer's state; both lines agree this way.
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    def build_hooks(self) -> list[HookBase]:
        found = [*super().build_hooks(), ProgressBar()]
        return [hook for hook in found if hook is not None]

    @property
    def last_results(self) -> dict[str, dict[str, float]]:
        """What the evaluation at the end of training found, by task; on rank 0."""
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer's, but weights of another network, space or input are refused, and a
        damaged checkpoint is passed over."""
        resume = resume and self.checkpointer.has_checkpoint()
        path, key = self.cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS"
        if resume:
            path, key = self.checkpointer.get_checkpoint_file(), "--resume"
        if path and "crnas" in self.cfg.MODEL.BACKBONE.NAME:
            check_backbone_weights(self.model.backbone, path, key, input_convention(self.cfg))
        self.checkpointer.load(path, checkpointables=None if resume else [])
        if resume:
            self.start_iter = self.iter + 1

    def train(self) -> Any:
        self.data_loader.start_iteration = self.start_iter
        return super().train()

    def run_step(self) -> None:
        with self._naming_what_diverges():
            super().run_step()

    def after_step(self) -> None:
        with self._naming_what_diverges():
            super().after_step()

    @contextmanager
    def _naming_what_diverges(self) -> Iterator[None]:
        """Say where a FloatingPointError comes from and what is left."""
        try:
            yield
        except FloatingPointError as error:
            supernet, kept = find_supernet(self.model), "none"
            if self.checkpointer.has_checkpoint():
                kept = self.checkpointer.get_checkpoint_file()
            raise FloatingPointError(
                f"iteration {self.iter}, {supernet.path if supernet else self._network}: {error}; "
                f"last checkpoint: {kept}"
            ) from error

    def after_train(self) -> None:
        """After an error the bar alone: what other hooks do here needs processes that may be gone."""
        if self.iter >= self.max_iter:
            super().after_train()
            return
        for hook in self._hooks:
            if isinstance(hook, ProgressBar):
                hook.after_train()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """SGD as detectron2 sets it up, with one group for each distinct (lr, weight decay)."""
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
            parameter_groups(params),
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            nesterov=cfg.SOLVER.NESTEROV,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg, seed_of(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """By the data set's kind: top-k of classes, PASCAL VOC's AP, or else COCO's."""
        if is_image_folder(dataset_name):
            return TopKEvaluator()
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        with as_scored(dataset_name) as scored:
            return COCOEvaluator(scored, output_dir=f"{cfg.OUTPUT_DIR}/inference")


class SupernetTrainer(DetectionTrainer):
    """Trains a supernet: one path an iteration, the same on every process; no test set is seen."""

    def __init__(self, cfg: CfgNode) -> None:
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise InputError(
                "TEST.PRECISE_BN.ENABLED: True: allowed is False with a supernet, "
                "since it overwrites the statistics of layers off the path with zeros"
            )
        super().__init__(cfg)

    def build_hooks(self) -> list[HookBase]:
        supernet = find_supernet(self.model)
        if supernet is None:
            raise InputError(
                f"MODEL.CRNAS.SUPERNET: {self.cfg.MODEL.CRNAS.SUPERNET!r}: "
                "'stage' or 'dilation' is needed to train a supernet"
            )
        budgets = self.cfg.SEARCH.BUDGETS if self.cfg.SEARCH.STAGE.SAMPLING == "eligible" else ()
        sampler = PathSampler(supernet, seed_of(self.cfg), budgets)
        kept = [h for h in super().build_hooks() if not isinstance(h, hooks.EvalHook)]
        return [sampler, *kept]
