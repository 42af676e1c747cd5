#!/usr/bin/env python
"""Write report.html of a search, of one that runs or was interrupted, too.

    python tools/report.py output/bccd

It reads OUTPUT_DIR, and the data set's images for its pictures; its figures' data go to report/*.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crnas_d2.errors import InputError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR of search_net.py")
    parser.add_argument("--latency", action="store_true", help="measure it on this machine")
    args = parser.parse_args()
    if not (args.folder / "splits").is_dir():
        raise InputError(f"{args.folder}: is not the folder of a search: it has no folder splits")
    from crnas_d2.report.page import write_report  # torch takes seconds to import

    print(write_report(args.folder, args.latency))


if __name__ == "__main__":
    run_tool(main)
