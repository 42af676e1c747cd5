"""Where the computation of networks is (paper, Figure 4): a box a block, its rate as a colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.patches import Patch, Rectangle

from crnas_d2.architecture import Architecture
from crnas_d2.report.figures import BLUE, GREY, ORANGE, Figure, drawing, legend

RATES = {0: (GREY, "rate 1"), 1: (BLUE, "rate 2"), 2: (ORANGE, "rate 3")}
GAP = 0.8  # between stages, in boxes


def sketch(networks: Mapping[str, Architecture], macs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Of networks by name, the first on top.

    ``macs``: of a network, by stage; their shares stand below the blocks. Empty: not known.
    """
    rows: list[dict[str, Any]] = []
    with drawing(0.7 + 0.75 * len(networks)) as (axes, drawn):
        widest = 0.0
        for line, (name, architecture) in enumerate(networks.items()):
            top, left = -1.9 * line, 0.0
            axes.text(0, top + 1.15, f"{name}: {architecture}", fontsize=7)
            groups = zip(architecture.stage_code, architecture.digits_by_stage())
            for stage, (depth, digits) in enumerate(groups, start=1):
                for block in range(depth):
                    digit = digits[block] if block < len(digits) else 0
                    box = Rectangle((left + block, top), 0.85, 0.8, color=RATES[digit][0], lw=0)
                    axes.add_patch(box)
                    rows.append(
                        {"network": name, "stage": stage, "block": block + 1, "rate": digit + 1}
                    )
                left += depth + GAP
            widest = max(widest, left - GAP)
            if shares := macs.get(name):
                total = sum(shares.values())
                text = " \u00b7 ".join(
                    f"{stage} {value / total:.0%}" for stage, value in shares.items()
                )
                rows += [{"network": name, "stage": stage, "macs": v} for stage, v in shares.items()]
                axes.text(0, top - 0.15, text, fontsize=7, va="top")
        axes.set_xlim(0, max(widest, 8))
        axes.set_ylim(-1.9 * len(networks) + 1.2, 1.7)
        axes.axis("off")
        used = {digit for architecture in networks.values() for digit in architecture.dilation_code}
        colours, labels = zip(*(RATES[digit] for digit in sorted(used)))
        legend(axes, handles=[Patch(color=colour) for colour in colours], labels=labels)
    caption = "a box for each block, by stage; below, the shares of the backbone's multiply-accumulates"
    return Figure("computation", caption, drawn.svg, rows)
