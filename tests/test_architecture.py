"""Codes: the text form, and what is refused."""

from __future__ import annotations

import random

import pytest
from networks import random_architecture

from crnas_d2.architecture import FAMILY_STAGES, Architecture

# Text form, stage code, dilation code: of the paper's Tables 5 and 6, and partial ones.
CODES = [
    ("resnet_basic/1-1-2-4/0-0-10-1021", (1, 1, 2, 4), "00101021"),
    ("resnet/1-3-5-7/0-010-00120-0102112", (1, 3, 5, 7), "0010001200102112"),
    (
        "resnet/2-3-17-11/00-000-01010002000101010-11001012011",
        (2, 3, 17, 11),
        "000000101000200010101011001012011",
    ),
    ("resnet/1-3-2-2/_-___-__-__", (1, 3, 2, 2), ""),
    ("resnet/1-3-2-2/2-01_-__-__", (1, 3, 2, 2), "201"),
    ("resnet/1-3-2-2/2-012-__-__", (1, 3, 2, 2), "2012"),
    ("resnet/1-3-2-2/2-012-00-1_", (1, 3, 2, 2), "2012001"),
]


@pytest.mark.parametrize(("text", "stages", "code"), CODES, ids=[text for text, _, _ in CODES])
def test_codes_round_trip(text: str, stages: tuple[int, ...], code: str) -> None:
    digits = tuple(map(int, code))
    architecture = Architecture(text.split("/")[0], stages, digits)
    assert str(architecture) == text
    assert Architecture.parse(text) == architecture
    assert architecture.blocks == sum(stages)
    assert architecture.is_complete == (len(digits) == architecture.blocks)
    assert sum(architecture.digits_by_stage(), ()) == digits


@pytest.mark.parametrize("family", FAMILY_STAGES)
def test_any_code_round_trips(family: str) -> None:
    rng = random.Random(family)
    texts = set()
    for seed in range(300):
        whole = random_architecture(family, seed, largest=12)
        digits = whole.dilation_code[: rng.randint(0, whole.blocks)]
        architecture = Architecture(family, whole.stage_code, digits)
        assert Architecture.parse(str(architecture)) == architecture
        assert architecture.is_complete == (len(digits) == whole.blocks)
        assert hash(Architecture.parse(str(architecture))) == hash(architecture)
        texts.add(str(architecture))
    assert len(texts) > 290


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resnet",
        "resnet/1-3-2-2",
        "resnet/1-3-2-2/0-000-00-00/",
        "resnet/1-03-2-2/0-000-00-00",
        "resnet/ 1-3-2-2/0-000-00-00",
        "resnet/1-3-2-two/0-000-00-00",
        "resnet/1-3-2-2/0-000-00-0",
        "resnet/1-3-2-2/00-00-00-00",
        "resnet/1-3-2-2/00000000",
        "resnet/1-3-2-2/0-0_0-00-00",
        "resnet/1-3-2-2/0-000-00-0\N{SUPERSCRIPT TWO}",
        "resnet/1-3-2-2/0-000-00-0\N{ARABIC-INDIC DIGIT ONE}",
        "resnet/1-3-2-2/0-000-00-00\n",
    ],
)
def test_a_bad_text_form_is_shown(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Architecture.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "stages", "digits", "shown"),
    [
        ("vgg", (1, 1, 1, 1), (), "'vgg'"),
        ("resnet", (1, 1, 1), (), "[1, 1, 1]"),
        ("resnet", (1, 1, 1, 1, 1), (), "[1, 1, 1, 1, 1]"),
        ("resnet", (1, 1, 0, 1), (), "[1, 1, 0, 1]"),
        ("resnet", (1, 1, -2, 1), (), "[1, 1, -2, 1]"),
        ("resnet", (1, 1, 2.0, 1), (), "[1, 1, 2.0, 1]"),
        ("resnet", (1, 1, True, 1), (), "[1, 1, True, 1]"),
        ("resnet", (1, 1, 1, 1), (0, 0, 0, 0, 0), "[0, 0, 0, 0, 0]"),
        ("resnet", (1, 1, 1, 1), (0, 3), "[0, 3]"),
        ("resnet", (1, 1, 1, 1), (0, -1), "[0, -1]"),
        ("resnet", (1, 1, 1, 1), ("0",), "['0']"),
    ],
)
def test_a_bad_code_is_shown(
    family: str, stages: tuple[int, ...], digits: tuple[int, ...], shown: str
) -> None:
    with pytest.raises(ValueError) as caught:
        Architecture(family, stages, digits)
    assert shown in str(caught.value)


def test_undilated_and_extended() -> None:
    plain = Architecture.undilated("resnet", [3, 4, 6, 3])
    assert str(plain) == "resnet/3-4-6-3/000-0000-000000-000"
    grown = Architecture("resnet", (1, 1, 2, 1), (1,)).extended([2]).extended([0, 1])
    assert str(grown) == "resnet/1-1-2-1/1-2-01-_"
    with pytest.raises(ValueError, match=r"\[0, 0, 0, 0, 1\]"):
        Architecture.undilated("resnet", [1, 1, 1, 1]).extended([1])
    with pytest.raises(ValueError, match=r"\[3, 'four', 6, 3\]"):
        Architecture.undilated("resnet", [3, "four", 6, 3])  # type: ignore[list-item]
