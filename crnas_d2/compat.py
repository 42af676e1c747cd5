"""The two lines of detectron2 that crnas_d2 works with, and all that differs between them.

*Main* is what detectron2's repository has ("0.6"), *0.5* what the Python package index has; 0.5 (as the
tag v0.6 of 2021) cannot be imported without its compiled module `detectron2._C`. Our packages call
`prepare()` before they import detectron2.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

_HOW_TO_GET_IT = """\
crnas_d2 needs detectron2, which is not installed (a clone of its repository beside a script does not \
count). There are two ways to get it:
  1. current main, compiled, in an environment that has torch:
     pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'
  2. detectron2 0.5, with no compiler: `make env` in the source folder of crnas_d2 (the commands are
     in requirements/make_env.sh).
(crnas_d2.architecture, crnas_d2.space and crnas_d2.search work without it.)"""

_NOT_COMPILED = """\
detectron2._C.{name} was called, but this detectron2 has no compiled part (rotated boxes, deformable \
convolution, C++ COCO evaluation): use another one, or install a compiled detectron2 (current main)"""
# What default_setup() prints of `_C`.
_HOW_IT_WAS_BUILT = {"get_compiler_version": "none", "get_cuda_version": "none", "has_cuda": False}


def prepare() -> None:
    """Make the installed detectron2 importable: on 0.5 without `_C`, stand-ins go into `sys.modules`.

    Raises ImportError: no detectron2, or versions that do not work; the message says what to install.
    """
    spec = importlib.util.find_spec("detectron2")  # does not import it
    if spec is None or spec.origin is None:  # a mere folder has no origin
        raise ImportError(_HOW_TO_GET_IT, name="detectron2")
    folder = Path(spec.origin).parent
    with suppress(PackageNotFoundError):  # torch built from source, perhaps
        if _numbers(version("torch")) < (2, 3):  # the first with torch.amp.GradScaler
            raise ImportError(f"crnas_d2 needs torch 2.3 or later; here is {version('torch')}")
    # Of 0.5, detectron2.layers imports `_C` with no `try` around it. Without its source: main.
    path = folder / "layers" / "deform_conv.py"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not re.search(r"^from detectron2 import _C\b", text, re.MULTILINE):
        return
    import numpy
    import PIL

    # 0.5 fails in the middle of a run (np.bool) or at import (Image.LINEAR) with newer versions.
    for name, found, bad in (("numpy", numpy.__version__, "1.24"), ("Pillow", PIL.__version__, "10")):
        if _numbers(found) >= _numbers(bad):
            cure = f"pip install '{name}<{bad}', or install current detectron2 (main)"
            raise ImportError(f"detectron2 0.5 does not work with {name} {found}: {cure}")
    # importlib.util.find_spec imports detectron2; finders do not, also those of editable installs.
    finders = [finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec")]
    specs = [find("detectron2._C", [str(folder)]) for find in finders]
    if not any(spec and spec.loader for spec in specs):
        for name in ("detectron2._C", "detectron2.evaluation.fast_eval_api"):
            sys.modules.setdefault(name, _StandIn(name))


def create_local_process_group(num_per_machine: int) -> None:
    """Tell detectron2 which ranks share a machine; all ranks call it after init_process_group."""
    from detectron2.utils import comm

    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(num_per_machine)
    else:  # in 0.5 only launch() does it, which refuses to start without a GPU
        from torch.distributed import new_subgroups

        comm._LOCAL_PROCESS_GROUP, _ = new_subgroups(group_size=num_per_machine)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


class _StandIn(ModuleType):
    """A module whose attributes are made when they are first asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, loader=None, origin="stand-in of crnas_d2")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python and its tools look for __path__ and the like
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name == "COCOeval_opt":  # COCOEvaluator's default; main takes pycocotools as well
            from pycocotools.cocoeval import COCOeval

            return COCOeval

        def call(*args: object, **kwargs: object) -> object:
            if name in _HOW_IT_WAS_BUILT:
                return _HOW_IT_WAS_BUILT[name]
            raise RuntimeError(_NOT_COMPILED.format(name=name))

        return call
