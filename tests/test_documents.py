"""What the documents name is there, and their commands are taken, or run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectors import ROOT

from crnas_d2.config import read_config

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
# What stands for a person's own files and keys in a command.
MINE = {"$MINE": "DATASETS.TRAIN_JSON mine/train.json", "$SHORT": "", "...": ""}
MINE |= {"{the same six}": "R_50"}
# Commands that run, smaller: fewer pictures, steps, codes and images.
SMALL = [
    *("SOLVER.MAX_ITER", "8", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "50", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.001"),
]
SMALL_SEARCH = ["MODEL.CRNAS.STAGE_SPACE", "[[2], [1, 2], [2, 3], [2]]", "SEARCH.DILATION.TOP_K", "1"]
SMALL_CONTEST = [
    "SEARCH.FINALISTS.NUM",
    "1",
    "SEARCH.FINALISTS.SEEDS",
    "1",
    "SEARCH.RETRAIN.SEEDS",
    "1",
]
SMALL_CONTEST += ["SEARCH.FINALISTS.TRY_LONGER", "False"]
SMALL_SEARCH += ["SEARCH.ARCHVAL.SIZE", "20", "SEARCH.EVAL.RECALIBRATION_IMAGES", "6"]


def commands(path: Path) -> Iterator[list[str]]:
    """The command lines of a document's blocks and tables; a brace is expanded as a shell does."""
    text = path.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ {4}((?:python|pip|make|tensorboard|git) .*)$", text, re.MULTILINE)
    lines += re.findall(r"`(python (?:\w+|tools/\w+|benchmarks/\w+)\.py [^`]*)`", text)
    for line in lines:
        line = re.sub(r"\s#\s.*|\s#$", "", line)
        for name, meant in MINE.items():
            line = line.replace(name, meant)
        yield shlex.split(" ".join(expanded(line)))


def expanded(line: str) -> list[str]:
    found = re.search(r"(\S*)\{([^{} ]*,[^{} ]*)\}(\S*)", line)
    if not found or "'" in line:
        return [line]
    words = " ".join(f"{found[1]}{part}{found[3]}" for part in found[2].split(","))
    return expanded(line[: found.start()] + words + line[found.end() :])


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_every_file_that_is_named_is_there(path: Path) -> None:
    text = path.read_text()
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    folders = "crnas_d2|tools|tests|benchmarks|requirements|configs|docs"
    named = set(re.findall(rf"(?<![\w/.$-])((?:{folders})/[\w/-]+\.\w+)", text))
    places = {link: path.parent / link for link in links if link and "://" not in link}
    places |= {name: ROOT / name for name in named}
    assert not [name for name, place in places.items() if not place.exists()]


def options_of(script: str) -> str:
    """What --help of a script, or of each of its subcommands, shows."""
    run = [sys.executable, str(ROOT / script)]
    shown = subprocess.run([*run, "--help"], capture_output=True, text=True, cwd=ROOT).stdout
    if commands := re.search(r"\{([\w,]+)\} \.\.\.", shown):
        for name in commands[1].split(","):
            shown += subprocess.run([*run, name, "--help"], capture_output=True, text=True).stdout
    return shown


@pytest.fixture(scope="module")
def known_options() -> dict[str, str]:
    return {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_every_command_is_taken(path: Path, known_options: dict[str, str]) -> None:
    """Its script, options, configs and keys are there; what it would do is tested elsewhere."""
    for program, *words in commands(path):
        if program != "python" or words[0] == "-m":
            continue
        script, *words = words
        assert (ROOT / script).is_file(), script
        if script not in known_options:
            known_options[script] = options_of(script)
        assert known_options[script], script
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b", known_options[script]), (script, option)
        configs = [word for word in words if word.endswith(".yaml") and word.startswith("configs/")]
        for config in configs:
            assert (ROOT / config).is_file(), config
        keys = [i for i, word in enumerate(words) if re.fullmatch(r"[A-Z_]+(\.[A-Z0-9_]+)*", word)]
        if keys and configs:
            pairs = words[keys[0] :]
            read_config(str(ROOT / configs[0]), pairs)


MADE = [("reference", "REFERENCE"), pytest.param("model_zoo", "MODEL_ZOO", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("tool", "document"), MADE)
def test_what_is_made_by_a_tool(tool: str, document: str) -> None:
    run = [sys.executable, "-W", "ignore", str(ROOT / "tools" / f"{tool}.py")]
    made = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / f"{document}.md").read_text()


def test_the_model_zoo_has_every_network() -> None:
    text = (ROOT / "docs" / "MODEL_ZOO.md").read_text()
    paths = [p for p in ROOT.glob("configs/*/*.yaml") if not p.name.startswith(("Base", "search"))]
    networks = [p for p in paths if p.parent.name not in ("Search", "OwnData")]
    assert networks and not [
        p for p in networks if f"(../configs/{p.parent.name}/{p.name})" not in text
    ]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


# And the folder of each one's search. docs/OWN_DATA.md: test_prepared_chain.py.
RUN = [("docs/GETTING_STARTED.md", "shapes"), ("README.md", "shapes_long")]


@pytest.mark.slow
@pytest.mark.parametrize(("document", "searched"), RUN)
def test_its_commands_run(document: str, searched: str, tmp_path: Path) -> None:
    """All commands, in their order, in a folder of their own, and then its lines of Python.

    Not those that stand in docs/OWN_DATA.md, too.
    """
    for name in ("configs", "tools", "train_net.py", "search_net.py", "demo.py"):
        os.symlink(ROOT / name, tmp_path / name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    elsewhere, count = list(commands(ROOT / "docs" / "OWN_DATA.md")), 0
    for command in commands(ROOT / document):
        program, script, *rest = command
        if program != "python" or command in elsewhere:
            continue
        if "crnas_d2.data.shapes" in rest:
            rest += ["--train", "60", "--val", "12"]
        if script in ("train_net.py", "search_net.py"):
            rest += [*SMALL, *(SMALL_SEARCH if script == "search_net.py" else ())]
            rest += SMALL_CONTEST if "configs/Shapes/search_long.yaml" in rest else []
        done = subprocess.run(
            [sys.executable, script, *rest],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        count += 1
    out = tmp_path / "output" / searched
    assert count >= 5 and (out / "found" / "model_final.pth").is_file()
    assert (out / "report.html").is_file()
    for block in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
        if "LazyConfig" not in block:  # test_lazy_config.py
            done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=environment)
            assert done.returncode == 0, block
    shutil.rmtree(tmp_path)
