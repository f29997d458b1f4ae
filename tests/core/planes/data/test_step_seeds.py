"""Seeds that are made for many steps at once are those of `step_seed`, one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stackwise.planes.data.randomness import StepSeeds
from stackwise.timeline.streams import step_seed


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
def test_they_are_the_same_numbers_wherever_one_begins(key: int, steps: list[int]) -> None:
    seeds = StepSeeds(key)
    for step in steps:
        assert [seeds(step + k) for k in range(3)] == [step_seed(key, step + k) for k in range(3)]


def test_from_step_to_step_across_the_edges_of_what_is_made_at_once() -> None:
    seeds = StepSeeds(2**64 - 1)
    assert [seeds(step) for step in range(1000)] == [step_seed(2**64 - 1, step) for step in range(1000)]


def test_a_later_micro_batch_has_a_seed_of_its_own() -> None:
    assert StepSeeds(7)(5, 3) == step_seed(step_seed(7, 5), 3)
