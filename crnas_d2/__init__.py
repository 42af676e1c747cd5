"""crnas_d2: CR-NAS (Computation Reallocation for Object Detection, ICLR 2020) for Detectron2.

The pure core (``architecture``, ``space``, ``search``) imports without torch. All that another project
needs is ``add_crnas_config``: with it come our config keys, backbones and data sets.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["add_crnas_config"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import crnas_d2.space` needs neither torch nor detectron2.
    if name != "add_crnas_config":
        raise AttributeError(f"module 'crnas_d2' has no attribute {name!r}")
    from crnas_d2.config import add_crnas_config

    return add_crnas_config
