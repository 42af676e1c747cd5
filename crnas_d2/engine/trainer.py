"""DetectionTrainer: detectron2's DefaultTrainer whose run is a function of the seed.
SupernetTrainer: the same, on a supernet, with one path sampled an iteration.

What differs from DefaultTrainer: batches, augmentation, the draws in the losses and the initial
weights are functions of (seed, iteration, image), so that a resumed run is the same run; gradients
are averaged for the parameters that have one, without DistributedDataParallel, so that a step costs
what the sampled subnet alone would cost; checkpoints appear whole or not at all.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from crnas_d2.data.loader import TrainLoader, build_train_loader
from crnas_d2.engine.checkpoint import SafeCheckpointer
from crnas_d2.engine.draws import seeded_draws
from crnas_d2.engine.gradients import average_gradients, broadcast_model, path_only
from crnas_d2.engine.hooks import PathSampler, ProgressBar
from crnas_d2.errors import InputError
from crnas_d2.modeling.supernet import find_supernet
from crnas_d2.modeling.weights import check_backbone_weights
from crnas_d2.seeding import derive_seed
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.evaluation import COCOEvaluator
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm


def seed_of(cfg: CfgNode) -> int:
    """The seed of a run; detectron2's -1 (draw one) is read as 0, so that runs can be resumed."""
    return max(cfg.SEED, 0)


class StepTrainer(SimpleTrainer):
    """One training step: forward, backward, average, step.

    Args:
        seed: of the draws in the losses.
        amp: mixed precision, on a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: TrainLoader,
        optimizer: torch.optim.Optimizer,
        seed: int,
        amp: bool,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._seed = seed
        self._amp = amp
        self._scaler = torch.amp.GradScaler("cuda", enabled=amp)

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        images = [record["image_id"] for record in data]
        with seeded_draws(self._seed, self.iter, images), torch.autocast("cuda", enabled=self._amp):
            loss_dict = self.model(data)
        # No gradient at all, instead of zeros: the optimizer then passes over a parameter, and
        # neither weight decay nor momentum moves what is off the path.
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(sum(loss_dict.values())).backward()
        average_gradients(self.model.parameters())
        self._write_metrics(loss_dict, data_time)
        with path_only(self.optimizer):
            self._scaler.step(self.optimizer)
        self._scaler.update()

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
    """DefaultTrainer for any detector, resumable to the bit; see the module's docstring."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own would wrap the model for DDP
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        seed = seed_of(cfg)
        torch.manual_seed(derive_seed(seed, "init"))
        model = self.build_model(cfg)
        broadcast_model(model)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._trainer = StepTrainer(model, loader, optimizer, seed, cfg.SOLVER.AMP.ENABLED)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
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

    def train(self) -> Any:
        self.data_loader.start_iteration = self.start_iter
        return super().train()

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
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        return COCOEvaluator(dataset_name, output_dir=f"{cfg.OUTPUT_DIR}/inference")


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
        budgets = self.cfg.SEARCH.BUDGETS if self.cfg.SEARCH.SAMPLING == "eligible" else ()
        sampler = PathSampler(supernet, seed_of(self.cfg), budgets)
        kept = [h for h in super().build_hooks() if not isinstance(h, hooks.EvalHook)]
        return [sampler, *kept]

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer's, but weights of another space are refused."""
        path, key = self.cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS"
        if resume and self.checkpointer.has_checkpoint():
            path, key = self.checkpointer.get_checkpoint_file(), "--resume"
        if path.endswith(".pth"):
            check_backbone_weights(self.model.backbone, path, key)
        super().resume_or_load(resume)
