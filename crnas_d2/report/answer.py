"""The first section of a report: what was found, whether it is better, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from crnas_d2.pipeline.table import NETWORKS
from crnas_d2.report import charts
from crnas_d2.report.figures import Figure
from crnas_d2.report.folder import RunFolder
from crnas_d2.report.networks import Compared, costs
from crnas_d2.report.parts import Section, Table

Row = Mapping[str, Any]
Networks = Sequence[Compared]

# By what the interval of the difference on the test set says: an answer in plain words.
ANSWERS = {
    "better": "Yes, on the test images: {name} has {change} than the baseline (95 %: {ends}).",
    "worse": "No: on the test images {name} has {change} than the baseline (95 %: {ends}).",
    "not told apart": (
        "Not shown: on the test images {name} has {change} than the baseline; the 95 % interval, "
        "{ends}, includes zero."
    ),
}
OF_PATHS = (
    "Of paths in one supernet, not of networks trained alone: another supernet may say otherwise. "
)
OF_ITS_PATHS = (
    "All networks start from their paths in this search's supernet, by which the found one was chosen: "
    "from another start they may compare otherwise."
)
NOT_ENDED = "This search has not ended; the page shows how far it has come."
UNTESTED = "No test set was used: the table shows archval, on which the search made its choices."
LAST = "codes"  # long, so that what matters stands before it


def found(run: RunFolder, networks: Networks) -> Section:
    section = Section()
    section.text += _answers(run)
    if run.has_ended and not run.tested:
        section.text.append(UNTESTED)
    if networks:
        section.tables.append(_table(run, networks))
    else:
        section.text.append("No network is known yet.")
    if run.results.get(NETWORKS):
        section.figures.append(_seeds_on_test(run, networks))
    elif run.tested:  # paths, by the one metric of the search
        section.text.append("AP by size of the objects is not in it: the phase retrain measures that.")
    for noise in run.results.get("noise", []):
        section.text.append(f"Noise of {noise['base']}: {noise['text']}.")
    return section


def _answers(run: RunFolder) -> list[str]:
    texts = [_answer(run, row) for row in _means(run) if row["network"].startswith("found")]
    if texts and not run.results.get(NETWORKS):
        texts[0] = OF_PATHS + texts[0]
    elif texts and run.cfg is not None and run.cfg.SEARCH.INHERIT:
        texts.insert(1, OF_ITS_PATHS)
    verdicts = run.results.get("verdicts", {})
    for budget, verdict in verdicts.items():
        file = f"found_{budget}.pth" if len(verdicts) > 1 else "found.pth"
        texts.append(f"Found for {budget}: {verdict['found']}. On archval: {verdict['text']}.")
        texts.append(f"Weights in {file}: {verdict['weights']}.")
    return texts or [NOT_ENDED]


def _means(run: RunFolder) -> list[dict[str, Any]]:
    """Rows of the table on the test set that are not those of a seed."""
    return [row for row in run.tested if row.get("seed", "mean") == "mean"]


def _answer(run: RunFolder, row: Row) -> str:
    name = f"the {row['network'].replace('_', ' ')} network, {row['architecture']},"
    value = row.get("to the baseline")
    if value is None:
        return f"The baseline stands: it is what was found, {row['architecture']}."
    low, high = row["95 % low"], row["95 % high"]
    if low is None or high is None:
        change = f"{value:+.2f} {run.label} against the baseline"
        return f"Not shown: {name} has {change}; of one seed each there is no interval."
    answer = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    change = f"{abs(value):.2f} {run.label} {'more' if value >= 0 else 'less'}"
    return ANSWERS[answer].format(name=name, change=change, ends=f"{low:+.2f} to {high:+.2f}")


# ---- the table --------------------------------------------------------------------------------------


def _table(run: RunFolder, networks: Networks) -> Table:
    """A row a network: scores on the test set or else on archval, and what it costs."""
    tested, alone = {row["network"]: row for row in _means(run)}, scores_alone(run, "archtrain")
    rows = []
    for network in networks:
        row, spent = tested.get(network.name, {}), costs(network)
        latency = run.latencies.get(str(network.architecture))
        scores = alone.get(str(network.architecture), [])
        rows.append(
            {
                "network": network.name,
                run.label: _with_spread(row.get(run.metric), row.get("spread of seeds")),
                f"{run.label} on archval": None if tested else _with_seeds(scores),
                "to the baseline (95 %)": _with_ends(row),
                "small": row.get("APs"),
                "medium": row.get("APm"),
                "large": row.get("APl"),
                "GMACs": spent["macs"] / 1e9 if spent else None,
                "parameters (M)": spent["params"] / 1e6 if spent else None,
                "ms an image": latency["score"] * 1000 if latency else None,
                LAST: str(network.architecture).partition("/")[2],
            }
        )
    parts = ["GMACs and parameters are the backbone's"]
    if seeds := {r["network"]: r["seed"] + 1 for r in run.tested if isinstance(r.get("seed"), int)}:
        count = max(seeds.values())
        spread = " and standard deviation" if count > 1 else ""
        parts.insert(0, f"on the test set; mean{spread} of {count} seed{'s' * (count > 1)}")
    if devices := {record["device"] for record in run.latencies.values()}:
        parts.append(f"ms are the whole detector's on {', '.join(sorted(devices))}")
    return Table("; ".join(parts), rows)


def _with_spread(score: float | None, spread: float | None) -> Any:
    return score if score is None or spread is None else f"{score:.2f} \u00b1 {spread:.2f}"


def _with_seeds(scores: Sequence[float]) -> str | None:
    if not scores:
        return None
    spread = f" \u00b1 {stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{fmean(scores):.2f}{spread} ({len(scores)} seed{'s' * (len(scores) > 1)})"


def _with_ends(row: Row) -> str | None:
    value, low, high = (row.get(key) for key in ("to the baseline", "95 % low", "95 % high"))
    if value is None:
        return None
    return (
        f"{value:+.2f}" if low is None or high is None else f"{value:+.2f} ({low:+.2f} .. {high:+.2f})"
    )


# ---- seeds -------------------------------------------------------------------------------------------


def _seeds_on_test(run: RunFolder, networks: Networks) -> Figure:
    scores: dict[str, list[float]] = {}
    for row in run.results[NETWORKS]:
        if row["seed"] != "mean" and run.metric in row:
            scores.setdefault(row["network"], []).append(row[run.metric])
    roles = {network.name: network.role for network in networks}
    return charts.seeds(
        "test_set", "each seed on the test set; a line: their mean", run.label, scores, roles
    )


def scores_alone(run: RunFolder, data: str) -> dict[str, list[float]]:
    """Of networks trained alone that have not diverged, the baselines first, the best mean last."""
    scores: dict[str, list[float]] = {name: [] for name in run.baselines}
    for record in run.alone:
        if record["phase"].split()[0] == data and "failed" not in record:
            scores.setdefault(record["architecture"], []).append(record["score"])
    others = sorted((n for n in scores if n not in run.baselines), key=lambda n: fmean(scores[n]))
    return {name: scores[name] for name in [*run.baselines, *others] if scores[name]}


def diverged(run: RunFolder) -> list[str]:
    """A line for each training alone that diverged."""
    failed = [record for record in run.alone if "failed" in record]
    return [f"{r['architecture']}, {r['phase']}: it diverged ({r['failed']})." for r in failed]
