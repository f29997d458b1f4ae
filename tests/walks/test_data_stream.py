"""What the data plane delivers, row by row, against a plain simulation; the mixture against the exact integral of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from drawn_streams import LOOKAHEAD, Scenario, scenarios
from how_many import examples
from hypothesis import Phase, given, settings
from tiny_walks import drive, plan_of, watch_batches

import stackwise
from stackwise.machine.machine import TrainingMachine
from stackwise.plan.reads import declared_sizes, reads_of

Delivered = list[list[tuple[str, list[int]]]]
"""Of one step: micro-batch → (source, entries of the row)."""

MANY = settings(max_examples=examples(60), phases=[Phase.explicit, Phase.generate])


def read(machine: TrainingMachine, stop: int | None = None) -> Iterator[tuple[int, list[Any]]]:
    """Walk the timeline of the data plane alone: step, micro-batches."""
    for phase in machine.schedule:
        assert phase.state is not None
        machine.objective.enter(phase.state.task)
        machine.data.enter(phase.state.data, lookahead=machine.objective.lookahead)
        machine.data.open(machine.schedule.moments(phase, phase.start))
        for moment in machine.schedule.moments(phase, phase.start):
            yield moment.step, machine.data.batches(moment)
            if moment.step + 1 == stop:
                return


def named(scenario: Scenario, batches: list[Any]) -> Delivered:
    """The rows of a step with the source that each is from."""
    return [[(scenario.source_of(row[0]), row) for row in batch["tokens"].tolist()] for batch in batches]


@MANY
@given(scenarios())
def test_every_row_is_the_next_of_its_source_and_every_step_has_its_shape(scenario: Scenario) -> None:
    machine = stackwise.assemble(plan_of(scenario.config()))
    cursors = scenario.cursors()
    for step, batches in read(machine):
        sizes, length = scenario.shape(step)
        delivered = named(scenario, batches)
        assert [len(batch) for batch in delivered] == sizes
        assert delivered == [[(name, scenario.next_row(cursors, name, length + LOOKAHEAD)) for name, _ in batch] for batch in delivered]
    machine.data.end()


@settings(max_examples=examples(25), phases=[Phase.explicit, Phase.generate])
@given(scenarios())
def test_no_entry_comes_twice_in_an_epoch_and_the_ledger_counts_what_came(scenario: Scenario) -> None:
    plan = plan_of(scenario.config())
    machine = stackwise.assemble(plan)
    streams: dict[str, list[int]] = {name: [] for name in scenario.sources}
    rows, tokens = Counter[str](), Counter[str]()
    for step, batches in read(machine):
        length = scenario.shape(step)[1]
        for name, row in (row for batch in named(scenario, batches) for row in batch):
            streams[name] += row if scenario.sources[name].is_stream else row[:1]
            rows[name] += 1
            tokens[name] += length
        ledger = machine.data.ledger()
        assert ledger == {name: {"rows": rows[name], "tokens": tokens[name]} for name in ledger}
        assert set(rows) <= set(ledger)
    machine.data.end()
    for name, source in scenario.sources.items():
        epoch = source.epoch_entries(scenario.longest)
        epochs = [streams[name][i : i + epoch] for i in range(0, len(streams[name]), epoch)]
        assert all(len(set(entries)) == len(entries) for entries in epochs)
        assert all(set(entries) == set(epochs[0]) for entries in epochs[:-1])
    clock = plan.schedule.clock
    planned = [
        reads_of(phase, joined, clock, declared_sizes(joined)) for phase, joined in zip(plan.schedule.phases, plan.joined, strict=True)
    ]
    for name in scenario.sources:
        assert abs(sum(phase[name].rows for phase in planned if name in phase) - rows[name]) < 2
        if not scenario.sources[name].is_stream:
            epochs_read = sum(phase[name].epochs or 0.0 for phase in planned if name in phase)
            assert abs(epochs_read - rows[name] / scenario.sources[name].size) < 2 / scenario.sources[name].size


@MANY
@given(scenarios())
def test_the_realised_mixture_lies_within_two_rows_of_the_declared_integral_at_every_step(scenario: Scenario) -> None:
    machine = stackwise.assemble(plan_of(scenario.config()))
    declared, delivered = dict.fromkeys(scenario.sources, Fraction(0)), Counter[str]()
    for step, batches in read(machine):
        sizes, _ = scenario.shape(step)
        for name, share in scenario.shares(step).items():
            declared[name] += share * sum(sizes)
        found = Counter(name for batch in named(scenario, batches) for name, _ in batch)
        assert all(scenario.shares(step).get(name, 0) > 0 for name in found)
        delivered += found
        for name in scenario.sources:
            assert abs(delivered[name] - declared[name]) < 2, (step, name)
    machine.data.end()


@settings(max_examples=examples(8), phases=[Phase.explicit, Phase.generate])
@given(scenarios())
def test_training_sees_the_stream_that_the_plane_delivers(scenario: Scenario) -> None:
    expected = [(step, named(scenario, batches)) for step, batches in read(stackwise.assemble(plan_of(scenario.config())))]
    machine = stackwise.assemble(plan_of(scenario.config()))
    seen: list[tuple[int, Delivered]] = []
    watch_batches(machine, lambda step, batches: seen.append((step, named(scenario, batches))))
    events = drive(machine)
    assert seen == expected
    done = events[-1]
    assert isinstance(done, stackwise.RunFinished)
    assert sum(line["rows"] for line in done.ledger.values()) == sum(len(batch) for _, step in seen for batch in step)
