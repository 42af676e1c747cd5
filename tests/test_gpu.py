"""What a GPU has to prove: every body runs on the CPU here, and on CUDA where there is a GPU.

    python -m pytest -m gpu

A few bodies are about CUDA alone. Tolerances hold for float32 without TF32, which torch leaves off for
matrix products, and which is switched off for convolutions here.
"""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import (
    FAMILIES,
    ROOT,
    TINY,
    run_script,
    tiny_config,
    tiny_shapes,
    tiny_yaml,
)

from crnas_d2.config import read_config
from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.errors import MemoryIsFull
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.pipeline.estimate import _Step
from crnas_d2.pipeline.scorer import Split, build_scorer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_backbone, build_model

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    ],
)
anywhere = pytest.mark.parametrize("device", ["cpu", CUDA])
only_cuda = pytest.mark.parametrize("device", [CUDA])


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """float32 means float32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def config(folder: Path, device: str, *options: Any) -> CfgNode:
    return tiny_config(folder / "data", folder / "out", "MODEL.DEVICE", device, *options)


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.json").read_text().splitlines()
    return [json.loads(line)["total_loss"] for line in lines if "total_loss" in line]


def trained(cfg: CfgNode) -> DetectionTrainer:
    trainer = (SupernetTrainer if cfg.MODEL.CRNAS.SUPERNET else DetectionTrainer)(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer


@anywhere
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("supernet", ["", "joint"])
def test_a_training_moves_finite_weights(device: str, amp: bool, supernet: str, tmp_path: Path) -> None:
    options = ["SOLVER.AMP.ENABLED", amp, "MODEL.CRNAS.SUPERNET", supernet, "MODEL.CRNAS.SHARED", True]
    trainer = trained(config(tmp_path, device, *options))
    assert next(trainer.model.parameters()).device.type == device
    assert trainer._trainer._scaler.is_enabled() == (amp and device == "cuda")
    state = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["model"].values())


@anywhere
def test_a_step_is_the_cpus(device: str, tmp_path: Path) -> None:
    """The first losses of both devices, from the same weights and pictures."""
    found = []
    for name in ("cpu", device):
        cfg = config(tmp_path / name, name, "SOLVER.MAX_ITER", 1)
        torch.manual_seed(0)
        weights = build_model(read_config("", [*TINY, "MODEL.ROI_HEADS.NUM_CLASSES", 3])).state_dict()
        trainer = DetectionTrainer(cfg)
        trainer.model.load_state_dict(weights)
        trainer.train()
        found += losses(tmp_path / name / "out")
    # Draws of anchors and proposals come from generators of the device, so losses differ a little.
    assert found[1] == pytest.approx(found[0], rel=0 if device == "cpu" else 0.2)


@anywhere
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_cpus(device: str, family: str) -> None:
    """In channels_last, other kernels on every device; atol and rtol 1e-4: other orders of sums."""
    cfg = read_config("", [*TINY, *FAMILIES[family]])
    torch.manual_seed(0)
    backbone = build_backbone(cfg).eval()
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone(images)
        form = {"device": device, "memory_format": torch.channels_last}
        found = backbone.to(**form)(images.to(**form))
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-4, atol=1e-4)


@functools.cache
def _scored(folder: Path, device: str, *options: Any) -> tuple[list[float], list[torch.Tensor]]:
    """Of four paths the AP, and the statistics of all their layers."""
    cfg = config(folder, device, "MODEL.CRNAS.SUPERNET", "stage", *options)
    content = read_coco_json(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).json_file, "DATASETS.TRAIN")
    torch.manual_seed(0)
    model = build_model(cfg)
    weights = torch.load(folder / "weights.pth", weights_only=True)
    model.load_state_dict(weights)
    scorer = build_scorer(cfg, Split(cfg.DATASETS.TRAIN[0], cfg.DATASETS.TRAIN[0], content), model)
    supernet = find_supernet(model)
    assert supernet is not None
    codes = [supernet.space.sample(0, number) for number in range(4)]
    scorer.ensure(codes)
    layers = [torch.cat(of).cpu() for code in codes for of in scorer._statistics[code].values()]
    return [scores[0] for scores in scorer.scores(codes, 0)], layers


@pytest.fixture(scope="module")
def detecting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of a supernet that detects something, trained on the CPU."""
    folder = tmp_path_factory.mktemp("detecting")
    options = ["MODEL.CRNAS.SUPERNET", "stage", "SOLVER.MAX_ITER", 300, "SOLVER.BASE_LR", 0.03]
    options += ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"]
    cfg = tiny_config(folder / "data", folder / "trained", *options)
    torch.save(trained(cfg).model.state_dict(), folder / "weights.pth")
    return folder


@anywhere
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        pytest.param([], 0.1, id="float32"),
        pytest.param(["SEARCH.EVAL.CHANNELS_LAST", True], 0.1, id="channels_last"),
        pytest.param(["SEARCH.EVAL.AMP", "bf16"], 0.5, id="bf16"),
    ],
)
def test_scores_are_the_cpus(
    device: str, options: list[Any], tolerance: float, detecting: Path
) -> None:
    """In AP, and what a path is normalised by; a detection near a threshold may change sides."""
    expected, layers = _scored(detecting, "cpu")
    folder = detecting / f"{device}{options}"
    folder.mkdir(exist_ok=True)
    (folder / "weights.pth").write_bytes((detecting / "weights.pth").read_bytes())
    found, others = _scored(folder, device, *options)
    for one, other in zip(layers, others):
        assert (other - one).norm() < (0.05 if "bf16" in options else 1e-4) * one.norm()
    assert max(expected) > 2 * tolerance
    assert found == pytest.approx(expected, abs=tolerance)


@anywhere
def test_a_resumed_training_is_the_same(device: str, tmp_path: Path) -> None:
    """To the bit on the CPU; on a GPU some sums have no fixed order: losses to 1 %."""
    whole = config(tmp_path / "whole", device, "MODEL.CRNAS.SUPERNET", "stage")
    trained(whole)
    cut = config(tmp_path / "cut", device, "MODEL.CRNAS.SUPERNET", "stage")
    trainer = SupernetTrainer(cut)
    trainer.resume_or_load(resume=False)
    trainer.max_iter = 4
    trainer.train()
    (tmp_path / "cut" / "out" / "model_final.pth").unlink()
    (tmp_path / "cut" / "out" / "last_checkpoint").write_text("model_0000003.pth")
    trained(cut)
    folders = [tmp_path / name / "out" / "model_final.pth" for name in ("whole", "cut")]
    expected, found = (torch.load(path, weights_only=True)["model"] for path in folders)
    for name, value in expected.items():
        tolerance = 0 if device == "cpu" else 0.01
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


@anywhere
def test_a_search_from_end_to_end(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mixed precision on a GPU; in a process group of one, of NCCL or gloo."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**group, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    config_file = tiny_yaml(tmp_path / "tiny.yaml")
    options = [*tiny_shapes(tmp_path / "data"), "OUTPUT_DIR", "out", "MODEL.DEVICE", device]
    options += ["SOLVER.MAX_ITER", 60, "SOLVER.BASE_LR", 0.02, "SOLVER.AMP.ENABLED", device == "cuda"]
    options += ["MODEL.CRNAS.SHARED", True, "SEARCH.JOINT", True]
    line = ["--config-file", str(config_file), *options]
    said = run_script(str(ROOT / "search_net.py"), *line, folder=tmp_path)
    assert said.splitlines()[-1].startswith("written: out/found.yaml, out/found.pth")
    assert f"1 processes on {device}" in said
    line = ["--eval-only", "--config-file", "out/found.yaml", "MODEL.WEIGHTS", "out/found.pth"]
    line += ["MODEL.DEVICE", device, "OUTPUT_DIR", "tested"]
    assert "copypaste: Task: bbox" in run_script(str(ROOT / "train_net.py"), *line, folder=tmp_path)


@only_cuda
def test_recomputing_takes_less_of_the_gpus_memory(device: str) -> None:
    peaks = []
    for recompute in (False, True):
        options = ["MODEL.DEVICE", device, "MODEL.CRNAS.RECOMPUTE", recompute]
        widths = ["MODEL.CRNAS.STEM_CHANNELS", 32, "MODEL.CRNAS.WIDTHS", [32, 64, 128, 256]]
        backbone = build_backbone(read_config("", [*TINY, *options, *widths])).to(device)
        torch.cuda.reset_peak_memory_stats()
        loss = sum(out.mean() for out in backbone(torch.randn(4, 3, 512, 512, device=device)).values())
        loss.backward()
        peaks.append(torch.cuda.max_memory_allocated())
        del backbone, loss
    assert peaks[1] < 0.8 * peaks[0]


@only_cuda
def test_memory_is_foreseen(device: str, tmp_path: Path) -> None:
    """By the whole batch where it fits, and where it does not, that it does not."""
    options = ["SOLVER.IMS_PER_BATCH", 8, "INPUT.MIN_SIZE_TRAIN", [640], "INPUT.MAX_SIZE_TRAIN", 640]
    cfg = config(tmp_path, device, *options)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trained(cfg)
    peak = torch.cuda.max_memory_allocated()
    assert _Step.measured(cfg).gpu_bytes == pytest.approx(peak, rel=0.15)
    limit = 0.6 * peak
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        assert (_Step.measured(cfg).gpu_bytes or 0) > limit
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@only_cuda
def test_a_full_memory_ends_in_one_line(device: str, tmp_path: Path) -> None:
    options = ["SOLVER.IMS_PER_BATCH", 8, "INPUT.MIN_SIZE_TRAIN", [640], "INPUT.MAX_SIZE_TRAIN", 640]
    trainer = DetectionTrainer(config(tmp_path, device, *options))
    trainer.resume_or_load(resume=False)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64e6) / total)
    try:
        with pytest.raises(
            MemoryIsFull, match=r"^iteration 0: the GPU's memory is too small: lower SOLVER"
        ):
            trainer.train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
