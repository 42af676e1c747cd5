"""Everything random in this project is a function of (seed, what, where): the path of an iteration, the
order of images, an image's augmentation. So every process agrees without communication, and a run that
is resumed is the same run.
"""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63), the same on every machine; ``parts``: as ``(seed, "path", iteration)``."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
