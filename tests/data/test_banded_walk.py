"""The walk that opens up from easy to hard, against a simulation that draws one unit at a time."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import ceil
from random import Random

import numpy as np
import pytest
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stackwise import DataError, UserError
from stackwise_providers_data.banded_walk import BANDS, BandedWalk
from stackwise_providers_data.permutation import Permutation
from stackwise_providers_data.walk import EpochWalk

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1
SEED = 3


def _walk(ranked: list[int], *, size: int = 1, exposed: float = 1.0, repeat: bool = True) -> BandedWalk:
    order = np.array(ranked, dtype=np.int64)
    return BandedWalk(order, size=size, seed=SEED, shuffle=True, exposed=exposed, repeat=repeat, unit="rows", name="corpus")


def _entries(walk: BandedWalk | EpochWalk, count: int, size: int) -> list[tuple[int, int]]:
    """Unit and place inside it of each of the next entries."""
    units, before = walk.advance(count)
    return [(int(unit), place) for unit in units for place in range(size)][before : before + count]


def _word(number: int) -> int:
    """The finaliser of SplitMix64, in whole numbers."""
    z = (number * GOLDEN & MASK) ^ SEED
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class Simulated:
    """Draws from the visible bands, one unit at a time."""

    def __init__(self, ranked: list[int]) -> None:
        bands = min(BANDS, len(ranked))
        edges = [band * len(ranked) // bands for band in range(bands + 1)]
        self.units = [ranked[a:b] for a, b in itertools.pairwise(edges)]
        self.read = [0] * bands

    def draw(self, exposed: float) -> int:
        visible = self.units[: max(1, ceil(Fraction(exposed).limit_denominator(1000) * len(self.units)))]
        sizes = [len(band) for band in visible]
        place = (_word(sum(self.read)) >> 11) * sum(sizes) >> 53
        band = next(b for b in range(len(sizes)) if place < sum(sizes[: b + 1]))
        epoch, nth = divmod(self.read[band], sizes[band])
        self.read[band] += 1
        seed = (SEED + GOLDEN * (band + 1)) % 2**64
        return visible[band][int(Permutation(sizes[band], seed=seed, epoch=epoch)(np.array([nth]))[0])]


requests = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])), min_size=1, max_size=12)


@settings(max_examples=examples(60))
@given(count=st.integers(11, 150), size=st.integers(1, 5), asked=requests, mix=st.randoms(use_true_random=False))
def test_what_is_read_is_what_the_simulation_draws(count: int, size: int, asked: list[tuple[int, float]], mix: Random) -> None:
    ranked = list(range(count))
    mix.shuffle(ranked)
    walk, simulated, left = _walk(ranked, size=size, exposed=0.5), Simulated(ranked), []
    for entries, exposed in asked:
        walk.apply_values({"exposed": exposed})
        while len(left) < entries:
            unit = simulated.draw(exposed)
            left += [(unit, place) for place in range(size)]
        assert _entries(walk, entries, size) == left[:entries]
        left = left[entries:]


def test_only_visible_bands_are_read_and_none_twice_before_the_others_of_its_band() -> None:
    walk = _walk(list(range(640)), exposed=0.2)
    assert walk.visible == 13  # ceil(0.2 * 64)
    units, _ = walk.advance(3000)
    assert set(units.tolist()) == set(range(130))
    for band in range(13):
        of_band = [unit for unit in units.tolist() if unit // 10 == band]
        for first in range(0, len(of_band) - 9, 10):
            assert len(set(of_band[first : first + 10])) == 10


def test_visible_units_are_drawn_evenly() -> None:
    """3000 draws over 13 bands of equal size: chi-square of 12 degrees stays below 32.9 (p = 0.001)."""
    units, _ = _walk(list(range(640)), exposed=0.2).advance(3000)
    counts = np.bincount(units // 10, minlength=13)
    assert float(((counts - 3000 / 13) ** 2 / (3000 / 13)).sum()) < 32.9


@pytest.mark.parametrize(("exposed", "bands"), [(0, 1), (1 / 64, 1), (0.5, 32), (0.50001, 33), (1, 64)])
def test_the_number_of_visible_bands(exposed: float, bands: int) -> None:
    assert _walk(list(range(100)), exposed=exposed).visible == bands


def test_with_everything_visible_from_the_start_it_is_the_ordinary_walk() -> None:
    walk = _walk(list(range(99, -1, -1)), size=3)
    ordinary = EpochWalk(100, size=3, seed=SEED, shuffle=True, unit="rows", name="corpus")
    for count in (7, 50, 400):
        assert _entries(walk, count, 3) == _entries(ordinary, count, 3)


def test_what_is_left_of_a_page_comes_first_when_exposure_falls() -> None:
    walk = _walk(list(range(100)), size=4)
    (last, place), *_ = reversed(_entries(walk, 6, 4))
    walk.apply_values({"exposed": 0.1})
    after = _entries(walk, 10, 4)
    assert after[:2] == [(last, place + 1), (last, place + 2)]
    assert {unit for unit, _ in after[2:]} <= set(range(11))  # 7 of 64 bands hold 7 * 100 // 64 = 10 units
    single = _walk(list(range(100)), size=4)
    _entries(single, 6, 4)
    single.apply_values({"exposed": 0.1})
    assert [entry for _ in range(10) for entry in _entries(single, 1, 4)] == after


@settings(max_examples=examples(40))
@given(asked=requests, cut=st.integers(0, 12), start=st.sampled_from([0.3, 1.0]))
def test_put_back_at_any_cut_it_goes_on_the_same(asked: list[tuple[int, float]], cut: int, start: float) -> None:
    whole, first, second = (_walk(list(range(40)), size=3, exposed=start) for _ in range(3))

    def read(walk: BandedWalk, requests: list[tuple[int, float]]) -> list[tuple[int, int]]:
        found = []
        for entries, exposed in requests:
            found += _entries(walk, entries, 3)
            walk.apply_values({"exposed": exposed})
        return found

    expected = read(whole, asked)
    begun = read(first, asked[:cut])
    second.load_state_dict(first.state_dict())
    second.apply_values({"exposed": asked[cut - 1][1] if 0 < cut <= len(asked) else start if not cut else asked[-1][1]})
    assert begun + read(second, asked[cut:]) == expected


def test_the_state_does_not_grow() -> None:
    walk = _walk(list(range(1000)), size=2, exposed=0.5)
    walk.advance(7777)
    assert set(walk.state_dict()) == {"epoch", "position", "bands", "unit", "offset"}
    assert len(walk.state_dict()["bands"]) == 64


@pytest.mark.parametrize(
    "change",
    [{"bands": [0]}, {"bands": None}, {"bands": [-1] * 64}, {"unit": 100}, {"unit": "a"}, {"offset": 3}, {"epoch": -1}],
)
def test_places_that_are_none(change: dict[str, object]) -> None:
    walk = _walk(list(range(100)), size=3)
    with pytest.raises(DataError):
        walk.load_state_dict({**walk.state_dict(), **change})


def test_without_repetition_every_visible_unit_comes_once() -> None:
    walk = _walk(list(range(100)), exposed=0.5, repeat=False)
    units = [int(unit) for count in (13, 20, 17) for unit in walk.advance(count)[0]]
    assert sorted(units) == list(range(50))
    state = walk.state_dict()
    with pytest.raises(DataError, match="its 50 visible pages or documents have 0 left, 1 are asked for: set repeat: true"):
        walk.advance(1)
    assert walk.state_dict() == state
    walk.apply_values({"exposed": 1.0})
    assert sorted(walk.advance(50)[0].tolist()) == list(range(50, 100))


def test_one_epoch_of_the_ordinary_walk() -> None:
    walk = EpochWalk(5, size=2, seed=1, shuffle=True, repeat=False, unit="tokens", name="corpus")
    assert len(_entries(walk, 9, 2)) == 9
    with pytest.raises(DataError, match=r"corpus: source exhausted: its one epoch of 10 tokens has 1 left where 2 are asked for"):
        walk.advance(2)
    walk.advance(1)
    with pytest.raises(DataError, match="has 0 left"):
        walk.advance(1)


def test_exposure_without_a_ranking_is_refused() -> None:
    walk = EpochWalk(5, seed=1, shuffle=True, unit="rows", name="corpus")
    walk.apply_values({"exposed": 1.0})
    with pytest.raises(UserError, match=r"exposed is 0\.5, but nothing ranks the data"):
        walk.apply_values({"exposed": 0.5})
