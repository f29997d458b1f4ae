"""Training's place in numpy's and Python's generators: nobody else moves it, and it moves nobody else's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch_loaders as brought

import stackwise
from stackwise import Built, StepDone
from stackwise.planes.data.randomness import OwnDraws, seeded

TURNS = 6


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    python, array = random.getstate(), np.random.get_state()
    yield
    random.setstate(python)
    np.random.set_state(array)


def drawn(turn: int) -> list[float]:
    """Nothing in every third turn, and an odd number of normal ones: generators hold the other one of a pair back."""
    return [] if turn % 3 == 1 else [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.normal())]


def turns(draws: OwnDraws, between: Callable[[], object], first: int = 0) -> list[list[float]]:
    every = []
    for turn in range(first, TURNS):
        with draws:
            every.append(drawn(turn))
        between()
    return every


def begun(seed: int = 5) -> OwnDraws:
    draws = OwnDraws(seed)
    draws.begin()
    return draws


def everything() -> None:
    random.gauss(0, 1), np.random.rand(7), np.random.seed(3), random.seed(3)


@pytest.mark.parametrize(
    "between", [random.random, lambda: random.seed(1), lambda: random.gauss(0, 1), lambda: np.random.rand(3), everything]
)
def test_what_others_draw_moves_nothing(between: Callable[[], object]) -> None:
    assert turns(begun(), between) == turns(begun(), lambda: None)


def test_numpy_goes_on_from_turn_to_turn_as_a_generator_of_that_seed() -> None:
    draws, alone = begun(), np.random.RandomState(5)
    for _ in range(TURNS):
        with draws:
            assert np.random.rand(400).tolist() == alone.rand(400).tolist()


def test_python_goes_on_likewise_with_64_bits_before_and_after_each_turn() -> None:
    draws, alone = begun(), random.Random(5)
    for _ in range(TURNS):
        alone.getrandbits(64)
        with draws:
            assert [random.random() for _ in range(400)] == [alone.random() for _ in range(400)]
        alone.getrandbits(64)


def test_others_keep_numpys_generator_and_go_on_with_numbers_of_their_own() -> None:
    draws, alone = begun(), np.random.RandomState(0)
    np.random.seed(0)
    theirs: list[float] = []
    for turn in range(TURNS):
        with draws:
            drawn(turn)
        assert np.random.rand(2).tolist() == alone.rand(2).tolist()
        theirs += [random.random() for _ in range(50)]
    assert len(set(theirs)) == 50 * TURNS


@pytest.mark.parametrize("stop", range(TURNS))
def test_a_saved_place_goes_on(stop: int) -> None:
    whole, draws = turns(begun(), lambda: None), begun()
    for turn in range(stop):
        with draws:
            drawn(turn)
    saved = deepcopy(draws.state_dict())
    everything()
    later = OwnDraws(99)
    later.load_state_dict(saved)
    assert turns(later, lambda: None, first=stop) == whole[stop:]


def test_an_error_in_a_turn_gives_numpys_generator_back() -> None:
    draws = begun()
    np.random.seed(0)
    with pytest.raises(ZeroDivisionError), draws:
        _ = np.random.rand() / 0
    assert np.random.rand() == np.random.RandomState(0).rand()


def test_seeded_code_leaves_all_three_generators_where_they_were() -> None:
    def following() -> list[Any]:
        return [np.random.rand(3).tolist(), random.random(), torch.rand(3).tolist()]

    np.random.seed(0), random.seed(0), torch.manual_seed(0)
    expected = following()
    np.random.seed(0), random.seed(0), torch.manual_seed(0)
    with seeded(7):
        following()
    assert following() == expected


# -- in a run --------------------------------------------------------------------------------------------------------


class Rarely(brought.NextToken):
    """Draws in the steps 0, 3, 6, …, and from the same generators in every evaluation."""

    def prepare(self, batch: Any, moment: Any, generator: torch.Generator) -> Any:
        self.noisy = moment.step % 3 == 0
        return super().prepare(batch, moment, generator)


class Eager:
    """A reaction that draws."""

    def __init__(self) -> None:
        self.factor = 1.0

    def watch(self, step: int, metrics: Any) -> str | None:
        self.factor = 0.5 + random.random() + float(np.random.rand())
        return "chance"

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state: Any) -> None:
        self.factor = state["factor"]


def machine_of(**declared: Any) -> Any:
    model = {
        "embedding": Built(brought.Embed),
        "rack": Built(lambda stacks: brought.Rack(), stacks=[{"base": 1}]),
        "head": Built(brought.Logits),
    }
    batches = list(torch.utils.data.DataLoader(brought.Numbered(), batch_size=5))
    return stackwise.assemble(
        stackwise.experiment(
            run={"seed": 1, "horizon": "9 steps", "device": "cpu"},
            task=Rarely(),
            data=batches,
            model=model,
            optimizer={"use": "optim.sgd", "lr": 0.1, **declared.pop("optimizer", {})},
            **declared,
        )
    )


def losses(machine: Any, stop: int | None = None, after: Callable[[], object] = lambda: None) -> tuple[list[float], Any]:
    every: list[float] = []
    for event in machine.train():
        if isinstance(event, StepDone):
            every.append(event.loss)
            if event.step + 1 == stop:
                return every, deepcopy(machine.state())
        after()
    return every, None


def test_an_evaluation_an_observer_and_a_loop_that_draw_change_no_step() -> None:
    whole, _ = losses(machine_of())
    held = list(torch.utils.data.DataLoader(brought.Numbered(), batch_size=5))
    evaluate = {"h": {"every": "2 steps", "batches": 2, "sources": {"h": held}}}
    assert losses(machine_of(evaluate=evaluate))[0] == whole
    assert losses(machine_of(observers=[lambda event: everything()]))[0] == whole
    assert losses(machine_of(), after=everything)[0] == whole
    phases = {"one": {"until": "50%"}, "two": {"until": "100%"}}
    assert losses(machine_of(phases=phases), after=everything)[0] == whole


@pytest.mark.parametrize(("stop", "optimizer"), [(1, {}), (3, {}), (4, {}), (8, {}), (5, {"reaction": Built(Eager)})])
def test_a_run_that_goes_on_draws_what_it_would_have_drawn(stop: int, optimizer: Any) -> None:
    whole, _ = losses(machine_of(optimizer=optimizer))
    first, state = losses(machine_of(optimizer=optimizer), stop)
    later = machine_of(optimizer=optimizer)
    later.restore(state)
    everything()
    assert first + losses(later)[0] == whole
