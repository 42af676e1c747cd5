"""Who may import whom, and who may read cfg: the rules of the module map, held by reading imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "crnas_d2").rglob("*.py"))
}
PURE = ("architecture", "budget", "space", "seeding", "errors", "search")
# Layer: the parts of crnas_d2 that it must not import.
FORBIDDEN = {
    **{part: ("modeling", "engine", "data", "evaluation", "analysis", "config") for part in PURE},
    "modeling": ("search", "engine", "data", "evaluation", "analysis", "config"),
    "data": ("search", "engine", "modeling", "evaluation", "analysis", "config"),
    "evaluation": ("search", "engine", "data", "analysis", "config"),
    "analysis": ("engine",),  # it reads, it never trains
    "config": ("engine", "evaluation", "analysis"),
}
# The readers of cfg: the builders, the trainer and the scripts' part of the package.
READERS = (
    "crnas_d2.config",
    "crnas_d2.modeling.build",
    "crnas_d2.modeling.meta_arch.classifier",
    "crnas_d2.engine",
    "crnas_d2.data.datasets",
    "crnas_d2.data.loader",
    "crnas_d2.analysis.costs",
    "crnas_d2.analysis.latency",
)


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Full names of everything that the code imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imports_of(module: str) -> set[str]:
    path = SOURCES[module]
    return set(imported(ast.parse(path.read_text()), module, path.name == "__init__.py"))


def within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def modules_of(*parts: str) -> list[str]:
    return [m for m in SOURCES if within(m, tuple(f"crnas_d2.{part}" for part in parts))]


def reads_cfg(tree: ast.AST) -> bool:
    """Whether a key is read from something called cfg, or written to it."""
    return any(
        isinstance(node, (ast.Attribute, ast.Subscript))
        and isinstance(node.value, ast.Name)
        and node.value.id in ("cfg", "_C")
        for node in ast.walk(tree)
    )


def test_the_map_names_what_is_there() -> None:
    for part in FORBIDDEN:
        assert modules_of(part), part
    assert all(any(within(m, (reader,)) for m in SOURCES) for reader in READERS)


@pytest.mark.parametrize("module", modules_of(*PURE))
def test_the_core_is_plain_python(module: str) -> None:
    foreign = {
        name
        for name in imports_of(module)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not within(name, tuple(f"crnas_d2.{part}" for part in PURE))
    }
    assert not foreign


@pytest.mark.parametrize("module", modules_of(*FORBIDDEN))
def test_layers_do_not_look_up(module: str) -> None:
    layer = module.split(".")[1]
    forbidden = tuple(f"crnas_d2.{part}" for part in FORBIDDEN[layer])
    assert not {name for name in imports_of(module) if within(name, forbidden)}


@pytest.mark.parametrize("module", SOURCES)
def test_cfg_is_read_where_it_may_be(module: str) -> None:
    assert within(module, READERS) or not reads_cfg(ast.parse(SOURCES[module].read_text()))


def test_the_checks_see_what_they_should() -> None:
    """Every way to import, and to read a key."""
    code = """
import torch.nn as nn
from crnas_d2 import engine
from ..data import splits
from . import build
def f(cfg):
    from crnas_d2.search.greedy import TOP_K
"""
    assert set(imported(ast.parse(code), "crnas_d2.modeling.backbone.family", is_package=False)) == {
        "torch.nn",
        *("crnas_d2", "crnas_d2.engine"),
        *("crnas_d2.data", "crnas_d2.data.splits"),
        *("crnas_d2.modeling", "crnas_d2.modeling.build"),
        *("crnas_d2.search.greedy", "crnas_d2.search.greedy.TOP_K"),
    }
    inside = set(imported(ast.parse("from . import a"), "crnas_d2.modeling", is_package=True))
    assert inside == {"crnas_d2.modeling", "crnas_d2.modeling.a"}
    assert reads_cfg(ast.parse("x = cfg.MODEL.DEVICE"))
    assert reads_cfg(ast.parse("x = cfg['SEED']"))
    assert not reads_cfg(ast.parse("f(cfg)"))


def test_the_core_imports_without_torch_and_detectron2() -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "detectron2", "numpy", "fvcore", "yaml"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Blocked())
import crnas_d2, crnas_d2.space, crnas_d2.search.stage, crnas_d2.search.greedy
space = crnas_d2.space.StageSpace("resnet", crnas_d2.space.RESNET_DEPTHS)
assert len(space.eligible(8)) == 9
print(sorted({"torch", "detectron2", "numpy"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
