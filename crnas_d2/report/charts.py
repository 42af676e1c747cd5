"""How a search went, as figures: candidates, beams, races, losses, paths, and seeds of networks."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from crnas_d2.report.figures import BLUE, GREEN, GREY, INK, ORANGE, Figure, drawing, legend
from crnas_d2.report.folder import Search, Training, best_first
from crnas_d2.search.journal import open_digits

Row = Mapping[str, Any]
MANY = 100  # candidates, whose bars are drawn thinner
ERROR = "scores in the supernet; bars: standard error over images, without the supernet's own noise"


def seeds(
    name: str,
    caption: str,
    label: str,
    networks: Mapping[str, Sequence[float]],
    roles: Mapping[str, str],
) -> Figure:
    """Each network's scores, one a seed, and their mean; ``roles``: which are baseline and found."""
    with drawing(0.6 + 0.32 * len(networks)) as (axes, drawn):
        for place, (network, scores) in enumerate(networks.items()):
            colour = {"baseline": GREY, "found": ORANGE}.get(roles.get(network, ""), BLUE)
            axes.plot(scores, [place] * len(scores), "o", color=colour, alpha=0.7)
            axes.plot([sum(scores) / len(scores)] * 2, [place - 0.3, place + 0.3], color=colour, lw=2)
        axes.set_yticks(range(len(networks)), [name.partition("/")[2] or name for name in networks])
        axes.invert_yaxis()
        axes.set_xlabel(label)
    rows = [
        {"network": network, "role": roles.get(network, ""), "seed": seed, "score": score}
        for network, scores in networks.items()
        for seed, score in enumerate(scores)
    ]
    return Figure(name, caption, drawn.svg, rows)


def candidates(search: Search, label: str, kinds: Mapping[str, str]) -> Figure:
    """A strip of whole codes in order of their scores; ``kinds``: which are baseline or finalist."""
    whole = search.whole[::-1]
    many, is_there = len(whole) > MANY, {r["architecture"] for r in whole}
    size, line = (3, 0.4) if many else (4, 1)
    with drawing(2.6) as (axes, drawn):
        for kind, colour in (("", BLUE), ("finalist", ORANGE), ("baseline", INK)):
            at = [i for i, of in enumerate(whole) if kinds.get(of["architecture"], "") == kind]
            if at:
                scores, errors = ([whole[i].get(key, 0.0) for i in at] for key in ("score", "error"))
                label_of = {"": "other candidates", "finalist": "trained alone"}.get(kind, kind)
                mark = (
                    {"fmt": "D", "ms": 5, "zorder": 3}
                    if kind == "baseline"
                    else {"fmt": "o", "ms": size}
                )
                axes.errorbar(at, scores, errors, lw=line, color=colour, label=label_of, **mark)
                if kind == "baseline":
                    axes.axhline(scores[-1], color=colour, lw=0.6, ls="--")
        axes.set(xlabel="candidates, by their score", ylabel=f"{label} on archval")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
    keys = ("architecture", "score", "error", "macs", "params")
    rows = [
        {**{key: r.get(key) for key in keys}, "kind": kinds.get(r["architecture"], "")}
        for r in search.whole
    ]
    out = {name for name, kind in kinds.items() if kind == "baseline"} - is_there
    missing = "; the baseline is not among them" if out else ""
    caption = f"{search.name}: {len(whole)} whole codes that were scored{missing}; {ERROR}"
    return Figure(f"{search.name}_candidates", caption, drawn.svg, rows)


def beam(search: Search, label: str, top_k: int) -> Figure:
    """The greedy search, block by block: what was scored, and what was kept and grew.

    Without rate 1 everywhere that SEARCH.DILATION.EVIDENCE has scored: it grew from nothing.
    """
    steps: dict[int, list[dict[str, Any]]] = {}
    for record in search.records:
        digits = record["architecture"].rpartition("/")[2].replace("-", "").rstrip("_")
        steps.setdefault(len(digits), []).append({**record, "digits": digits})
    rows = []
    with drawing(2.6) as (axes, drawn):
        kept: dict[str, tuple[int, float]] = {}
        for step, found in sorted(steps.items()):
            parents, kept = kept, {}
            grown = [r for r in found if not parents or r["digits"].startswith(tuple(parents))]
            ranked = sorted(grown, key=best_first)
            for place, record in enumerate(ranked):
                is_kept, digits, score = place < top_k, record["digits"], record["score"]
                known = {"architecture": record["architecture"], "score": score}
                rows.append({"digits": step, **known, "error": record.get("error"), "kept": is_kept})
                colour, size = (ORANGE, 5) if is_kept else (GREY, 3)
                for parent, start in parents.items():
                    if is_kept and digits.startswith(parent):
                        axes.plot([start[0], step], [start[1], score], color=ORANGE, lw=1, alpha=0.6)
                axes.plot(step, score, "o", ms=size, color=colour)
                if is_kept:
                    kept[digits] = step, score
        axes.plot([], [], "o", ms=5, color=ORANGE, label=f"kept ({top_k} a block)")
        axes.plot([], [], "o", ms=3, color=GREY, label="others")
        axes.set(
            xlabel="blocks with a rate, from the first on",
            ylabel=f"{label} on archval",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
    caption = f"{search.name}: the beam in the supernet; blocks without a rate take all in turn"
    return Figure(f"{search.name}_beam", caption, drawn.svg, rows)


def race(search: Search) -> Figure:
    """How many candidates a race dropped after how many images."""
    counts = sorted(Counter(record["images"] for record in search.dropped).items())
    with drawing(1.8) as (axes, drawn):
        axes.bar([str(images) for images, _ in counts], [n for _, n in counts], color=BLUE)
        axes.set(xlabel="images of archval seen by then", ylabel="candidates dropped")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    caption = (
        f"{search.name}: {len(search.dropped)} candidates fell behind before they saw all of archval"
    )
    return Figure(f"{search.name}_race", caption, drawn.svg, search.dropped)


def losses(trainings: Sequence[Training]) -> Figure:
    """Of the supernets."""
    with drawing(2.2) as (axes, drawn):
        for training, colour in zip(trainings, itertools.cycle((BLUE, ORANGE, GREEN, GREY))):
            iterations, values = zip(*training.losses)
            axes.plot(iterations, values, lw=1, color=colour, label=training.folder.name)
        axes.set(xlabel="iteration", ylabel="total loss")
        axes.set_ylim(bottom=0)
        legend(axes)
    rows = [
        {"supernet": training.folder.name, "iteration": iteration, "total loss": value}
        for training in trainings
        for iteration, value in training.losses
    ]
    return Figure("losses", "loss of the supernets' paths", drawn.svg, rows)


def paths(supernet: str, position: str, kind: str, counts: Sequence[Mapping[int, int]]) -> Figure:
    """How often each alternative, a number of blocks or a digit, was sampled, by stage or block."""
    rows = [
        {position: place, "alternative": alternative, "times": times}
        for place, of in enumerate(counts, start=1)
        for alternative, times in sorted(of.items())
    ]
    alternatives = sorted({row["alternative"] for row in rows})
    places = {alternative: place for place, alternative in enumerate(alternatives)}
    most = max(row["times"] for row in rows)
    with drawing(0.7 + 0.25 * len(alternatives)) as (axes, drawn):
        for row in rows:
            x, y = row[position], places[row["alternative"]]
            box = Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=BLUE, lw=0)
            box.set_alpha(0.1 + 0.8 * row["times"] / most)
            axes.add_patch(box)
            if len(counts) <= 10:
                axes.text(x, y, row["times"], ha="center", va="center", fontsize=7)
        axes.set_yticks(range(len(alternatives)), list(map(str, alternatives)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=position, ylabel=kind)
        axes.set(xlim=(0.4, len(counts) + 0.6), ylim=(-0.6, len(alternatives) - 0.4))
    drawn_are = "each number of blocks" if kind == "blocks" else "each digit (rate 1, 2, 3)"
    caption = f"{supernet} supernet: how often training has drawn {drawn_are}"
    return Figure(f"{supernet}_paths_{kind}", caption, drawn.svg, rows)


def is_greedy(search: Search) -> bool:
    """Whether partial codes were compared."""
    return any(map(open_digits, search.records))
