"""The sections of a report, in their order. answer.py has the first; the others say how it came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any

from crnas_d2.architecture import Architecture
from crnas_d2.config import leaves, read_config
from crnas_d2.engine.trainer import sampled_codes, seed_of
from crnas_d2.modeling.build import space_of
from crnas_d2.pipeline.estimate import shown
from crnas_d2.report import charts
from crnas_d2.report.answer import diverged, found, scores_alone
from crnas_d2.report.figures import Figure
from crnas_d2.report.folder import RunFolder, Search, Training, best_first
from crnas_d2.report.networks import Compared, macs_by_stage
from crnas_d2.report.parts import Section, Table
from crnas_d2.report.pictures import OBJECTS, THRESHOLD, Cannot, pictures
from crnas_d2.report.sketch import sketch
from crnas_d2.search.journal import open_digits
from crnas_d2.space import DilationSpace, JointSpace

Row = Mapping[str, Any]
Networks = Sequence[Compared]


# ---- where the computation went -------------------------------------------------------------------


def computation(run: RunFolder, networks: Networks) -> Section:
    section = Section()
    if not networks:
        section.text.append("Neither a baseline nor a candidate is known yet.")
        return section
    alike: dict[Architecture, list[Compared]] = {}  # one line for networks that are the same
    for network in networks:
        alike.setdefault(network.architecture, []).append(network)
    named = {", ".join(n.name for n in of): of[0] for of in alike.values()}
    macs = {name: macs_by_stage(network) for name, network in named.items()}
    if any(not macs[name] for name in named):
        section.text.append(
            "Shares of the stages are not known: the base config is not there any more."
        )
    section.figures.append(sketch({name: n.architecture for name, n in named.items()}, macs))
    return section


# ---- how the search went --------------------------------------------------------------------------


def searches(run: RunFolder, networks: Networks) -> Section:
    section = Section()
    alone = scores_alone(run, "archtrain")
    kinds = {**dict.fromkeys(alone, "finalist"), **dict.fromkeys(run.baselines, "baseline")}
    for search in run.searches:
        if search.whole:
            section.figures.append(charts.candidates(search, run.label, kinds))
        if charts.is_greedy(search) and run.cfg is not None:
            section.figures.append(charts.beam(search, run.label, run.cfg.SEARCH.DILATION.TOP_K))
        if search.dropped:
            section.figures.append(charts.race(search))
        if search.rates:
            section.text.append(f"Rates of the {search.name} search: {search.rates}.")
    if not run.searches:
        section.text.append("No candidate has been scored yet.")
    if alone:
        caption = "networks trained alone on archtrain, each seed on archval; a line: their mean"
        order = ("best", "stage", "found", "baseline")  # one network may have several roles: the last
        ordered = sorted(networks, key=lambda n: order.index(n.role))
        roles = {str(n.architecture): n.role for n in ordered}
        section.figures.append(
            charts.seeds("finalists", caption, f"{run.label} on archval", alone, roles)
        )
    elif run.cfg is None or not run.cfg.SEARCH.FINALISTS.NUM:
        section.text.append("No network was trained alone to check the order (SEARCH.FINALISTS).")
    section.text += diverged(run)
    supernets = [t for t in run.trainings if t.part.endswith("supernet")]
    if supernets:
        section.figures.append(charts.losses(supernets))
        for training in supernets:
            if (training.folder / "config.yaml").is_file():
                section.figures += _sampled(training)
    else:
        section.text.append("No supernet has been trained yet.")
    return section


def _sampled(training: Training) -> list[Figure]:
    """How often each depth and each digit was drawn: draws are a function of the iteration."""
    cfg, name = read_config(str(training.folder / "config.yaml")), training.folder.name
    space, seed = space_of(cfg), seed_of(cfg)
    codes = sampled_codes(cfg, space)
    paths = [space.sample(seed, iteration, codes) for iteration in range(training.iterations)]
    if isinstance(space, DilationSpace):
        return [charts.paths(name, "block", "digit", _counts(path.dilation_code for path in paths))]
    found = [charts.paths(name, "stage", "blocks", _counts(path.stage_code for path in paths))]
    if isinstance(space, JointSpace):
        digits = ([*zip_longest(*path.digits_by_stage())] for path in paths)
        by_stage = _counts(row for rows in digits for row in rows)
        found.append(charts.paths(name, "stage", "digit", by_stage))
    return found


def _counts(codes: Iterable[Sequence[int | None]]) -> list[Counter[int]]:
    """Of the numbers at each position; None is not counted."""
    counts: dict[int, Counter[int]] = {}
    for code in codes:
        for position, number in enumerate(code):
            if number is not None:
                counts.setdefault(position, Counter())[number] += 1
    return [counts[position] for position in sorted(counts)]


# ---- what it cost ---------------------------------------------------------------------------------


def cost(run: RunFolder, networks: Networks) -> Section:
    section, seconds = Section(), run.seconds()
    if not seconds:
        section.text.append("Nothing has been trained or scored yet.")
        return section
    estimates = [(n, e) for n, start in enumerate(run.starts) if (e := start.get("estimate"))]
    number, expected = estimates[-1] if estimates else (0, {})
    trainings = Counter(training.part for training in run.trainings)
    scored = {f"{s.phase} search": len(s.records) + len(s.dropped) for s in run.searches}
    compared = {} if number else expected  # that of what was left is no part of the whole
    rows = [
        {
            "part": part,
            "trainings": trainings.get(part),
            "candidates": scored.get(part),
            "time": shown(seconds.get(part, 0.0)),
            "estimated": shown(expected[part]) if part in expected else None,
            "ratio": seconds.get(part, 0.0) / compared[part] if compared.get(part) else None,
        }
        for part in dict.fromkeys([*seconds, *expected])
    ]
    total = shown(sum(seconds.values()))
    count = len(run.starts) - 1
    resumes = f", resumed {'once' if count == 1 else f'{count} times'}" if count > 0 else ""
    races = ", nor are the first portions of the race" if any(s.dropped for s in run.searches) else ""
    section.text.append(
        f"Training steps and scoring took {total}{resumes}; starting and testing are not in it{races}."
    )
    if not expected:
        section.text.append("No estimate was made: search_net.py makes one with --timed.")
    elif number:
        section.text.append(
            f"The estimate is of what was left at start {number + 1}, the times are the whole search's."
        )
    section.tables.append(Table("by part", rows))
    return section


# ---- pictures --------------------------------------------------------------------------------------


def images(run: RunFolder, networks: Networks) -> Section:
    section = Section()
    asked = [n for n in networks if n.role in ("baseline", "found")]
    shown = [network for network in asked if network.weights and network.cfg]
    if not run.has_ended:
        section.text.append("There are none before the search has ended.")
        return section
    for network in asked:
        if network not in shown:
            why = (
                "its base config is not there" if network.cfg is None else "there are no weights of it"
            )
            section.text.append(f"Without {network.name}, {network.architecture}: {why}.")
    if not shown:
        return section
    try:
        section.pictures = pictures(run, shown)
    except Cannot as reason:
        section.text.append(f"There are none: {reason}.")
    else:
        text = f"The first images of archval with {OBJECTS}; detections of a score from {THRESHOLD} on."
        section.text.insert(0, text)
    return section


# ---- how to do it again ----------------------------------------------------------------------------


def again(run: RunFolder, networks: Networks) -> Section:
    section = Section()
    for start in run.starts:
        set_before = "".join(f"{name}={value} " for name, value in start["environment"].items())
        count = f"{start['processes']} process{'es' * (start['processes'] > 1)}"
        section.code.append(f"cd {start['folder']}  # {start['time']}, {count}, {start['launcher']}")
        section.code.append(f"{set_before}python {start['command']}")
    if run.starts:
        last = run.starts[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        section.text.append(f"On {last['device']}, with {versions}.")
    else:
        section.text.append("The commands were not recorded.")
    if run.cfg is None:
        section.text.append("There is no config.yaml that this version can read.")
    else:
        section.text.append(f"SEED {run.cfg.SEED}; below, the keys that are not at their defaults.")
        defaults = leaves(read_config(""))
        rows = [{"key": k, "value": str(v)} for k, v in leaves(run.cfg).items() if v != defaults[k]]
        section.tables.append(Table(f"config.yaml: {len(rows)} keys", rows, folded=True))
    return section


# ---- all candidates --------------------------------------------------------------------------------


def candidates(run: RunFolder, networks: Networks) -> Section:
    section = Section()
    for search in run.searches:
        section.tables += _candidates(search)
    if run.alone:
        hidden = ("metrics", "blocks")
        rows = [{k: v for k, v in record.items() if k not in hidden} for record in run.alone]
        section.tables.append(Table("networks trained alone", rows, folded=True))
    if not section.tables:
        section.text.append("None has been scored yet.")
    return section


def _candidates(search: Search) -> list[Table]:
    """Candidates with whole codes, then partial ones, by how far they have grown; then the dropped."""
    tables = []
    ranked = sorted(search.records, key=lambda r: (open_digits(r), best_first(r)))
    for number, alike in groupby(ranked, key=open_digits):
        kind = f"codes with {number} digits left open" if number else "whole codes"
        rows = [{k: v for k, v in record.items() if k != "phase"} for record in alike]
        tables.append(Table(f"{search.name}: {len(rows)} {kind}, best first", rows, folded=True))
    for phase in sorted({record["phase"] for record in search.dropped}):
        rows = [
            {k: v for k, v in r.items() if k != "phase"} for r in search.dropped if r["phase"] == phase
        ]
        means = "images: seen by then; behind: fraction of bootstraps outside the leading quarter"
        tables.append(Table(f"{phase}: {len(rows)} dropped. {means}", rows, folded=True))
    return tables


# By title.
SECTIONS: dict[str, Callable[[RunFolder, Networks], Section]] = {
    "What was found, and is it better?": found,
    "Where the computation went": computation,
    "How the search went": searches,
    "What it cost": cost,
    "Pictures of archval": images,
    "How to do it again": again,
    "All candidates": candidates,
}
