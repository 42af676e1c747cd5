"""Who may import whom, who reads cfg, and what a script loads: the rules of docs/DESIGN.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "crnas_d2").rglob("*.py"))
}
PURE = ("architecture", "budget", "space", "seeding", "errors", "files", "search")
# By room: the rooms of crnas_d2 that it may import, beside itself and the pure ones except search.
ALLOWED = {
    **dict.fromkeys(PURE, ()),
    "compat": (),
    "modeling": ("compat",),
    "data": ("compat",),
    "evaluation": ("compat", "modeling"),
    "keys": ("modeling",),
    "config": ("data", "keys", "modeling"),
    "analysis": ("compat", "config", "modeling", "search"),
    "engine": ("compat", "config", "data", "evaluation", "keys", "modeling"),
    "launch": ("compat", "config"),
    "api": ("config", "engine", "modeling"),
    "report": ("analysis", "config", "data", "engine", "modeling", "pipeline", "search"),
    "pipeline": ("analysis", "config", "data", "engine", "evaluation", "launch", "modeling", "search"),
}
# The readers of cfg: config.py, the builders, the trainer and the scripts' part of the package.
READERS = (
    *("config", "engine", "pipeline", "launch", "modeling.build", "modeling.meta_arch.classifier"),
    *("data.datasets", "data.loader", "analysis.costs", "analysis.latency", "report"),
)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
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


def room(module: str) -> str:
    """The first name below crnas_d2: a folder or a file of its own."""
    return [*module.split("."), ""][1]


def imported_by(module: str) -> set[str]:
    path = MODULES[module]
    return set(imports(ast.parse(path.read_text()), module, path.name == "__init__.py"))


def within(name: str, parts: tuple[str, ...]) -> bool:
    return any(re.match(rf"crnas_d2\.{re.escape(part)}(\.|$)", name) for part in parts)


def test_every_room_has_its_rule() -> None:
    assert {room(module) for module in MODULES} - {""} == set(ALLOWED)
    assert all(any(within(module, (reader,)) for module in MODULES) for reader in READERS)


def test_rooms_import_what_they_may() -> None:
    for module in MODULES.keys() - {"crnas_d2"}:  # crnas_d2/__init__.py is lazy
        here = room(module)
        known = {here, *ALLOWED[here], *(set(PURE) - {"search"})}
        for name in imported_by(module):
            target = room(name) if name.startswith("crnas_d2.") else ""
            assert target not in ALLOWED.keys() - known, f"{module} imports {name}"


def test_the_pure_rooms_are_plain_python() -> None:
    """So they import without torch and detectron2, which test_compat.py tries."""
    for module in MODULES:
        for name in imported_by(module) if room(module) in PURE else ():
            known = name.split(".")[0] in sys.stdlib_module_names or name == "crnas_d2"
            assert known or within(name, PURE), f"{module} imports {name}"


def keys_read(tree: ast.AST) -> set[str]:
    """Dotted keys that are read from, or written to, something called cfg."""
    return {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Attribute, ast.Subscript))
        and isinstance(node.value, ast.Name)
        and node.value.id in ("cfg", "_C")
    }


def test_cfg_is_read_where_it_may_be() -> None:
    for module, path in MODULES.items():
        assert within(module, READERS) or not keys_read(ast.parse(path.read_text())), module


def test_modeling_reads_no_key_of_the_search() -> None:
    for module, path in MODULES.items():
        if room(module) == "modeling":
            assert "cfg.SEARCH" not in keys_read(ast.parse(path.read_text())), module


def test_the_checks_see_what_they_should() -> None:
    """Every way to import, and to read a key."""
    code = """
import torch.nn as nn
from crnas_d2 import engine
from ..data import splits
from . import build
def f(cfg):
    from crnas_d2.search.greedy import greedy_search
"""
    assert set(imports(ast.parse(code), "crnas_d2.modeling.family", is_package=False)) == {
        "torch.nn",
        *("crnas_d2", "crnas_d2.engine"),
        *("crnas_d2.data", "crnas_d2.data.splits"),
        *("crnas_d2.modeling", "crnas_d2.modeling.build"),
        *("crnas_d2.search.greedy", "crnas_d2.search.greedy.greedy_search"),
    }
    inside = set(imports(ast.parse("from . import a"), "crnas_d2.modeling", is_package=True))
    assert inside == {"crnas_d2.modeling", "crnas_d2.modeling.a"}
    assert keys_read(ast.parse("x = cfg.MODEL.DEVICE")) == {"cfg.MODEL"}
    assert keys_read(ast.parse("x = cfg['SEED']"))
    assert not keys_read(ast.parse("f(cfg)"))


def test_train_net_loads_neither_the_pipeline_nor_a_search() -> None:
    """On a fixed network, up to its built trainer's classes."""
    code = """
import sys
import train_net
from crnas_d2.config import read_config
cfg = read_config("configs/BCCD/faster_rcnn_R_50.yaml", ["MODEL.DEVICE", "cpu"])
train_net.DetectionTrainer.build_model(cfg)
print(sorted(name for name in sys.modules if name.startswith("crnas_d2")))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout.splitlines()[-1])
    assert "crnas_d2.engine.trainer" in loaded
    assert not [name for name in loaded if within(name, ("pipeline", "search", "analysis"))]
