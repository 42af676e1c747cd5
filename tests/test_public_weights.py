"""MODEL.CRNAS.WEIGHTS: every network of a run starts from published ImageNet weights."""

from __future__ import annotations

import functools
import json
import logging
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from converting import MOBILENETV2, RESNET18, RESNET50, as_detectron2, pickled, reference_of, saved
from detectors import ROOT, command_line

from crnas_d2.config import read_config
from crnas_d2.engine.setup import train_config
from crnas_d2.engine.trainer import DetectionTrainer
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import architecture_of
from crnas_d2.modeling.checkpoint.published import read_source
from crnas_d2.modeling.checkpoint.weights import read_file
from crnas_d2.pipeline.found import write_found
from crnas_d2.pipeline.plan import plan_search
from crnas_d2.pipeline.run import run_search
from crnas_d2.report.page import write_report
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

OWN_DATA = ROOT / "configs" / "OwnData"
# By config: the network, a space around it that is quick to search, and torchvision's name of the first
# 3x3 convolution of the first stage.
CHAINS = {
    "r18": (RESNET18, [[1, 2], [2, 3], [2], [2]], "layer1.0.conv1.weight"),
    "r50": (RESNET50, [[2, 3], [4, 5], [6], [3]], "layer1.0.conv2.weight"),
    "mnv2": (
        MOBILENETV2,
        [[1], [1], [2], [3], [4], [2, 3], [3, 4], [1], [1], [1]],
        "features.2.conv.1.0.weight",
    ),
}
# Tiny pictures, few steps and few proposals.
SMALL = [
    *("DATALOADER.NUM_WORKERS", 0),
    *("INPUT.MIN_SIZE_TRAIN", [64], "INPUT.MAX_SIZE_TRAIN", 64),
    *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64),
    *("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", [], "SOLVER.BASE_LR", 1e-6, "SOLVER.IMS_PER_BATCH", 2),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 10, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("SEARCH.ARCHVAL.SIZE", 3, "SEARCH.EVAL.RECALIBRATION_IMAGES", 3),
    *("SEARCH.DILATION.TOP_K", 1),
    *("SEARCH.FINALISTS.NUM", 1, "SEARCH.FINALISTS.SEEDS", 1, "SEARCH.RETRAIN.SEEDS", 1),
]


def own_data(folder: Path) -> list[Any]:
    """fruits_nuts, as a person would name it."""
    return [
        *("DATASETS.TRAIN_JSON", f"{folder}/train.json", "DATASETS.TRAIN_IMAGES", f"{folder}/images"),
        *("DATASETS.TEST_JSON", f"{folder}/val.json", "DATASETS.TEST_IMAGES", f"{folder}/images"),
    ]


def arguments(config: str, *options: Any) -> Any:
    line = ["--config-file", str(OWN_DATA / f"{config}.yaml"), *command_line(list(options))]
    return default_argument_parser().parse_args(line)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[CfgNode, dict[str, torch.Tensor]]]:
    """The config and the weights of each training before its first step."""
    found = []
    train = DetectionTrainer.train

    def noted(trainer: DetectionTrainer) -> Any:
        found.append((trainer.cfg, {k: v.clone() for k, v in trainer.model.state_dict().items()}))
        return train(trainer)

    monkeypatch.setattr(DetectionTrainer, "train", noted)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("config", CHAINS)
def test_every_network_of_a_search_starts_from_them(
    config: str,
    tmp_path: Path,
    shared_data: Path,
    started: list[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, space, theirs = CHAINS[config]
    reference = reference_of(network)
    weights = saved({"state_dict": reference.state_dict()}, tmp_path, "resnet.pth")
    own = [*own_data(shared_data / "fruits_nuts"), *SMALL, "MODEL.CRNAS.WEIGHTS", weights]
    own += ["MODEL.CRNAS.STAGE_SPACE", space, "OUTPUT_DIR", str(tmp_path / "out")]
    caplog.set_level(logging.INFO)
    # Of random weights after one step every score may be 0, which ends a search.
    monkeypatch.setattr("crnas_d2.pipeline.search_hook.check_told_apart", lambda *_: None)
    run_search(plan_search(arguments(config, *own)), resume=False)

    out = tmp_path / "out"
    alone = {path.parent for path in (out / "trainings").glob("*/*/model_final.pth")}
    folders = {Path(cfg.OUTPUT_DIR) for cfg, _ in started}
    assert folders == alone | {out / "joint"} and {p.parent.name for p in alone} == {
        "archtrain_0",
        "train_0",
    }
    expected = reference.state_dict()[theirs]
    firsts: dict[str, tuple[CfgNode, dict[str, torch.Tensor]]] = {}  # the joint supernet starts twice
    for cfg, state in started:
        firsts.setdefault(cfg.OUTPUT_DIR, (cfg, state))
    for cfg, state in firsts.values():
        assert equal_in_res2(state, expected), cfg.OUTPUT_DIR
    assert caplog.text.count(f"blocks from those of {weights}, by position: stem <- stem, ") == 1 + len(
        alone
    )
    results = json.loads((out / "results.json").read_text())
    (verdict,) = results["verdicts"].values()
    assert verdict["weights"].endswith(f"; training started from {weights}")
    assert verdict["weights"] in write_report(out).read_text()

    # found.yaml is the searched network, with what the command line changed, and starts from them, too.
    found = yaml.safe_load((out / "found.yaml").read_text())
    assert found["MODEL"]["CRNAS"]["WEIGHTS"] == weights
    cfg = read_config(str(out / "found.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.EPOCHS, cfg.INPUT.MIN_SIZE_TEST) == (1, 0, 64)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3 and cfg.MODEL.ROI_BOX_HEAD.FC_DIM == 16


def equal_in_res2(state: dict[str, torch.Tensor], expected: torch.Tensor) -> list[str]:
    """Names of the weights of the first stage that are those of a file."""
    alike = {k: v for k, v in state.items() if "bottom_up.res2." in k and v.shape == expected.shape}
    return [name for name, value in alike.items() if torch.equal(value, expected)]


@pytest.mark.slow
def test_both_separate_supernets_start_from_them(
    tmp_path: Path, shared_data: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every branch of the stage supernet, and every rate of the dilation supernet of what won."""
    network, space, theirs = CHAINS["r18"]
    reference = reference_of(network)
    weights = saved(reference.state_dict(), tmp_path, "resnet.pth")
    own = [*own_data(shared_data / "fruits_nuts"), *SMALL, "MODEL.CRNAS.WEIGHTS", weights]
    own += ["MODEL.CRNAS.STAGE_SPACE", space, "OUTPUT_DIR", str(tmp_path / "out")]
    own += ["MODEL.CRNAS.SHARED", False, "SEARCH.JOINT", False, "SEARCH.FINALISTS.NUM", 0]
    own += ["SEARCH.PHASES", ("stage", "dilation")]
    monkeypatch.setattr("crnas_d2.pipeline.search_hook.check_told_apart", lambda *_: None)
    run_search(plan_search(arguments("r18", *own)), resume=False)
    first = reference.state_dict()[theirs]
    found = {Path(cfg.OUTPUT_DIR).name: len(equal_in_res2(state, first)) for cfg, state in started}
    assert found.keys() == {"stage", "dilation"} and found["stage"] == 2  # depths 1 and 2
    second = reference.state_dict()[theirs.replace("conv1", "conv2")]  # which takes the rate
    rates = [equal_in_res2(state, second) for cfg, state in started if "dilation" in cfg.OUTPUT_DIR]
    assert found["dilation"] == 1 and [len(names) for names in rates] == [3]


# ---- one training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return reference_of(RESNET18).state_dict()


def network_keys(folder: Path, *options: Any) -> list[Any]:
    return [*own_data(folder / "fruits_nuts"), *SMALL, "SEARCH.PHASES", ("stage",), *options]


@pytest.mark.parametrize("wrapped", ["bare", "module", "lightning", "detectron2", "safetensors"])
def test_a_training_starts_from_them(
    wrapped: str, source: dict[str, torch.Tensor], tmp_path: Path, shared_data: Path
) -> None:
    """The wrappings of torchvision's weights that people have."""
    if wrapped == "detectron2":
        content = {"model": as_detectron2(source), "__author__": "torchvision"}
        path = pickled(content, tmp_path)
    elif wrapped == "safetensors":
        save_file = pytest.importorskip("safetensors.torch").save_file
        path = str(tmp_path / "source.safetensors")
        save_file(source, path)
    else:
        content = {
            "bare": source,
            "module": {"state_dict": {f"module.{name}": value for name, value in source.items()}},
            "lightning": {"state_dict": {f"model.{name}": value for name, value in source.items()}},
        }[wrapped]
        path = saved(content, tmp_path)
    keys = network_keys(shared_data, "MODEL.CRNAS.WEIGHTS", path, "OUTPUT_DIR", str(tmp_path))
    trainer = DetectionTrainer(train_config(arguments("r18", *keys)))
    trainer.resume_or_load(resume=False)
    state = trainer.model.backbone.bottom_up.state_dict()
    assert torch.equal(state["res2.0.conv2.weight"], source["layer1.0.conv2.weight"])
    assert torch.equal(state["res5.1.conv2.norm.running_var"], source["layer4.1.bn2.running_var"])


def test_an_address(source: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: Any) -> None:
    """Fetched once; one that cannot be is a line."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    saved(source, tmp_path, "r18.pth")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/r18.pth"
        found = read_source(address, "MODEL.CRNAS.WEIGHTS")
        with pytest.raises(InputError, match=r"none\.pth: cannot be fetched \("):
            read_file(address.replace("r18", "none"), "MODEL.CRNAS.WEIGHTS")
        server.shutdown()
    assert found is not None


def test_model_weights_count_instead(
    source: dict[str, torch.Tensor], tmp_path: Path, shared_data: Path
) -> None:
    """A checkpoint of the very network, such as found.pth, even where found.yaml names the others."""
    path = saved(source, tmp_path)
    options = network_keys(shared_data, "MODEL.CRNAS.WEIGHTS", path, "OUTPUT_DIR", str(tmp_path))
    trainer = DetectionTrainer(train_config(arguments("r18", *options)))
    own = saved({"model": trainer.model.state_dict()}, tmp_path, "own.pth")
    again = DetectionTrainer(train_config(arguments("r18", *options, "MODEL.WEIGHTS", own, "SEED", 9)))
    again.resume_or_load(resume=False)
    expected = trainer.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in again.model.state_dict().items())


REFUSED = [
    pytest.param("r18", ["MODEL.CRNAS.WEIGHTS", "nowhere.pth"], "no such file", id="no file"),
    pytest.param("r50", [], "allowed are equal blocks, groups and widths", id="another family"),
    pytest.param(
        "r18", ["MODEL.CRNAS.WIDTH_MULTIPLIER", 0.5], "allowed are equal blocks", id="half width"
    ),
    pytest.param("mnv2", [], "mobilenetv2 takes 8", id="another kind"),
    pytest.param("r18", ["INPUT.FORMAT", "BGR"], "INPUT.FORMAT: 'BGR': the weights in", id="input"),
]


@pytest.mark.parametrize("script", [train_config, plan_search])
@pytest.mark.parametrize(("config", "options", "message"), REFUSED)
def test_what_does_not_fit_is_refused_before_the_start(
    script: Any,
    config: str,
    options: list[Any],
    message: str,
    source: dict[str, torch.Tensor],
    tmp_path: Path,
    shared_data: Path,
) -> None:
    path = saved(source, tmp_path)
    keys = network_keys(shared_data, "MODEL.CRNAS.WEIGHTS", path, *options)
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        script(arguments(config, *keys, "OUTPUT_DIR", str(out)))
    assert message in str(caught.value) and not out.exists()
    if "INPUT" not in message:
        assert str(caught.value).startswith("MODEL.CRNAS.WEIGHTS: ")


def test_of_a_backbone_of_detectron2s(shared_data: Path, tmp_path: Path) -> None:
    keys = network_keys(shared_data, "MODEL.CRNAS.WEIGHTS", saved({}, tmp_path))
    keys += ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 50]
    keys += ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]]
    with pytest.raises(InputError, match="is for our backbones only, not for 'build_resnet_fpn"):
        train_config(arguments("r18", *keys))


# ---- configs for own data ------------------------------------------------------------------------


@pytest.mark.parametrize("config", CHAINS)
def test_what_found_yaml_takes_over(config: str, tmp_path: Path) -> None:
    """What the command line changes in the network and its training, not in the search alone."""
    typed = ["SOLVER.MAX_ITER", 7, "MODEL.WEIGHTS", "supernet.pth", "DATASETS.TRAIN", ("bccd_train",)]
    typed += ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "SEARCH.FINALISTS.NUM", 1, "OUTPUT_DIR", "out"]
    base = str(OWN_DATA / f"{config}.yaml")
    cfg = read_config(base, typed)
    write_found(tmp_path / "found.yaml", cfg, base, architecture_of(cfg), "of a test")
    content = yaml.safe_load((tmp_path / "found.yaml").read_text())
    assert "SEARCH" not in content and "OUTPUT_DIR" not in content
    found = read_config(str(tmp_path / "found.yaml"))
    assert (found.SOLVER.MAX_ITER, found.SOLVER.EPOCHS, found.MODEL.WEIGHTS) == (7, 0, "")
    assert found.DATASETS.TRAIN == ("bccd_train",) and found.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert architecture_of(found) == architecture_of(cfg)


@pytest.mark.parametrize("config", CHAINS)
def test_an_interrupted_training_has_something_to_go_on_from(config: str) -> None:
    solver = read_config(str(OWN_DATA / f"{config}.yaml")).SOLVER
    assert solver.CHECKPOINT_PERIOD <= solver.MIN_ITER / 10
