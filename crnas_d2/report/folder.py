"""The folder of a search, read for its report: of a run that has ended, or as far as it has come."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.search_hook import RATES
from crnas_d2.pipeline.starts import STARTS
from crnas_d2.pipeline.table import NETWORKS, PATHS
from crnas_d2.search.journal import Journal, open_digits
from detectron2.config import CfgNode

Row = Mapping[str, Any]
LATENCIES = "report/latency.jsonl"
LOGGED_EVERY = 20  # iterations, by detectron2's PeriodicWriter


def best_first(record: Row) -> tuple[float, float, str]:
    """A key that sorts records as a search ranks candidates."""
    return -record["score"], record["macs"], record["architecture"]


class Search(NamedTuple):
    """The journals of a stage or dilation search."""

    name: str  # of its folder
    records: list[dict[str, Any]]  # candidates that saw all of archval
    dropped: list[dict[str, Any]]  # those that a race dropped
    rates: str = ""  # why rates were kept or not, with SEARCH.DILATION.EVIDENCE

    @property
    def phase(self) -> str:
        return "dilation" if self.name.startswith("dilation") else "stage"

    @property
    def whole(self) -> list[dict[str, Any]]:
        """Whole codes, best first."""
        whole = [record for record in self.records if not open_digits(record)]
        return sorted(whole, key=best_first)


class Training(NamedTuple):
    """A training of which there are metrics: of a supernet, or of a network alone."""

    part: str  # of the run, as pipeline/course.py names it
    folder: Path
    losses: list[tuple[int, float]]  # iteration and total loss, every 20 iterations
    seconds: float  # of its steps, lost ones included

    @property
    def iterations(self) -> int:
        return max(iteration for iteration, _ in self.losses) + 1


class RunFolder:
    """What is in OUTPUT_DIR of search_net.py. Raises InputError: a damaged journal."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.resolve().name
        self.results: dict[str, Any] = self._json("results.json")
        self.starts = self._lines(STARTS)
        folders = sorted(f for f in path.glob("*") if f.name.startswith(("stage", "dilation")))
        self.searches = [search for folder in folders for search in self._searches(folder)]
        # The stage search comes first.
        self.searches.sort(key=lambda search: search.phase == "dilation")
        self.alone = self._journal("trainings/journal.jsonl")  # networks trained alone

    def _searches(self, folder: Path) -> Iterator[Search]:
        """One; of rates two, where --resume with more finalists has found another stage code."""
        records, dropped = (
            self._journal(f"{folder.name}/{name}.jsonl") for name in ("journal", "race")
        )
        rates, is_dilation = _rates(folder), folder.name.startswith("dilation")
        codes = dict.fromkeys(map(_stage_code, records)) if is_dilation else {}
        if len(codes) < 2:
            if dropped or (folder / "journal.jsonl").is_file():
                yield Search(folder.name, records, dropped, rates)
            return
        for code in codes:
            name = f"{folder.name}_{code.rpartition('/')[2]}"
            own, behind = ([r for r in of if _stage_code(r) == code] for of in (records, dropped))
            yield Search(name, own, behind, rates if rates.startswith(f"{code}/") else "")

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            return json.loads(path.read_text("utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise InputError(
                f"{path}: not JSON ({error}); remove it, and --resume writes it"
            ) from error

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """Those that a kill has not cut off."""
        path = self.path / name
        text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
        found = []
        for line in text.splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def _journal(self, name: str) -> list[dict[str, Any]]:
        return Journal(self.path / name, writes=False).records

    @cached_property
    def cfg(self) -> CfgNode | None:
        """Of the search; None before it began, and of versions whose keys had other names."""
        path = self.path / "config.yaml"
        with suppress(InputError):
            return read_config(str(path)) if path.is_file() else None
        return None

    @cached_property
    def base(self) -> str:
        """The path of the first base config; "": the search's own config is the networks'."""
        if self.cfg is not None and not self.cfg.SEARCH.FOUND_BASE:
            return ""
        found = [start["bases"].values() for start in self.starts]
        if not found:
            files = sorted(self.path.glob("found*.yaml"))
            found = [[yaml.safe_load(path.read_text())["_BASE_"]] for path in files]
        return next(iter(found[-1])) if found else ""

    @property
    def is_whole(self) -> bool:
        """Whether the networks' config is still there."""
        is_own = self.cfg is not None and not self.cfg.SEARCH.FOUND_BASE
        return is_own or Path(self.base).is_file()

    @cached_property
    def baselines(self) -> list[str]:
        """Architectures of the base configs, in the order of the budgets."""
        if self.cfg is None or not self.is_whole:
            return []
        if not self.base:
            return [str(architecture_of(self.cfg))]
        paths = self.starts[-1]["bases"].values() if self.starts else [self.base]
        there = [path for path in dict.fromkeys(paths) if Path(path).is_file()]
        return [str(architecture_of(read_config(path))) for path in there]

    @property
    def metric(self) -> str:
        """The name of the score in the tables."""
        return self.cfg.SEARCH.EVAL.METRIC if self.cfg is not None else "AP"

    @property
    def label(self) -> str:
        """The score in words."""
        is_mask = self.cfg is not None and self.cfg.SEARCH.EVAL.TASK == "segm"
        return f"mask {self.metric}" if is_mask else self.metric

    @property
    def tested(self) -> list[dict[str, Any]]:
        """Rows of the table of networks on the test set, or else of paths."""
        return self.results.get(NETWORKS) or self.results.get(PATHS) or []

    @property
    def latencies(self) -> dict[str, dict[str, Any]]:
        """By architecture, what was measured: seconds an image as ``score``, and the device."""
        return {record["architecture"]: record for record in self._journal(LATENCIES)}

    @property
    def has_ended(self) -> bool:
        return bool(self.results)

    def best(self, phase: str) -> str | None:
        """The best whole code of the last search of a phase."""
        whole = [search.whole for search in self.searches if search.phase == phase and search.whole]
        return whole[-1][0]["architecture"] if whole else None

    @cached_property
    def trainings(self) -> list[Training]:
        found: list[Training] = []
        for path in sorted(self.path.glob("*/metrics.json")):
            # Of several budgets, dilation_N16 and so on: one part of the run.
            found += _training(f"{path.parent.name.partition('_')[0]} supernet", path)
        for path in sorted(self.path.glob("*/pretrain/metrics.json")):
            found += _training("pre-training", path)
        for path in sorted(self.path.glob("trainings/*/*/metrics.json")):
            found += _training(self._part_of(path.parent), path)
        return found

    def _part_of(self, folder: Path) -> str:
        data = folder.parent.name.partition("_")[0]
        if data != "archtrain":
            return {"longer": "longer schedule"}.get(data, "retraining")
        text = "/".join(folder.name.rsplit("_", 2))
        if text in self.baselines:
            return "noise"
        return f"{'dilation' if any(Architecture.parse(text).dilation_code) else 'stage'} finalists"

    def seconds(self) -> dict[str, float]:
        """By part of the run: what training and scoring took."""
        found: dict[str, float] = defaultdict(float)
        for training in self.trainings:
            found[training.part] += training.seconds
        for search in self.searches:
            found[f"{search.phase} search"] += sum(r.get("seconds", 0.0) for r in search.records)
        return dict(found)


def _stage_code(record: Row) -> str:
    """With its family."""
    return record["architecture"].rpartition("/")[0]


def _rates(folder: Path) -> str:
    path = folder / RATES
    return path.read_text("utf-8") if path.is_file() else ""


def _training(part: str, path: Path) -> Iterator[Training]:
    losses, seconds, before = [], 0.0, -1
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        if "total_loss" not in values:
            continue
        iteration = values["iteration"]
        step = iteration - before
        # After an interruption iterations are there twice, and took their time twice.
        seconds += values.get("time", 0.0) * (step if 0 < step <= LOGGED_EVERY else LOGGED_EVERY)
        losses.append((iteration, values["total_loss"]))
        before = iteration
    if losses:
        yield Training(part, path.parent, losses, seconds)
