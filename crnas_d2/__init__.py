"""crnas_d2: CR-NAS (Computation Reallocation for Object Detection, ICLR 2020) for Detectron2.

The pure core (``architecture``, ``space``, ``search``) imports without torch. For other projects:

- ``add_crnas_config(cfg)``: with it come our config keys, backbones and data sets;
- ``build_backbone("resnet/1-3-5-7/0-010-00120-0102112")``: a backbone by its codes;
- ``load_found("run/found.yaml")``: a found detector with its weights;
- ``find(score)``: the paper's searches over a score of your own, without torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["add_crnas_config", "build_backbone", "find", "load_found"]
_PLACES = {"add_crnas_config": "config", "find": "search.own"}  # others: api


def __getattr__(name: str) -> Any:
    # Lazy, so that `import crnas_d2.space` needs neither torch nor detectron2.
    if name not in __all__:
        raise AttributeError(f"module 'crnas_d2' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crnas_d2.{_PLACES.get(name, 'api')}"), name)
