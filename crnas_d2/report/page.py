"""report.html: one file that needs no network; what its figures show stands as CSV in report/.

Every section is filled from the run's folder, or says in one line why it is empty.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from crnas_d2.files import write_csv, write_text
from crnas_d2.report.folder import RunFolder
from crnas_d2.report.networks import Compared, compared, measure_latencies
from crnas_d2.report.parts import Section
from crnas_d2.report.sections import SECTIONS


def write_report(folder: Path, measure: bool = False) -> Path:
    """Write report.html of a run of search_net.py, ended or not, over an earlier one; its path.

    ``measure``: the latency of the networks on this machine, anew, into report/latency.jsonl.

    Raises InputError: a damaged journal; OSError: a file cannot be written.
    """
    run = RunFolder(folder)
    networks = compared(run)
    if measure:
        measure_latencies(run, networks)
    sections = {title: _made(make, run, networks) for title, make in SECTIONS.items()}
    for section in sections.values():
        for figure in section.figures:
            write_csv(folder / "report" / f"{figure.name}.csv", figure.rows)
    loader = jinja2.PackageLoader("crnas_d2.report", ".")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = cell
    environment.filters["embedded"] = embedded
    page = environment.get_template("page.html.jinja").render(run=run, sections=sections)
    path = folder / "report.html"
    write_text(path, page)
    return path


def _made(make: Callable[..., Section], run: RunFolder, networks: Sequence[Compared]) -> Section:
    """A section; one file that cannot be read leaves the others as they are."""
    try:
        return make(run, networks)
    except Exception as error:  # of images, weights, configs or drawing libraries
        return Section([f"This part cannot be shown: {type(error).__name__}: {error}"])


def cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def embedded(path: Path) -> str:
    """A JPEG as an address that holds it."""
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
