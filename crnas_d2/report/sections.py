"""The sections of a report, in their order: what was found, how sure that is, and how it came about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.engine.trainer import sampled_codes, seed_of
from crnas_d2.modeling.build import space_of
from crnas_d2.pipeline.estimate import shown
from crnas_d2.pipeline.table import NETWORKS
from crnas_d2.report import charts
from crnas_d2.report.folder import RunFolder, Search, Training
from crnas_d2.report.networks import Compared, costs, macs_by_stage
from crnas_d2.report.parts import Section, Table
from crnas_d2.report.pictures import OBJECTS, THRESHOLD, Cannot, pictures
from crnas_d2.report.sketch import sketch
from crnas_d2.search.journal import open_digits
from crnas_d2.space import DilationSpace

Row = Mapping[str, Any]
Networks = Sequence[Compared]

# By the verdict of a table on the test set: an answer in plain words.
ANSWERS = {
    "better": "Yes, on the test images: {name} has {change} than the baseline ({ends}).",
    "worse": "No: on the test images {name} has {change} than the baseline ({ends}).",
    "not told apart": (
        "It cannot be told: on the test images {name} has {change} than the baseline, and the "
        "interval, {ends}, holds zero."
    ),
}
NOT_ENDED = "This search has not ended; the page shows how far it has come."
OF_PATHS = (
    "These are paths of one supernet, not networks trained alone: another supernet may say otherwise."
)


# ---- what was found -------------------------------------------------------------------------------


def found(run: RunFolder, networks: Networks) -> Section:
    section = Section("What was found, and is it better?")
    section.text += _answers(run)
    if run.tested:
        section.tables.append(_tested(run, networks))
        if run.results.get(NETWORKS):
            section.figures.append(_seeds_on_test(run.results[NETWORKS]))
    elif run.alone:
        section.tables.append(
            Table("networks trained alone on archtrain, on archval", _on_archval(run))
        )
    else:
        section.text.append(
            "No network was trained alone or tested yet: the scores below are a supernet's."
        )
    for noise in run.results.get("noise", []):
        section.text.append(f"Noise of {noise['base']}: {noise['text']}.")
    return section


def _answers(run: RunFolder) -> list[str]:
    texts = [_answer(row) for row in _means(run) if row["network"].startswith("found")]
    if texts and not run.results.get(NETWORKS):
        texts.append(OF_PATHS)
    for budget, verdict in run.results.get("verdicts", {}).items():
        texts.append(f"Found for {budget}: {verdict['found']}. On archval: {verdict['text']}.")
        texts.append(f"Weights in found.pth: {verdict['weights']}.")
    return texts or [NOT_ENDED]


def _means(run: RunFolder) -> list[dict[str, Any]]:
    """Rows of the table on the test set that are not those of a seed."""
    return [row for row in run.tested if row.get("seed", "mean") == "mean"]


def _answer(row: Row) -> str:
    name, value = f"{row['network']}, {row['architecture']},", row.get("to the baseline")
    if value is None:
        return f"The baseline stands: it is what was found, {row['architecture']}."
    low, high = row["95 % low"], row["95 % high"]
    if low is None or high is None:
        return f"It cannot be told: {name} has {value:+.2f} AP; one seed each has no interval."
    answer = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    change = f"{abs(value):.2f} AP {'more' if value >= 0 else 'less'}"
    return ANSWERS[answer].format(name=name, change=change, ends=f"95 %: {low:+.2f} to {high:+.2f}")


def _tested(run: RunFolder, networks: Networks) -> Table:
    metric = run.cfg.SEARCH.EVAL.METRIC if run.cfg else "AP"
    known = {network.name: network for network in networks}
    rows = []
    for row in _means(run):
        latency, spent = run.latencies.get(row["architecture"]), costs(known[row["network"]])
        rows.append(
            {
                "network": row["network"],
                "codes": row["architecture"].partition("/")[2],
                metric: _with_spread(row.get(metric), row.get("spread of seeds")),
                "to the baseline (95 %)": _with_ends(row),
                "small": row.get("APs"),
                "medium": row.get("APm"),
                "large": row.get("APl"),
                "GMACs": spent["macs"] / 1e9 if spent else None,
                "parameters (M)": spent["params"] / 1e6 if spent else None,
                "ms an image": latency["score"] * 1000 if latency else None,
            }
        )
    seeds = max(sum(r["network"] == row["network"] for r in run.tested) - 1 for row in run.tested)
    trained = f"mean and standard deviation of {seeds} seeds; " if seeds else ""
    where = {record["device"] for record in run.latencies.values()}
    device = f"; ms of the whole detector on {', '.join(sorted(where))}" if where else ""
    return Table(f"on the test set; {trained}GMACs and parameters of the backbone{device}", rows)


def _with_spread(score: float | None, spread: float | None) -> Any:
    return score if score is None or spread is None else f"{score:.2f} \u00b1 {spread:.2f}"


def _with_ends(row: Row) -> str | None:
    value, low, high = (row.get(key) for key in ("to the baseline", "95 % low", "95 % high"))
    if value is None:
        return None
    return (
        f"{value:+.2f}" if low is None or high is None else f"{value:+.2f} ({low:+.2f} .. {high:+.2f})"
    )


def _seeds_on_test(rows: Sequence[Row]) -> Any:
    scores: dict[str, list[float]] = {}
    metric = "AP" if "AP" in rows[0] else next(k for k, v in rows[0].items() if isinstance(v, float))
    for row in rows:
        if row["seed"] != "mean":
            scores.setdefault(row["network"], []).append(row[metric])
    return charts.seeds("test_set", "each seed on the test set; a line: their mean", metric, scores)


def _scores_alone(run: RunFolder, data: str) -> dict[str, list[float]]:
    """Of networks trained alone by architecture, the baselines first, the best last."""
    scores: dict[str, list[float]] = {name: [] for name in run.baselines}
    for record in run.alone:
        if record["phase"].split()[0] == data:
            scores.setdefault(record["architecture"], []).append(record["score"])
    others = sorted((n for n in scores if n not in run.baselines), key=lambda n: fmean(scores[n]))
    return {name: scores[name] for name in [*run.baselines, *others] if scores[name]}


def _on_archval(run: RunFolder) -> list[Row]:
    return [
        {
            "architecture": name,
            "AP": fmean(scores),
            "seeds": len(scores),
            "spread of seeds": stdev(scores) if len(scores) > 1 else None,
        }
        for name, scores in _scores_alone(run, "archtrain").items()
    ]


# ---- where the computation went -------------------------------------------------------------------


def computation(run: RunFolder, networks: Networks) -> Section:
    section = Section("Where the computation went")
    if not networks:
        section.text.append("Neither a baseline nor a candidate is known yet.")
        return section
    alike: dict[Architecture, list[Compared]] = {}  # one line for networks that are the same
    for network in networks:
        alike.setdefault(network.architecture, []).append(network)
    named = {", ".join(n.name for n in of): of[0] for of in alike.values()}
    macs = {name: macs_by_stage(network) for name, network in named.items()}
    if not all(macs.values()):
        section.text.append(
            "Shares of the stages are not known: the base config is not there any more."
        )
    section.figures.append(sketch({name: n.architecture for name, n in named.items()}, macs))
    return section


# ---- how the search went --------------------------------------------------------------------------


def searches(run: RunFolder, networks: Networks) -> Section:
    section = Section("How the search went")
    alone = _scores_alone(run, "archtrain")
    for search in run.searches:
        if search.whole:
            section.figures.append(charts.candidates(search, run.baselines, alone))
        if charts.is_greedy(search) and run.cfg is not None:
            section.figures.append(charts.beam(search, run.cfg.SEARCH.DILATION.TOP_K))
        if search.dropped:
            section.figures.append(charts.race(search))
    if not run.searches:
        section.text.append("No candidate has been scored yet.")
    if alone:
        caption = (
            "finalists trained alone, each seed on archval; the baseline first; a line: their mean"
        )
        section.figures.append(charts.seeds("finalists", caption, "AP on archval", alone))
    elif run.cfg is None or not run.cfg.SEARCH.FINALISTS.NUM:
        section.text.append("No network was trained alone to check the order (SEARCH.FINALISTS).")
    supernets = [t for t in run.trainings if t.part.endswith("supernet")]
    if supernets:
        section.figures.append(charts.losses(supernets))
        section.figures += [charts.paths(t.part, *_sampled(t)) for t in supernets]
    else:
        section.text.append("No supernet has been trained yet.")
    return section


def _sampled(training: Training) -> tuple[list[Counter[int]], str]:
    """How often each depth, or digit, was drawn by position: draws are a function of the iteration."""
    cfg = read_config(str(training.folder / "config.yaml"))
    space, seed = space_of(cfg), seed_of(cfg)
    codes, is_dilation = sampled_codes(cfg, space), isinstance(space, DilationSpace)
    counts: list[Counter[int]] = [Counter() for _ in space.alternatives]
    for iteration in range(training.iterations):
        for count, value in zip(counts, space.code_of(space.sample(seed, iteration, codes))):
            count[value] += 1
    return counts, "block" if is_dilation else "stage"


# ---- what it cost ---------------------------------------------------------------------------------


def cost(run: RunFolder, networks: Networks) -> Section:
    section, seconds = Section("What it cost"), run.seconds()
    if not seconds:
        section.text.append("Nothing has been trained or scored yet.")
        return section
    expected = (run.starts[0].get("estimate") or {}) if run.starts else {}
    trainings = Counter(training.part for training in run.trainings)
    scored = {f"{s.phase} search": len(s.records) + len(s.dropped) for s in run.searches}
    rows = [
        {
            "part": part,
            "trainings": trainings.get(part),
            "candidates": scored.get(part),
            "time": shown(seconds.get(part, 0.0)),
            "estimated": shown(expected[part]) if part in expected else None,
            "ratio": seconds.get(part, 0.0) / expected[part] if expected.get(part) else None,
        }
        for part in dict.fromkeys([*seconds, *expected])
    ]
    total = shown(sum(seconds.values()))
    count = len(run.starts) - 1
    resumes = f", resumed {'once' if count == 1 else f'{count} times'}" if count > 0 else ""
    section.text.append(
        f"Training steps and scoring took {total}{resumes}; starting and testing are not in it."
    )
    if not expected:
        section.text.append("No estimate was made: search_net.py makes one with --timed.")
    section.tables.append(Table("by part", rows))
    return section


# ---- pictures --------------------------------------------------------------------------------------


def images(run: RunFolder, networks: Networks) -> Section:
    section = Section("Pictures of archval")
    baseline = next((n for n in networks if n.name.startswith("baseline")), None)
    best = next((n for n in networks if n.name.startswith("found")), None)
    if baseline is None or best is None:
        section.text.append("There are none before the search has ended.")
        return section
    named = {network.name: network for network in (baseline, best)}
    try:
        section.pictures = pictures(run, named)
    except Cannot as reason:
        section.text.append(f"There are none: {reason}.")
    else:
        section.text.append(
            f"The first images of archval with {OBJECTS}; detections of a score from {THRESHOLD} on."
        )
    return section


# ---- how to do it again ----------------------------------------------------------------------------


def again(run: RunFolder, networks: Networks) -> Section:
    section = Section("How to do it again")
    if run.starts:
        for start in run.starts:
            section.code.append(
                f"cd {start['folder']}  # {start['time']}, {start['processes']} processes"
            )
            section.code.append(f"python {start['command']}")
        last = run.starts[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        section.text.append(f"On {last['device']}, with {versions}.")
    else:
        section.text.append("The commands were not recorded.")
    if run.cfg is None:
        section.text.append("There is no config.yaml yet.")
    else:
        section.text.append(f"SEED {run.cfg.SEED}; all keys are in config.yaml.")
    return section


# ---- all candidates --------------------------------------------------------------------------------


def candidates(run: RunFolder, networks: Networks) -> Section:
    section = Section("All candidates")
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
    ranked = sorted(
        search.records, key=lambda r: (open_digits(r), -r["score"], r["macs"], r["architecture"])
    )
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


SECTIONS: tuple[Callable[[RunFolder, Networks], Section], ...] = (
    *(found, computation, searches, cost, images, again, candidates),
)
