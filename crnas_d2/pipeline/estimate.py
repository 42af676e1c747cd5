"""How long a search will take on this machine, and what it needs: from a few timed steps and scores.

They run on a few images of the training set in a temporary folder, with random weights. On a GPU a step
is measured with its whole batch; on a CPU, where that may take a minute, with one image and with two,
and its time goes on from there in a straight line.
"""

from __future__ import annotations

import functools
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.data.coco_json import Record
from crnas_d2.data.datasets import register_coco
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.pipeline.configs import network_config, supernet_config
from crnas_d2.pipeline.course import SHARED, Work
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.scorer import Split, build_scorer
from crnas_d2.space import DilationSpace
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

IMAGES = 8  # that the steps are timed on
STEPS = {"cpu": 3, "cuda": 10}  # timed of each for its median; one before them allocates
GROUP = 4  # candidates that are scored together
SLOW = 5.0  # seconds; what takes longer the first time is not repeated on a CPU


class Estimate(NamedTuple):
    """Of what is left of a search."""

    works: list[tuple[Work, float]]  # with its seconds
    gpu_bytes: float | None  # of the largest training, in a process; None: not on a GPU
    disk_bytes: float  # of all checkpoints that will be there

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.works)

    def __str__(self) -> str:
        parts = ", ".join(f"{work.name} {shown(seconds)}" for work, seconds in self.works)
        text = f"about {shown(self.seconds)}: {parts}"
        if self.gpu_bytes is not None:
            has = torch.cuda.get_device_properties(0).total_memory
            text += f"; GPU memory {self.gpu_bytes / 1e9:.1f} of {has / 1e9:.1f} GB"
            if self.gpu_bytes > has:
                text += ", which is too little (docs/OWN_DATA.md: MODEL.CRNAS.RECOMPUTE True)"
        return f"{text}; checkpoints {self.disk_bytes / 1e9:.1f} GB"


def shown(seconds: float) -> str:
    """In the two largest of days, hours, minutes and seconds."""
    for size, name, smaller in ((86400, "d", 3600), (3600, "h", 60), (60, "min", 1)):
        if seconds >= size:
            rest = {3600: "h", 60: "min", 1: "s"}[smaller]
            return f"{seconds // size:.0f} {name} {seconds % size // smaller:.0f} {rest}"
    return f"{seconds:.0f} s"


def estimate(plan: Plan, works: Sequence[Work]) -> Estimate:
    """Of the course of a plan of rank 0, whose parts have not been written yet."""
    cfg, parts = plan.cfg, plan.parts
    assert parts is not None
    stages = _stage_codes(plan) if "stage" in cfg.SEARCH.PHASES else [architecture_of(cfg)]
    steps: dict[str, _Step] = {}  # by kind
    of_step, of_score, disk = {}, {}, 0.0
    with _few_images(plan) as (name, content):
        for work in works:
            supernet = supernet_config(cfg, work.kind, stages[0]) if work.kind else None
            run = _small(supernet or network_config(cfg, next(iter(plan.bases.values()))), name)
            if work.iterations:
                if work.kind not in steps:
                    steps[work.kind] = _Step.measured(run)
                of_step[work] = steps[work.kind]
                kept = (4 if work.kind else 1) * work.trainings  # checkpoints
                disk += kept * 8 * of_step[work].parameters  # float32, and its momentum
            else:
                group = stages if "stage" in work.name else _dilation_codes(stages[0])
                of_score[work] = _score_seconds(run, group, Split(name, name, content))
    each = min(of_score.values(), default=0.0)  # of an image that a network is tested on
    found = []
    for work in works:
        left = max(0, work.units - work.done)
        seconds = of_step[work].seconds if work in of_step else work.images * of_score[work]
        if work in of_step and not work.kind:
            seconds += len(parts["archval"]["images"]) * each / work.iterations
        found.append((work, left * seconds))
    on_gpu = [step.gpu_bytes for step in steps.values() if step.gpu_bytes is not None]
    return Estimate(found, max(on_gpu) if on_gpu else None, disk)


class _Step(NamedTuple):
    """One step of training with the batch of the config, in one process."""

    seconds: float
    gpu_bytes: float | None
    parameters: int

    @classmethod
    def measured(cls, cfg: CfgNode) -> _Step:
        """Of a supernet, time is the mean of its smallest and its largest path.

        On a GPU that an image does not fill, a line through one and two images would be far too steep.
        """
        batch, passes, small = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE, 1
        if cfg.MODEL.DEVICE.startswith("cuda"):
            try:
                return cls._with(cfg, batch, passes)
            except torch.cuda.OutOfMemoryError:
                pass  # then the line says how much would be needed
        try:
            one = cls._with(cfg, small)
        except ValueError:  # BatchNorm of one pixel needs another image
            small = 2
            one = cls._with(cfg, small)
        two = cls._with(cfg, 2 * small)
        # Another image costs at least a third of the first, which has what is done once.
        more = max(two.seconds - one.seconds, one.seconds / 3) / small
        memory = None
        if one.gpu_bytes is not None and two.gpu_bytes is not None:
            of_image = max(0.0, two.gpu_bytes - one.gpu_bytes) / small
            memory = one.gpu_bytes + (batch / passes - small) * of_image
        return cls(one.seconds + (batch - small) * more, memory, one.parameters)

    @classmethod
    def _with(cls, cfg: CfgNode, images: int, passes: int = 1) -> _Step:
        """Of a batch of so many images."""
        cfg = cfg.clone()
        cfg.defrost()
        workers, cfg.DATALOADER.NUM_WORKERS = cfg.DATALOADER.NUM_WORKERS, 0
        solver = cfg.SOLVER
        solver.IMS_PER_BATCH, solver.ACCUMULATE = images, passes
        # Weights hardly move, so that no loss diverges.
        solver.EPOCHS, solver.STEP_EPOCHS, solver.STEPS = 0, (), ()
        solver.LR_PER_IMAGE, solver.BASE_LR = 0.0, 1e-9
        cfg.freeze()
        _free_memory()
        on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer = (SupernetTrainer if cfg.MODEL.CRNAS.SUPERNET else DetectionTrainer)(cfg)
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        times = []
        for path in _ends(trainer):
            if path is not None:
                find_supernet(trainer.model).set_path(path)  # type: ignore[union-attr]
            times.append(_seconds_of(functools.partial(_step, trainer), on_gpu))
        seconds = sum(times) / len(times)
        if on_gpu and workers:  # they load meanwhile
            loading = _seconds_of(functools.partial(next, trainer._trainer._data_loader_iter), on_gpu)
            seconds = max(seconds - loading, loading / workers)
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        del trainer
        _free_memory()
        return cls(seconds, peak, parameters)


def _free_memory() -> None:
    """Trainers refer to themselves in a circle."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _step(trainer: DetectionTrainer) -> None:
    with EventStorage(0) as trainer.storage:
        trainer.run_step()


def _ends(trainer: DetectionTrainer) -> Sequence[Architecture | None]:
    """The smallest and the largest path of a supernet."""
    supernet = find_supernet(trainer.model)
    if supernet is None:
        return [None]
    alternatives = supernet.space.alternatives
    return [supernet.space.with_code([pick(values) for values in alternatives]) for pick in (min, max)]


def _seconds_of(work: Callable[[], object], on_gpu: bool) -> float:
    first, steps = _timed(work), STEPS["cuda" if on_gpu else "cpu"]
    if first > SLOW and not on_gpu:  # a GPU's first step loads its kernels
        return first
    return statistics.median(_timed(work) for _ in range(steps))


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _score_seconds(cfg: CfgNode, group: Sequence[Architecture], split: Split) -> float:
    """Of a candidate on an image, scored together with others; the first of them warms up.

    Where the first is slow, it is measured alone, and what candidates share is taken off.
    """
    cfg.SEARCH.EVAL.RECALIBRATION_IMAGES = min(IMAGES, cfg.SEARCH.EVAL.RECALIBRATION_IMAGES)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEARCH.EVAL.METRIC = "AP"  # so few images may have no object of one size
    cfg.freeze()
    model = SupernetTrainer.build_model(cfg)
    scorer = build_scorer(cfg, split, model)
    first, *others = group
    images = scorer.images[0] + cfg.SEARCH.EVAL.RECALIBRATION_IMAGES
    alone = _timed(lambda: scorer.detect([first], 0))
    if alone > SLOW:
        return SHARED * alone / images
    return _timed(lambda: scorer.detect(others, 0)) / (len(others) * images)


def _stage_codes(plan: Plan) -> list[Architecture]:
    """Neighbours in the order in which they are scored, from the middle of it."""
    budget, base = next(iter(plan.bases.items()))
    costs = backbone_costs(network_config(plan.cfg, base))
    codes = stage_space_of(plan.cfg).eligible(budget.without("latency"), costs)
    middle = max(0, len(codes) // 2 - GROUP)
    return codes[middle : middle + GROUP + 1] if len(codes) > 1 else 2 * codes


def _dilation_codes(code: Architecture) -> list[Architecture]:
    """A step of the greedy search, half way through."""
    space = DilationSpace(code.family, code.stage_code)
    kept = space.root
    while len(kept.dilation_code) < code.blocks // 2:
        kept = space.extensions(kept)[0]
    return [kept, *space.extensions(kept)]


def _small(cfg: CfgNode, name: str) -> CfgNode:
    """A copy on the few images, in their temporary folder; not frozen."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    cfg.OUTPUT_DIR = str(Path(MetadataCatalog.get(name).json_file).parent)
    return cfg


@contextmanager
def _few_images(plan: Plan) -> Iterator[tuple[str, Record]]:
    """Registered for a while: the first images of archtrain that have objects."""
    assert plan.parts is not None
    part = plan.parts["archtrain"]
    used = {a["image_id"] for a in part["annotations"] if not a["iscrowd"]}
    images = [image for image in part["images"] if image["id"] in used][:IMAGES]
    ids = {image["id"] for image in images}
    boxes = [a for a in part["annotations"] if a["image_id"] in ids]
    content = {**part, "images": images, "annotations": boxes}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "few.json")
        path.write_text(json.dumps(content), encoding="utf-8")
        name = f"few images in {folder}"
        register_coco(name, str(path), MetadataCatalog.get(plan.cfg.DATASETS.TRAIN[0]).image_root)
        try:
            yield name, content
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
