#!/usr/bin/env python
"""Draw what a found network, or another trained detector, finds on your own pictures and videos.

    python demo.py --config-file output/bccd/found.yaml --input pictures/ clip.mp4 --output drawn

Options are those of detectron2's demo. Pictures keep their names, videos become .mp4, and no file is
overwritten. Each picture and video has a line, also one that cannot be read; the last line counts
them, and the other files that were named or are in a folder.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import NoReturn

from crnas_d2.errors import InputError, run_tool


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)  # one line, without the usage


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--webcam", action="store_true", help="show what the first camera sees")
    source.add_argument("--input", "--video-input", nargs="+", help="files, folders, globs")
    parser.add_argument("--output", type=Path, metavar="DIR", help="a folder, needed with --input")
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, help="the least score drawn, 0.5 by default"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    args = parser.parse_args()
    for word in args.opts:
        if word.startswith("--"):
            raise InputError(f"{word}: options stand before --opts")
    if bool(args.output) == args.webcam:
        raise InputError("--output: a folder is needed with --input, and none with --webcam")
    if not 0 <= args.confidence_threshold <= 1:
        raise InputError(f"--confidence-threshold: {args.confidence_threshold}: allowed are 0 to 1")
    return args


def main() -> None:
    args = parse()
    # What torch says of detectron2, and Pillow and OpenCV of a file, is not for users.
    warnings.filterwarnings("ignore", module="torch|PIL")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # Only now: torch takes seconds to import.
    from crnas_d2.data.datasets import use_class_names
    from crnas_d2.engine.detector import check_detector, detector_config

    try:  # OpenCV, which nothing else here needs
        from crnas_d2.engine.demo import draw_files, find_files, output_paths, show_webcam
        from crnas_d2.engine.drawing import Detector
    except ImportError as error:
        raise InputError(f"{error}; pip install opencv-python") from error
    cfg = detector_config(args.config_file, args.opts)
    classes = use_class_names(cfg)
    check_detector(cfg)
    if args.webcam:
        show_webcam(Detector(cfg, classes, args.confidence_threshold))
        return
    files, others = find_files(args.input)
    targets = output_paths(files, args.output)
    written = draw_files(Detector(cfg, classes, args.confidence_threshold), targets)
    if not written:
        raise InputError(f"--input: {' '.join(args.input)}: none of {len(files)} files could be read")
    counts = f"{written} of {len(files)} pictures and videos written to {args.output}"
    print(f"{counts}; other files: {others}")


if __name__ == "__main__":
    run_tool(main)
