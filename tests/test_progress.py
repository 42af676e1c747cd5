"""Bars, and when a run with a known course will end."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest

from crnas_d2.engine import progress
from crnas_d2.engine.progress import Course, Part, progress_bar


@pytest.fixture(autouse=True)
def nothing_is_left_over() -> Iterator[None]:
    yield
    progress.begin({})


def course() -> Course:
    return Course({"a": Part(10, 4, 2.0), "b": Part(5, 0, 10.0), "c": Part(100, 100, 7.0)})


def test_what_is_left_follows_from_what_was_spent() -> None:
    """Half of a's 6 units, each of cost 2, took 3 s: 1 of a costs 1 s, and 1 of b 5 s."""
    run = course()
    with run.at("a"):
        assert run.left(0, 1.0) is None  # nothing has been done yet
        assert run.left(3, 3.0) == pytest.approx((3 * 1, 3 * 1 + 5 * 5))
        run.add(6, 6.0)
        assert run.left(0, 0.0) == pytest.approx((0, 25))
    with run.at("b"):
        # b turns out to be five times as fast as a: 16 s for a cost of 12 + 20.
        assert run.left(2, 10.0) == pytest.approx((3 * 10 * 16 / 32,) * 2)
        run.add(5, 25.0)
        assert run.left(0, 0.0) == (0, 0)
        assert run.left(7, 1.0) == (0, 0)  # more than was known beforehand


def test_a_part_that_is_over_early_leaves_nothing() -> None:
    run = course()
    with run.at("b"):
        assert run.left(1, 10.0) == pytest.approx((40, 40))  # and nothing of a


def test_an_unknown_part_says_nothing() -> None:
    run = course()
    assert run.left(3, 3.0) is None
    with run.at("a"), run.at("pretraining"):
        run.add(50, 50.0)
        assert run.left(3, 3.0) is None
    with run.at("a"):
        assert run.left(1, 2.0) == pytest.approx((2 * 5, 2 * 5 + 2 * 25))


def test_a_bar_shows_it() -> None:
    out = io.StringIO()
    progress.begin({"a": Part(10, 4, 1.0), "b": Part(3, 0, 20.0)})
    with progress.at("a"):
        bar = progress_bar(desc="training", total=10, initial=4, file=out, mininterval=0)
        bar.note = lambda: "; best 3.20"
        bar.start_t -= 30
        bar.update(3)
        bar.close()
    line = re.split(r"[\r\n]+", out.getvalue().strip())[-1]
    assert line.startswith("training:  70%") and line.endswith(
        "; best 3.20; a done in 00:30, all done in 10:30"
    )
    # 3 of cost 1 took 30 s; 3 more of them, and 3 of cost 20, are left.
    with progress.at("b"):
        bar = progress_bar(desc="search", total=3, file=out, mininterval=0)
        bar.close()  # nothing was done
        assert progress._course.left(0, 0.0) == pytest.approx((600, 600), abs=1)


def test_a_bar_without_a_course() -> None:
    out = io.StringIO()
    for _ in progress_bar(range(3), desc="some", file=out, mininterval=0):
        pass
    assert "3/3" in out.getvalue() and "all done" not in out.getvalue()
    # Not on a terminal: each state a line, and no line is empty.
    lines = out.getvalue().splitlines()
    assert len(lines) >= 4 and all(line.startswith("some:") for line in lines)
    assert "\r" not in out.getvalue()
