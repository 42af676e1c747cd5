#!/usr/bin/env python
"""Draw where the blocks of networks are, and their rates, as the paper's Figure 4.

    python tools/sketch.py baseline=resnet/3-4-6-3/000-0000-000000-000 \
        CR-ResNet50=resnet/1-3-5-7/0-010-00120-0102112 --output sketch.svg

The first network is on top. The file is an SVG; it takes the text colour of a page that it is in.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_text


def named(text: str) -> tuple[str, Architecture]:
    """NAME=ARCHITECTURE, or an architecture that is its own name."""
    name, _, codes = text.rpartition("=")
    try:
        return name or codes, Architecture.parse(codes)
    except ValueError as error:
        raise InputError(str(error)) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", metavar="[NAME=]ARCHITECTURE")
    parser.add_argument("--output", type=Path, required=True, help="an .svg file")
    args = parser.parse_args()
    if args.output.suffix != ".svg":
        raise InputError(f"--output: {args.output}: a name that ends in .svg is needed")
    networks = dict(map(named, args.networks))
    if len(networks) < len(args.networks):
        raise InputError(f"{args.networks}: each network needs a name of its own")
    from crnas_d2.report.sketch import sketch  # torch takes seconds to import

    write_text(args.output, sketch(networks, {}).svg)


if __name__ == "__main__":
    run_tool(main)
