"""Seeds, and the two search spaces: eligible codes, sampled paths, completions of partial codes."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Hashable, Iterable

import pytest

from crnas_d2.architecture import FAMILY_STAGES, Architecture
from crnas_d2.errors import InputError
from crnas_d2.seeding import derive_seed
from crnas_d2.space import FAMILY_DEPTHS, RESNET_DEPTHS, DilationSpace, StageSpace

ELIGIBLE = {8: 9, 16: 153, 33: 374}
RESNETS = [family for family in FAMILY_STAGES if FAMILY_DEPTHS[family] == RESNET_DEPTHS]
DRAWS = 4000


def stage_space(family: str = "resnet") -> StageSpace:
    return StageSpace(family, RESNET_DEPTHS)


def assert_uniform(draws: Iterable[Hashable], options: int) -> None:
    """Chi-square over all options; a true uniform exceeds the bound once in about 30,000 times."""
    counts = Counter(draws)
    assert len(counts) == options
    expected = sum(counts.values()) / options
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    free = options - 1
    # Wilson-Hilferty: the cube root of chi-square over its freedom is nearly normal; 4 sigma.
    assert chi_square < free * (1 - 2 / (9 * free) + 4 * (2 / (9 * free)) ** 0.5) ** 3


@pytest.mark.parametrize(
    ("parts", "sha256"),
    [  # the first eight bytes of `printf 0/path/0 | sha256sum`
        ((0, "path", 0), 0xEB2E807C3B48C23E),
        ((7, "split", "00001"), 0xF3E2DA4F1395663E),
        ((1, "completion", 3, "archval 2"), 0x5F797F00FB9DC5D3),
    ],
)
def test_seeds_are_what_they_were(parts: tuple[int | str, ...], sha256: int) -> None:
    """A change of the hash would give every journal and every run another meaning."""
    assert derive_seed(*parts) == sha256 >> 1


def test_every_part_of_a_seed_matters() -> None:
    seeds = [
        derive_seed(seed, what, iteration)
        for seed in range(10)
        for what in ("path", "epoch", "augment")
        for iteration in range(50)
    ]
    seeds += [derive_seed(1, 2), derive_seed(12), derive_seed(2, 1), derive_seed(1, "path", 2, 0)]
    assert len(set(seeds)) == len(seeds)
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    # A seed's last bits are as good as its first ones.
    assert_uniform((seed % 8 for seed in seeds), 8)
    assert_uniform((seed >> 60 for seed in seeds), 8)


def brute_force(total: int) -> set[tuple[int, int, int, int]]:
    """The paper's depths, Sec. 3.2.1, written out once more."""
    found = set()
    for t1 in range(1, 11):
        for t2 in range(1, 11):
            for t3 in (2, 3, 5, 6, 9, 11, 14, 17, 20, 23):
                t4 = total - t1 - t2 - t3
                if t4 in (2, 3, 4, 6, 7, 9, 11, 13, 15, 17):
                    found.add((t1, t2, t3, t4))
    return found


@pytest.mark.parametrize(("budget", "count"), ELIGIBLE.items())
@pytest.mark.parametrize("family", RESNETS)
def test_eligible_codes(family: str, budget: int, count: int) -> None:
    space = stage_space(family)
    codes = space.eligible(budget)
    assert len(codes) == count
    assert {code.stage_code for code in codes} == brute_force(budget)
    assert all(code.family == family and code in space for code in codes)
    assert all(code.is_complete and not any(code.dilation_code) for code in codes)


def test_eligible_codes_with_weighted_blocks() -> None:
    """MobileNetV2, paper A.2: 1.5 m1 + m2 + m3 + 0.75 m4 + 1.25 m5 = 16, in quarters."""
    space = StageSpace("mobilenetv2", FAMILY_DEPTHS["mobilenetv2"])
    low, high, wide = range(1, 6), range(2, 7), range(3, 8)
    expected = [
        (1, 1, *m, 1, 1, 1)
        for m in itertools.product(low, low, wide, high, high)
        if 6 * m[0] + 4 * m[1] + 4 * m[2] + 3 * m[3] + 5 * m[4] == 4 * 16
    ]
    assert [code.stage_code for code in space.eligible(16)] == expected
    assert len(expected) == 43
    assert (1, 1, 2, 3, 4, 3, 3, 1, 1, 1) in expected  # the baseline, paper Table 5
    assert (1, 1, 2, 2, 3, 4, 4, 1, 1, 1) in expected  # what the paper found


def test_only_eligible_keeps_the_eligible_codes_and_no_depth_in_vain() -> None:
    space = stage_space()
    small = space.only_eligible([8, 16])
    assert small.depths != space.depths
    assert small.eligible(8) == space.eligible(8)
    assert small.eligible(16) == space.eligible(16)
    used = brute_force(8) | brute_force(16)
    for i, depths in enumerate(small.depths):
        assert list(depths) == sorted({code[i] for code in used})


@pytest.mark.parametrize(
    ("budget", "nearest"), [(5, "6, 7, 8"), (61, "58, 59, 60"), (16.5, "15, 16, 17")]
)
def test_a_budget_that_no_code_meets(budget: float, nearest: str) -> None:
    for call in (stage_space().eligible, lambda b: stage_space().only_eligible([8, b])):
        with pytest.raises(InputError) as caught:
            call(budget)
        message = str(caught.value)
        assert message.startswith(f"SEARCH.BUDGETS: {budget:g}: ")
        assert "from 6 to 60" in message
        assert message.endswith(f"nearest: {nearest}")
        assert "\n" not in message


def test_the_whole_space() -> None:
    space = stage_space()
    assert [code.stage_code for code in space.codes()] == list(itertools.product(*RESNET_DEPTHS))
    assert Architecture.undilated("resnet", (1, 1, 2, 2)) in space
    assert Architecture.undilated("resnet", (1, 1, 4, 2)) not in space
    assert Architecture.undilated("resnet", (11, 1, 2, 2)) not in space
    assert Architecture.undilated("resnet_basic", (1, 1, 2, 2)) not in space
    assert Architecture.parse("resnet/1-1-2-2/0-0-01-00") not in space


# ---- sampling ----------------------------------------------------------------------------------

DILATION = DilationSpace("resnet", (1, 3, 2, 2))
MOBILENET = DilationSpace("mobilenetv2", (1, 1, 2, 2, 3, 4, 4, 1, 1, 1))


def test_paths_are_what_they_were() -> None:
    """Runs that were started with an older version resume along the same paths."""
    assert [stage_space().sample(0, i).stage_code for i in range(3)] == [
        (5, 10, 23, 6),
        (3, 10, 5, 17),
        (3, 2, 3, 9),
    ]
    assert [str(DILATION.sample(0, i)).split("/")[2] for i in range(3)] == [
        "1-220-22-10",
        "0-202-02-22",
        "0-001-22-01",
    ]
    partial = Architecture.parse("resnet/1-3-2-2/1-2__-__-__")
    assert str(DILATION.complete(partial, 3, "archval 0")) == "resnet/1-3-2-2/1-210-21-10"


@pytest.mark.parametrize(
    "space", [stage_space(), DILATION, MOBILENET], ids=["stage", "dilation", "mobilenet"]
)
def test_a_path_is_a_function_of_seed_and_iteration(space: StageSpace | DilationSpace) -> None:
    among = stage_space().eligible(16) if isinstance(space, StageSpace) else ()
    for codes in ((), among):
        random.seed(1)
        first = [space.sample(3, i, codes) for i in range(40)]
        random.seed(2)
        state = random.getstate()
        again = [space.sample(3, i, codes) for i in reversed(range(40))][::-1]
        assert random.getstate() == state
        assert first == again
        assert all(path in space and path.is_complete for path in first)
        assert first != [space.sample(4, i, codes) for i in range(40)]


def test_stage_paths_are_uniform_and_independent_in_each_stage() -> None:
    space = stage_space()
    paths = [space.sample(11, i).stage_code for i in range(DRAWS)]
    for i, depths in enumerate(RESNET_DEPTHS):
        assert {path[i] for path in paths} == set(depths)
        assert_uniform((path[i] for path in paths), 10)
    for i, j in itertools.combinations(range(4), 2):
        assert_uniform(((path[i], path[j]) for path in paths), 100)
    assert_uniform(((a[0], b[0]) for a, b in zip(paths, paths[1:])), 100)


def test_stage_paths_among_the_eligible_codes_are_uniform() -> None:
    codes = stage_space().eligible(8)
    paths = [stage_space().sample(11, i, codes) for i in range(DRAWS)]
    assert set(paths) == set(codes)
    assert_uniform(paths, len(codes))


def test_dilation_paths_are_uniform_and_independent_in_each_block() -> None:
    paths = [DILATION.sample(11, i).dilation_code for i in range(DRAWS)]
    for i in range(8):
        assert_uniform((path[i] for path in paths), 3)
    for i, j in itertools.combinations(range(8), 2):
        assert_uniform(((path[i], path[j]) for path in paths), 9)
    among = [DILATION.root.extended([d] * 8) for d in range(3)]
    assert_uniform((DILATION.sample(11, i, among) for i in range(DRAWS)), 3)


def test_stem_tail_and_pooling_of_mobilenet_have_nothing_to_choose() -> None:
    """Paper, Table 6: 20 digits, of which the first and the last two are not of a depthwise 3x3."""
    assert MOBILENET.alternatives.count((0, 1, 2)) == 17
    assert str(MOBILENET.root) == "mobilenetv2/1-1-2-2-3-4-4-1-1-1/0-_-__-__-___-____-____-_-_-_"
    last = Architecture.parse("mobilenetv2/1-1-2-2-3-4-4-1-1-1/0-1-02-10-201-1201-2010-_-_-_")
    assert [str(a).rsplit("-", 3)[1:] for a in MOBILENET.extensions(last)] == [
        [digit, "0", "0"] for digit in "012"
    ]
    draws = [MOBILENET.sample(3, i) for i in range(200)]
    for complete in (MOBILENET.complete, MOBILENET.complete_evenly):
        draws += [complete(MOBILENET.root, 3, i) for i in range(200)]
    for position in range(20):
        seen = {path.dilation_code[position] for path in draws}
        assert seen == ({0} if position in (0, 18, 19) else {0, 1, 2})
    for entry, digits in ((1, (1,)), (9, (0,) * 18 + (1, 0)), (10, (0,) * 19 + (2,))):
        with pytest.raises(ValueError, match=f": entry {entry} of .*allowed is 1, with digit 0"):
            Architecture("mobilenetv2", MOBILENET.stage_code, digits)
    with pytest.raises(ValueError, match=": entry 9 of "):
        Architecture.undilated("mobilenetv2", (1, 1, 2, 2, 3, 4, 4, 1, 2, 1))


# ---- completions of partial codes ----------------------------------------------------------------


def grown(rng: random.Random, blocks: int) -> Architecture:
    return DILATION.root.extended(rng.randrange(3) for _ in range(blocks))


@pytest.mark.parametrize("blocks", range(8))
def test_candidates_of_one_step_meet_the_same_draws(blocks: int) -> None:
    rng = random.Random(blocks)
    for batch in ("archval 0", "archval 1", "archtrain 0", 7):
        random.seed(1)
        partials = [grown(rng, blocks) for _ in range(9)]
        state = random.getstate()
        whole = [DILATION.complete(partial, 5, batch) for partial in partials]
        assert random.getstate() == state
        for partial, architecture in zip(partials, whole):
            assert architecture.is_complete and architecture in DILATION
            assert architecture.dilation_code[:blocks] == partial.dilation_code
        assert len({architecture.dilation_code[blocks:] for architecture in whole}) == 1


def test_draws_differ_between_batches_blocks_and_seeds() -> None:
    partial = DILATION.root.extended([1, 2])
    batches = [f"{part} {i}" for part in ("archtrain", "archval") for i in range(20)]
    by_batch = {DILATION.complete(partial, 5, batch) for batch in batches}
    assert len(by_batch) > 30  # of 3**6 = 729, with 40 draws
    by_seed = {DILATION.complete(partial, seed, "archval 0") for seed in range(40)}
    assert len(by_seed) > 30
    ends = {
        DILATION.complete(grown(random.Random(0), blocks), 5, "archval 0").dilation_code[-2:]
        for blocks in range(7)
    }
    assert len(ends) > 2


def test_draws_are_uniform() -> None:
    whole = [DILATION.complete(DILATION.root.extended([1]), 5, i).dilation_code for i in range(DRAWS)]
    for i in range(1, 8):
        assert_uniform((code[i] for code in whole), 3)
    for i, j in itertools.combinations(range(1, 8), 2):
        assert_uniform(((code[i], code[j]) for code in whole), 9)


def test_dilation_space_contains() -> None:
    whole = DILATION.sample(0, 0)
    assert DILATION.complete(whole, 5, "archval 0") == whole  # nothing is left to draw
    assert DILATION.root in DILATION and whole in DILATION
    assert Architecture("resnet", (1, 3, 2, 3), ()) not in DILATION
    assert Architecture("resnet_basic", (1, 3, 2, 2), ()) not in DILATION


def test_even_completions_reach_every_alternative() -> None:
    space = DilationSpace("resnet", (2, 3, 2, 1))
    partial = space.root.extended([1, 2])
    for group in range(40):
        three = [space.complete_evenly(partial, 7, 3 * group + i) for i in range(3)]
        assert all(a.is_complete and a.dilation_code[:2] == (1, 2) for a in three)
        for digits in list(zip(*(a.dilation_code for a in three)))[2:]:
            assert set(digits) == {0, 1, 2}
    first = [space.complete_evenly(partial, 7, batch).dilation_code for batch in range(120)]
    assert first == [space.complete_evenly(partial, 7, batch).dilation_code for batch in range(120)]
    assert len(set(first)) > 60
    other = space.root.extended([0, 0])  # another candidate of the same step: the same draws
    assert [space.complete_evenly(other, 7, b).dilation_code[2:] for b in range(9)] == [
        code[2:] for code in first[:9]
    ]
