"""A machine restored at any step goes on as if it had never stopped, bit for bit."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_curricula import Curriculum, curricula, walks
from tiny_walks import base, machine_of, memory
from whole_runs import digested

from stackwise import DataError, StepDone, TrainingMachine, UserError

Saved = dict[str, Any]


def saved(machine: TrainingMachine) -> Saved:
    """The state as it is now."""
    return deepcopy(machine.state())


def told(events: list[Any]) -> list[Any]:
    """Events without the time they took."""
    return [event._replace(**dict.fromkeys({"seconds", "cpu_seconds"} & {*event._fields}, 0.0)) for event in events]


def same(left: Saved, right: Saved) -> bool:
    one, other = (digested({**state, "seconds": 0, "cpu_seconds": 0}) for state in (left, right))
    return bool(one == other)


def states_of(config: dict[str, Any]) -> tuple[list[Any], dict[int, tuple[int, Saved]], Saved]:
    """Every event of a run; step → how many events had come by then, and the state; and the last state."""
    machine, events, states = machine_of(config), [], {}
    for event in machine.train():
        events.append(event)
        if isinstance(event, StepDone):
            states[machine.step] = (len(events), saved(machine))
    return told(events), states, states[machine.step][1]


def goes_on(config: dict[str, Any], state: Saved) -> tuple[list[Any], Saved]:
    """The events after `RunStarted` of a new machine that was put to a state, and its own last state."""
    machine = machine_of(config)
    machine.restore(state)
    assert same(saved(machine), state)
    events, last = [], state
    for event in machine.train():
        events.append(event)
        if isinstance(event, StepDone):
            last = saved(machine)
    return told(events[1:]), last


@walks(12)
@given(curricula(), st.data())
def test_a_random_curriculum_goes_on_from_any_step(drawn: Curriculum, data: st.DataObject) -> None:
    config = {**drawn.config(), "evaluate": {"e": {"every": "2 steps", "batches": 1}}}
    events, states, end = states_of(config)
    for step in data.draw(st.sets(st.sampled_from(sorted(states)), min_size=1, max_size=4)):
        before, state = states[step]
        rest, last = goes_on(config, state)
        assert rest == events[before:]
        assert same(last, end)


def test_the_places_where_others_fail() -> None:
    """Boundary −1, 0, +1, after growth, after a thaw, inside accumulation, at the end of an epoch and of the run."""
    config = busy()
    events, states, end = states_of(config)
    for step in sorted(states):
        before, state = states[step]
        rest, last = goes_on(config, state)
        assert rest == events[before:], step
        assert same(last, end), step


def busy() -> dict[str, Any]:
    """Eleven rows of each source, read five at a time in two micro-batches: epochs end inside of both."""
    sources = {name: {"use": "data.memory", "arrays": {"tokens": torch.arange(55).view(11, 5) % 16}} for name in ("a", "b")}
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "dropout": 0.2, "stacks": [{"base": 1}]}
    return base(
        data={"sources": {"a": sources["a"]}, "batch_size": 5, "accumulate": 2, "seq_len": 4},
        model={"embedding": {"use": "transformer.token", "vocab": 16}, "rack": rack, "head": {"use": "transformer.lm"}},
        optimizer={"use": "optim.adamw", "lr": {"cosine": {"from": 0.01, "warmup": "20%"}}, "clip": 0.5},
        phases={
            "one": {"until": "25%"},
            "two": {
                "until": "50%",
                "model": {"rack": {"stacks": [{"base": 3}]}, "freeze": ["rack.stacks.base.0"]},
                "enter": {"growth": {"use": "transformer.stack"}},
                "data": {"sources": {"b": sources["b"]}, "mix": {"a": 1, "b": {"linear": {"from": 0, "to": 1}}}},
            },
            "three": {"until": "75%", "model": {"freeze": []}, "data": {"sources": {"a": None}, "mix": {"a": None, "b": 1}}},
            "four": {
                "model": {"rack": {"stacks": [{"base": 3}, {"top": 1}]}},
                "enter": {"growth": {"use": "transformer.identity"}},
                "data": {"sources": {"a": sources["a"]}, "mix": {"a": 1, "b": 1}},
            },
        },
    )


def test_three_restores_in_a_row_and_a_process_that_shifts_its_generators() -> None:
    config = busy()
    __, states, _ = states_of(config)
    state = states[2][1]
    for stop in (4, 7, 10):
        machine = machine_of(config)
        machine.restore(state)
        for event in machine.train():
            torch.manual_seed(stop)  # what a user's own code may do between steps
            if isinstance(event, StepDone) and machine.step == stop:
                state = saved(machine)
                break
        assert same(state, states[stop][1])


def test_a_state_of_another_machine_is_refused_with_every_difference() -> None:
    machine = machine_of(base())
    next(event for event in machine.train() if isinstance(event, StepDone))
    state = saved(machine)
    with pytest.raises(UserError, match="seed 3, this machine has seed 4"):
        machine_of(base(), run={"seed": 4}).restore(state)
    deeper = machine_of(base(), model={"rack": {"stacks": [{"base": 3}], "width": 12}})
    with pytest.raises(UserError) as caught:
        deeper.restore(state)
    assert "rack.stacks.base.2" in str(caught.value) and "[16, 8]" in str(caught.value) and "exp_avg" in str(caught.value)
    with pytest.raises(DataError, match=r"\['a'\].*\['b'\]"):
        machine_of({**base(), "data": {"sources": {"b": memory()}, "batch_size": 2, "seq_len": 4}}).restore(state)
    with pytest.raises(UserError, match="has trained already"):
        machine.restore(state)


COUNTS_NOTHING: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("data", "ledger", "a", "rows"), {}),
    (("data", "ledger", "a", "tokens"), -1),
    (("data", "sources", "a"), None),
    (("data", "sources", "a"), 10**400),
    (("skipped",), True),
    (("without_targets",), -1),
    (("not_finite_in_a_row",), 0.5),
    (("seconds",), float("nan")),
    (("seconds",), "1"),
    (("cpu_seconds",), -1.0),
)


def test_what_counts_nothing_and_is_no_place_is_found_when_it_is_loaded() -> None:
    config = base(run={"name": "tiny", "seed": 3, "horizon": "1 steps", "device": "cpu"})
    _, _, end = states_of(config)
    machine_of(config).restore(end)
    for path, wrong in COUNTS_NOTHING:
        state: Any = deepcopy(end)
        part = state
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = wrong
        with pytest.raises((ValueError, TypeError)):
            machine_of(config).restore(state)


def test_a_saved_last_batch_without_a_field_of_the_task_is_found_when_it_is_loaded() -> None:
    phases = {
        "one": {"until": "1 steps"},
        "two": {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
    }
    config = base(run={"name": "tiny", "seed": 3, "horizon": "2 steps", "device": "cpu", "probe": True}, phases=phases)
    _, states, _ = states_of(config)
    state = deepcopy(states[1][1])
    machine_of(config).restore(deepcopy(state))
    state["last_batch"]["batch"]["words"] = state["last_batch"]["batch"].pop("tokens")
    with pytest.raises(ValueError, match="tokens"):
        machine_of(config).restore(state)


def test_there_is_no_state_before_the_first_step_and_across_a_boundary() -> None:
    machine = machine_of(base(phases={"one": {"until": "50%"}, "two": {"optimizer": {"lr": 0.1}}}))
    with pytest.raises(UserError, match="no state of step 0"):
        machine.state()
    refused = 0
    for event in machine.train():
        if isinstance(event, StepDone):
            machine.state()
        elif type(event).__name__ == "PhaseEntered" and event.step:
            with pytest.raises(UserError, match="before the next boundary"):
                machine.state()
            refused += 1
    assert refused == 1


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw with an average": {"use": "optim.adamw", "lr": 0.01, "ema": {"decay": 0.8}},
    "adamw that reacts": {"use": "optim.adamw", "lr": 0.01, "reaction": {"use": "optim.plateau", "metric": "train.loss", "patience": 0}},
    "sgd": {"use": "optim.sgd", "lr": 0.1, "nesterov": True},
    "muon": {"use": "optim.muon", "lr": 0.02},
    "adafactor": {"use": "optim.adafactor", "lr": 0.5},
    "lion": {"use": "optim.lion", "lr": 0.01},
    "schedule-free": {"use": "optim.schedule-free", "lr": 0.01},
    "nadam": {"use": "optim.torch", "name": "NAdam", "lr": 0.01},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_from_both_sides_of_growth_and_of_a_thaw(name: str) -> None:
    config = base(
        data={"sources": {"a": memory(0, heldout=0.2)}, "batch_size": 2, "seq_len": 4},
        optimizer=OPTIMIZERS[name],
        evaluate={"e": {"every": "2 steps", "batches": 1}},
        run={"name": "tiny", "seed": 3, "horizon": "9 steps", "device": "cpu"},
        phases={
            "one": {"until": "3 steps"},
            "two": {
                "until": "6 steps",
                "model": {"rack": {"stacks": [{"base": 4}]}, "freeze": ["embedding"]},
                "enter": {"growth": {"use": "transformer.stack"}},
            },
            "three": {"model": {"freeze": []}},
        },
    )
    events, states, end = states_of(config)
    for step in (3, 4, 6, 7):
        before, state = states[step]
        rest, last = goes_on(config, state)
        assert rest == events[before:], step
        assert same(last, end), step
