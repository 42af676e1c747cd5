"""The two lines of detectron2 that crnas_d2 works with, and all that differs between them.

The *main* line is detectron2 as its repository has it now ("0.6"). The *0.5* line is what the
Python package index has. They are told apart by what matters: the 0.5 line imports its compiled
module `detectron2._C` unconditionally, so that it cannot even be imported when nobody compiled it,
while main does without `_C` by itself. (The tag v0.6 of 2021 is like 0.5 in this.)

`prepare()` has to run before anything of detectron2 is imported. The packages of crnas_d2 that need
detectron2 call it at their top; scripts import crnas_d2 before detectron2.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

__all__ = ["create_local_process_group", "prepare"]

_HOW_TO_GET_IT = """\
crnas_d2 needs detectron2, and {problem}. There are two ways to get it:
  1. current main, compiled, in an environment that has torch:
     pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'
  2. detectron2 0.5, with no compiler: `make env` in the source folder of crnas_d2 makes a virtual
     environment with it; requirements/make_env.sh shows the commands.
(crnas_d2.architecture, crnas_d2.space and crnas_d2.search work without it.)"""

_NOT_COMPILED = (
    "detectron2._C.{name} was called, but this detectron2 was installed without its compiled part"
    " (rotated boxes, deformable convolution, its C++ COCO evaluation). Use another operation,"
    " or install a compiled detectron2 (current main)."
)


def prepare() -> None:
    """Makes the installed detectron2 importable, or says in one ImportError why it cannot be.

    On the 0.5 line without `_C` it puts stand-ins into `sys.modules`; everywhere else it changes
    nothing. A second call does nothing more.
    """
    folder = _package_folder()
    _check_torch()
    if not _is_05(folder):
        return
    _check_pins_of_05()
    if "detectron2._C" not in sys.modules and not _has_compiled_module(folder):
        sys.modules["detectron2._C"] = _stand_in_for_c()
        sys.modules.setdefault("detectron2.evaluation.fast_eval_api", _stand_in_for_fast_eval())


def create_local_process_group(num_per_machine: int) -> None:
    """Tells detectron2 which processes share this one's machine; needed after init_process_group.

    Ranks are numbered machine by machine, `num_per_machine` on each. All processes must call this
    together, once.
    """
    import torch.distributed as dist

    from detectron2.utils import comm

    world = comm.get_world_size()
    if num_per_machine < 1 or world % num_per_machine:
        raise ValueError(
            f"{num_per_machine} processes on each machine do not make {world} processes in all"
        )
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(num_per_machine)
    else:
        # In 0.5 only launch() does this, and it refuses to start without a GPU.
        comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(group_size=num_per_machine)


def _package_folder() -> Path:
    """Where detectron2 lies; found without importing it."""
    try:
        spec = importlib.util.find_spec("detectron2")
    except (ImportError, ValueError):  # somebody blocks it, or put it by hand into sys.modules
        spec = None
    if spec is None:
        raise ImportError(_HOW_TO_GET_IT.format(problem="it is not installed"), name="detectron2")
    if spec.origin is None:
        # A clone of the repository beside the script: to Python that is a namespace package.
        where = next(iter(spec.submodule_search_locations or ["?"]))
        problem = f"what is found under that name ({where}) is a folder, not an installed package"
        raise ImportError(_HOW_TO_GET_IT.format(problem=problem), name="detectron2")
    return Path(spec.origin).parent


def _is_05(folder: Path) -> bool:
    """Whether detectron2.layers imports `_C` with no `try` around it."""
    try:
        text = (folder / "layers" / "deform_conv.py").read_text(encoding="utf-8")
    except OSError:
        return False  # no source to look at: leave it as it is
    return re.search(r"^from detectron2 import _C\b", text, re.MULTILINE) is not None


def _has_compiled_module(folder: Path) -> bool:
    # find_spec("detectron2._C") would import detectron2; asking the finders for a file in the
    # package's folder does not, and knows every suffix (and editable installs that redirect).
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec and find_spec("detectron2._C", [str(folder)])
        if spec and spec.loader is not None:
            return True
    return False


def _check_torch() -> None:
    """torch.amp.GradScaler came with 2.3; nothing older was tried."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return  # built from source and put on the path, perhaps; importing it will tell
    if tuple(int(n) for n in re.findall(r"\d+", found)[:2]) < (2, 3):
        raise ImportError(f"crnas_d2 needs torch 2.3 or later; here is {found}")


def _check_pins_of_05() -> None:
    """detectron2 0.5 dies of these in the middle of a run (np.bool) or at import (Image.LINEAR)."""
    import numpy
    import PIL

    for name, found, first_bad in (
        ("numpy", numpy.__version__, (1, 24)),
        ("Pillow", PIL.__version__, (10,)),
    ):
        if tuple(int(n) for n in re.findall(r"\d+", found)[:2]) >= first_bad:
            pin = ".".join(str(n) for n in first_bad)
            raise ImportError(
                f"detectron2 0.5 does not work with {name} {found}: pip install '{name}<{pin}',"
                " or install current detectron2 (main)"
            )


def _stand_in(name: str, doc: str, attribute: Callable[[str], Any]) -> ModuleType:
    """A module whose attributes are made when somebody asks for them."""

    def getattr_(key: str) -> Any:
        # Python and its tools probe modules for names such as __path__: those are really not there.
        if key.startswith("__"):
            raise AttributeError(f"module {name!r} has no attribute {key!r}")
        return attribute(key)

    module = ModuleType(name, doc)
    module.__spec__ = ModuleSpec(name, loader=None, origin="stand-in of crnas_d2")
    module.__getattr__ = getattr_  # type: ignore[method-assign]
    return module


def _stand_in_for_c() -> ModuleType:
    # default_setup() of detectron2 prints how `_C` was built: these three are asked for there.
    facts: dict[str, Any] = {
        "get_compiler_version": lambda: "not compiled: stand-in of crnas_d2",
        "get_cuda_version": lambda: "not compiled: stand-in of crnas_d2",
        "has_cuda": lambda: False,
    }

    def attribute(name: str) -> Any:
        def refuse(*args: object, **kwargs: object) -> None:
            raise RuntimeError(_NOT_COMPILED.format(name=name))

        return facts.get(name, refuse)

    return _stand_in("detectron2._C", "Stands in for the compiled part of detectron2.", attribute)


def _stand_in_for_fast_eval() -> ModuleType:
    # COCOEvaluator takes its C++ evaluation by default. Main falls back to pycocotools when that is
    # not there: this gives 0.5 the same fallback (same numbers, slower), and plain scripts work.
    name = "detectron2.evaluation.fast_eval_api"

    def attribute(key: str) -> Any:
        if key != "COCOeval_opt":
            raise AttributeError(f"module {name!r} has no attribute {key!r}")
        from pycocotools.cocoeval import COCOeval

        return COCOeval

    return _stand_in(name, "Stands in for the C++ COCO evaluation: pycocotools.", attribute)
