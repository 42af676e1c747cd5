"""docs/EXTENDING.md: its family trains and searches as ours do, and its search climbs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from detectors import ROOT, TINY

from crnas_d2.architecture import FAMILY_STAGES, Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import read_config
from crnas_d2.modeling import build
from crnas_d2.search.journal import Candidate, ranked
from crnas_d2.space import BLOCK_COSTS, FAMILY_DEPTHS, StageSpace, block_costs
from detectron2.layers import ShapeSpec

TEXT = (ROOT / "docs" / "EXTENDING.md").read_text()


def block(name: str) -> dict[str, Any]:
    """What the document's code that defines ``name`` defines."""
    (source,) = [code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if name in code]
    found: dict[str, Any] = {}
    exec(source, found)
    return found


def test_the_three_lines_are_where_it_says() -> None:
    assert '"resnet_se": 4' in TEXT and '"resnet_se": lambda node: RESNET_SE' in TEXT
    sources = {
        "architecture.py": "FAMILY_STAGES",
        "space.py": "_RESNETS",
        "modeling/build.py": "FAMILIES",
        "keys.py": '"SEARCH.STAGE.METHOD"',
        "pipeline/search_hook.py": "def search_method",
        "data/datasets.py": '"composites"',
    }
    for path, name in sources.items():
        assert f"`{path}`" in TEXT and name in (ROOT / "crnas_d2" / path).read_text(), path


def test_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of its supernet computes what the subnet of the same weights does."""
    family = block("RESNET_SE")["RESNET_SE"]
    for entries in (FAMILY_STAGES, FAMILY_DEPTHS, BLOCK_COSTS):
        monkeypatch.setitem(entries, "resnet_se", entries["resnet_basic"])
    monkeypatch.setitem(build.FAMILIES, "resnet_se", lambda node: family)
    cfg = read_config("", [*TINY, "MODEL.CRNAS.SUPERNET", "joint", "MODEL.CRNAS.SHARED", True])
    cfg.MODEL.CRNAS.FAMILY = "resnet_se"
    stages = ("res2", "res3", "res4", "res5")
    supernet = build.build_bottom_up(cfg, ShapeSpec(channels=3), stages).eval()
    architecture = Architecture.parse("resnet_se/1-2-1-1/0-12-0-1")
    supernet.set_path(architecture)
    cfg.MODEL.CRNAS.SUPERNET = ""
    cfg.MODEL.CRNAS.STAGE_CODE = list(architecture.stage_code)
    cfg.MODEL.CRNAS.DILATION_CODE = list(architecture.dilation_code)
    network = build.build_bottom_up(cfg, ShapeSpec(channels=3), stages).eval()
    keys, state = supernet.subnet_keys(architecture), supernet.state_dict()
    network.load_state_dict({there: state[here] for here, there in keys.items()})
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(image), supernet(image), atol=1e-6, rtol=1e-5)
    assert network.res3[1].conv2.dilation == (3, 3)


def test_the_search() -> None:
    """Over scores that rise towards one code it ends there, as a plain loop does, and scores fewer."""
    space = StageSpace("resnet_basic", ((1, 2, 3, 4, 5),) * 4)
    budget, asked = Budget.parse(8), set()

    def score(architecture: Architecture) -> float:
        return -float(sum((a - b) ** 2 for a, b in zip(architecture.stage_code, (1, 1, 2, 4))))

    def costs(architecture: Architecture) -> dict[str, float]:
        return {**block_costs(architecture), "macs": 0.0}

    def compare(architectures: Any, keep: int) -> list[Candidate]:
        asked.update(architectures)
        return ranked(Candidate(a, score(a), costs(a)) for a in architectures)

    climbing = block("def climbing")["climbing"]
    codes = list(space.eligible(budget, costs))
    for seed in range(5):
        found = climbing(space, budget, compare, costs, seed)
        assert found[0].architecture == max(codes, key=score)
        assert [*found] == ranked(found) and len({c.architecture for c in found}) == len(found)
    asked.clear()
    climbing(space, budget, compare, costs, 0)
    assert len(asked) < len(codes)
