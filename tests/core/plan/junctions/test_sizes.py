"""The solver alone: equalities, bounds, and what the bounds make of sizes that are left out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise.plan.junctions.sizes import Sizes, Term

LOADER, TASK, EMBEDDING, HEAD = (("loader", "ids"), ("task", "ids"), ("embedding", "vocab"), ("head", "vocab"))


def settled(*limits: tuple[Term, Term], reaches: tuple[tuple[Term, Term, int], ...] = (), **fixed: int) -> Sizes:
    """A solver after `limits` and `reaches`; `fixed` sizes by role."""
    sizes = Sizes()
    for variable in (LOADER, TASK, EMBEDDING, HEAD):
        if variable[0] in fixed:
            sizes.fix(variable, fixed[variable[0]])
    for limit in limits:
        sizes.limit(*limit)
    for reach in reaches:
        sizes.reach(*reach)
    sizes.settle()
    return sizes


def test_equal_terms_have_one_size_and_remember_who_gave_it():
    sizes = Sizes()
    assert sizes.equate(TASK, HEAD) and sizes.equate(HEAD, EMBEDDING) and sizes.size(TASK) is None
    sizes.fix(EMBEDDING, 7)
    assert [sizes.size(term) for term in (TASK, HEAD, EMBEDDING)] == [7, 7, 7]
    assert sizes.origin(TASK) == EMBEDDING
    assert sizes.equal.share(TASK, [HEAD, LOADER]) == [HEAD]


@pytest.mark.parametrize("order", list(itertools.permutations([(TASK, 5), (TASK, HEAD), (HEAD, EMBEDDING)])))
def test_a_number_reaches_every_equal_term(order: tuple[tuple[Term, Term], ...]):
    sizes = Sizes()
    assert all(sizes.equate(*pair) for pair in order)
    assert sizes.size(EMBEDDING) == 5


def test_a_contradiction_joins_nothing():
    sizes = Sizes()
    sizes.fix(TASK, 3)
    assert not sizes.equate(TASK, 4) and not sizes.equate(5, TASK) and sizes.equate(3, TASK)
    sizes.fix(HEAD, 4)
    assert not sizes.equate(TASK, HEAD)
    assert (sizes.size(TASK), sizes.size(HEAD)) == (3, 4)


def test_an_open_lower_end_is_the_upper_one_and_of_two_the_smaller():
    assert settled((LOADER, TASK), (TASK, EMBEDDING), embedding=64).size(LOADER) == 64
    for limits in itertools.permutations([(TASK, EMBEDDING), (TASK, HEAD)]):
        assert settled(*limits, embedding=64, head=32).size(TASK) == 32


def test_an_open_upper_end_takes_the_largest_lower_one():
    for limits in itertools.permutations([(LOADER, TASK), (300, TASK), (TASK, EMBEDDING)]):
        sizes = settled(*limits, loader=256)
        assert sizes.size(TASK) == sizes.size(EMBEDDING) == 300


def test_a_declared_size_is_never_raised():
    assert settled((LOADER, TASK), loader=256, task=128).size(TASK) == 128


def test_a_reach_is_no_equality():
    reach = ((LOADER, TASK, 2),)
    assert settled(reaches=reach, loader=256).size(TASK) == 258
    assert settled(reaches=reach, task=256).size(LOADER) == 254
    assert settled((100, LOADER), reaches=reach, task=256).size(LOADER) == 100
    assert settled(reaches=((LOADER, TASK, 0), (LOADER, HEAD, 1)), task=9, head=9).size(LOADER) == 8


@given(margins=st.lists(st.integers(0, 9), min_size=1, max_size=6), least=st.integers(1, 100), data=st.data())
def test_a_chain_of_reaches_adds_up_in_any_order(margins: list[int], least: int, data: st.DataObject):
    chain = [(f"part-{i}", "size") for i in range(len(margins) + 1)]
    sizes = Sizes()
    sizes.fix(chain[0], least)
    for lower, upper, margin in data.draw(st.permutations(list(zip(chain, chain[1:], margins, strict=False)))):
        sizes.reach(lower, upper, margin)
    sizes.settle()
    assert sizes.size(chain[-1]) == least + sum(margins)


def test_a_circle_of_reaches_ends():
    assert settled(reaches=((TASK, HEAD, 1), (HEAD, TASK, 1)), loader=1).size(HEAD) is None
    settled((LOADER, TASK), reaches=((TASK, HEAD, 1), (HEAD, TASK, 1)), loader=1)


def test_bounds_link_what_they_do_not_equate():
    sizes = settled((LOADER, TASK), loader=5)
    assert sizes.linked.share(TASK, [LOADER, HEAD]) == [LOADER]
    assert sizes.equal.share(TASK, [LOADER, HEAD]) == []
