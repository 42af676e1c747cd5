"""configs/LazyConfig: the network of a config of ours, and GETTING_STARTED.md's lines train it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectors import ROOT, tiny_shapes

from crnas_d2.config import read_config
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model

FILES = sorted((ROOT / "configs" / "LazyConfig").glob("*.py"))
SMALL = [
    "train.max_iter=2",
    "train.output_dir={}",
    "train.device=cpu",
    "dataloader.train.num_workers=0",
]
SMALL += ["dataloader.train.total_batch_size=2", "dataloader.train.dataset.names=shapes"]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_it_is_the_network_of_our_config(path: Path) -> None:
    """The names and shapes of its weights, and what it computes with the same ones."""
    ours = ROOT / "configs" / "COCO-Detection" / f"{path.stem}_1x.yaml"
    lazy = instantiate(LazyConfig.load(str(path)).model).eval()
    pairs = ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.FPN.NORM", "BN", "MODEL.CRNAS.NORM", "BN"]
    pairs += ["MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]], "MODEL.DEVICE", "cpu"]
    expected = build_model(read_config(str(ours), pairs)).eval()
    expected.load_state_dict(lazy.state_dict())
    image = torch.rand(3, 96, 128) * 255
    with torch.no_grad():
        (found,), (of_ours,) = lazy([{"image": image}]), expected([{"image": image}])
        assert torch.equal(
            lazy.backbone(image[None])["p4"], expected.backbone(image[None])["p4"]
        ) and torch.equal(found["instances"].scores, of_ours["instances"].scores)


def test_the_documents_lines_train_it(tmp_path: Path) -> None:
    tiny_shapes(tmp_path)
    text = (ROOT / "docs" / "GETTING_STARTED.md").read_text()
    (lines,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "LazyConfig" in b]
    overrides = ", ".join(map(repr, SMALL)).format(tmp_path / "out")
    lines = lines.replace('"train.max_iter=1200", "train.device=cuda"', overrides)
    assert overrides in lines
    place = f"{str(tmp_path / 'train.json')!r}, {str(tmp_path / 'images')!r}"
    data = "from crnas_d2.data.datasets import register_coco\n"
    data += f"register_coco('shapes', {place})\n"
    end = "print('trained', [v for v, _ in trainer.storage.history('total_loss').values()])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", data + lines + end],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\d\.\d+", done.stdout.partition("trained")[2])) == 2
    assert {"model_final.pth", "metrics.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
