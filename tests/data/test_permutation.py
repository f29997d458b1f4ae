"""The order of pages: a permutation, and a pure function of seed, epoch and index."""

from __future__ import annotations

import numpy as np
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stackwise_providers_data.permutation import Permutation


def _all(count: int, seed: int = 0, epoch: int = 0) -> list[int]:
    return Permutation(count, seed=seed, epoch=epoch)(np.arange(count)).tolist()


@settings(max_examples=examples(60), deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
def test_every_thing_stands_at_one_place(count: int, seed: int, epoch: int) -> None:
    assert sorted(_all(count, seed, epoch)) == list(range(count))


@settings(max_examples=examples(40), deadline=None)
@given(count=st.integers(1, 2**40), seed=st.integers(0, 2**32), data=st.data())
def test_places_may_be_asked_in_any_grouping_of_any_size(count: int, seed: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20, unique=True))
    permutation = Permutation(count, seed=seed, epoch=1)
    together = permutation(np.array(places)).tolist()
    assert together == [int(permutation(np.array([place]))[0]) for place in places]
    assert len(set(together)) == len(places)
    assert all(0 <= thing < count for thing in together)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {tuple(_all(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_things_are_spread_evenly_over_places() -> None:
    """Over many keys each of 6 things stands first equally often: chi-square of 5 degrees stays below 20.5 (p = 0.001)."""
    firsts = np.bincount([_all(6, seed)[0] for seed in range(3000)], minlength=6)
    assert float(((firsts - 500) ** 2 / 500).sum()) < 20.5


def test_neighbours_are_torn_apart() -> None:
    """In a random order of n things the expected number of successors that stay successors is (n - 1) / n, with a variance near 1."""
    order = np.array(_all(10_000))
    assert int((np.diff(order) == 1).sum()) < 8
