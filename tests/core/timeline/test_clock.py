"""The clock in pieces: every horizon, every change of the batch's shape, against a walk one step at a time in exact fractions."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import define, field, frozen
from how_many import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_walks import VOCAB, base, drive, machine_of, memory, plan_of, problems_of, registry, watch_batches

import stackwise
from stackwise.curriculum.schedule import CompiledPhase, PhaseSchedule
from stackwise.errors import ConfigError, ScheduleError
from stackwise.host.provider import Registered
from stackwise.timeline.clock import Clock
from stackwise.timeline.duration import Duration
from stackwise.timeline.layout import RUN, Extent, Past, Switch, lay_out

WEB = 37
"""Rows of one epoch of the source `web`."""

MEASURES = ("steps", "samples", "tokens", "epochs of web")
START = {"rows": 2, "length": 3}


def rate(values: Mapping[str, Any]) -> dict[str, Fraction]:
    """What a step consumes, by the definition of each measure."""
    rows = Fraction(values["rows"])
    return {"samples": rows, "tokens": rows * values["length"], "epochs of web": rows / WEB}


@frozen
class Change:
    """`key` is `value` from `at` (a share of a window, or an amount of a measure) on."""

    at: Duration
    over_run: bool
    key: str
    value: int


@define
class Walked:
    """The timeline as one would walk it."""

    horizon: Fraction
    measure: str
    shares: list[Fraction]
    changes: list[list[Change]]
    consumed: list[dict[str, Fraction]] = field(factory=lambda: [dict.fromkeys(MEASURES, Fraction(0))])
    values: list[dict[str, int]] = field(factory=list)
    starts: list[int] = field(factory=lambda: [0])

    def walk(self) -> None:
        """One step after the other; a change holds from the first step that does not run before its instant."""
        for share, changes in zip(self.shares, self.changes, strict=True):
            mark, end = self.consumed[-1], share * self.horizon
            while self.consumed[-1][self.measure] < end:
                now, values = self.consumed[-1], dict(START)
                reached = [(self._instant(change, mark, end), change) for change in changes]
                for (amount, measure), change in sorted(reached, key=lambda pair: pair[0][0]):
                    if now[measure] >= amount:
                        values[change.key] = change.value
                step = {"steps": Fraction(1), **rate(values)}
                self.values.append(values)
                self.consumed.append({measure: now[measure] + step[measure] for measure in MEASURES})
            self.starts.append(len(self.values))

    def _instant(self, change: Change, mark: dict[str, Fraction], end: Fraction) -> tuple[Fraction, str]:
        if change.at.unit != "fraction":
            return (Fraction(0) if change.over_run else mark[change.at.measure]) + change.at.value, change.at.measure
        if change.over_run:
            return change.at.value * self.horizon, self.measure
        return mark[self.measure] + change.at.value * (end - mark[self.measure]), self.measure


def duration(value: Fraction, measure: str) -> Duration:
    unit, _, source = measure.partition(" of ")
    return Duration(value, unit, source or None)


@st.composite
def walked(draw: st.DrawFn) -> Walked:
    """One to three phases whose rows and lengths change once or twice in each, at instants of every measure."""
    measure = draw(st.sampled_from(MEASURES))
    size = draw(st.integers(5, 60))
    horizon = {"steps": Fraction(size), "samples": Fraction(3 * size), "tokens": Fraction(9 * size), "epochs of web": Fraction(size, 7)}
    shares = [*sorted(draw(st.sets(st.fractions(Fraction(1, 10), Fraction(9, 10), max_denominator=20), max_size=2))), Fraction(1)]
    share = st.fractions(0, 1, max_denominator=12).map(lambda value: Duration(value, "fraction"))
    amount = st.tuples(st.integers(1, 40), st.sampled_from(MEASURES[:3])).map(lambda drawn: duration(Fraction(drawn[0]), drawn[1]))
    change = st.builds(Change, share | amount, st.booleans(), st.sampled_from(["rows", "length"]), st.integers(1, 6))
    changes = [draw(st.lists(change, max_size=2, unique_by=lambda c: c.key)) for _ in shares]
    found = Walked(horizon=horizon[measure], measure=measure, shares=shares, changes=changes)
    found.walk()
    assume(len(set(found.starts)) == len(found.starts))
    return found


def clock_of(drawn: Walked) -> Clock:
    extents = [
        Extent(
            name=f"p{i}",
            end=Duration(share, "fraction"),
            values=START,
            switches=tuple(Switch(at=c.at, window=RUN if c.over_run else i, key=c.key, value=c.value) for c in changes),
            rate=rate,
        )
        for i, (share, changes) in enumerate(zip(drawn.shares, drawn.changes, strict=True))
    ]
    return lay_out(duration(drawn.horizon, drawn.measure), extents)


@settings(max_examples=examples(100))
@given(walked())
def test_every_step_consumes_and_holds_what_a_walk_by_hand_says(drawn: Walked) -> None:
    clock = clock_of(drawn)
    assert list(clock.starts) == drawn.starts
    for step, values in enumerate(drawn.values):
        assert clock.values(step) == values
    for step, consumed in enumerate(drawn.consumed):
        assert {measure: clock.consumed(step, measure) for measure in MEASURES} == consumed
        expected = min(1.0, float(consumed[drawn.measure] / drawn.horizon))
        assert clock.t(step) == pytest.approx(expected, abs=1e-12) and (clock.t(step) < 1) == (step < clock.steps)
    for step, t, before, after in clock.times(1, clock.steps):
        assert (t, before, after) == (clock.t(step), drawn.consumed[step]["tokens"], drawn.consumed[step + 1]["tokens"])


@settings(max_examples=examples(60))
@given(walked(), st.fractions(0, 1, max_denominator=30), st.sampled_from(MEASURES))
def test_instants_and_cadences_fall_on_the_first_step_not_before_them(drawn: Walked, share: Fraction, measure: str) -> None:
    clock = clock_of(drawn)
    target = share * drawn.consumed[-1][measure]
    expected = next(k for k, consumed in enumerate(drawn.consumed) if consumed[measure] >= target)
    assert clock.step_of(duration(target, measure)) == expected
    assume(target > 0)
    whole = [consumed[measure] // target for consumed in drawn.consumed]
    assert clock.every(duration(target, measure)) == tuple(k for k in range(1, clock.steps) if whole[k] > whole[k - 1])


@settings(max_examples=examples(60))
@given(walked(), st.floats(0, 1, exclude_max=True))
def test_a_moment_is_the_same_asked_by_step_and_by_time(drawn: Walked, t: float) -> None:
    clock = clock_of(drawn)
    phases = [
        CompiledPhase(name=f"p{i}", index=i, start=a, stop=b) for i, (a, b) in enumerate(zip(drawn.starts, drawn.starts[1:], strict=False))
    ]
    schedule = PhaseSchedule(clock, tuple(phases))
    for step in range(clock.steps):
        moment = schedule.at(step=step)
        assert schedule.at(t=moment.t) == moment
        assert moment.phase_index == sum(stop <= step for stop in drawn.starts[1:])
        assert 0 <= moment.phase_t < 1
    assert schedule.at(t=1.0) == schedule.at(step=clock.steps)
    assert schedule.at(t=t).step == next(k for k in range(clock.steps + 1) if clock.t(k) >= t)


# -- through a config ----------------------------------------------------------------------------------------------------


def rows(count: int, seed: int = 0) -> dict[str, Any]:
    tokens = torch.randint(VOCAB, (count, 12), generator=torch.Generator().manual_seed(seed))
    return {"use": "data.memory", "arrays": {"tokens": tokens}}


def test_a_run_of_three_epochs_reads_every_row_three_times_whatever_its_batches() -> None:
    piecewise = {"piecewise": {"values": {"0%": 2, "1 epochs": 3, "2 epochs": 5}}}
    machine = machine_of(base(data={"sources": {"web": rows(30)}, "batch_size": piecewise, "seq_len": 4}), run={"horizon": "3 epochs"})
    seen: list[list[int]] = []
    watch_batches(machine, lambda step, batches: seen.extend(batches[0]["tokens"][:, :4].tolist()))
    drive(machine)
    assert machine.schedule.steps == 15 + 10 + 6
    assert [sorted(seen[i : i + 30]) for i in (0, 30, 60)] == [sorted(rows(30)["arrays"]["tokens"][:, :4].tolist())] * 3


def lines(folder: Path, **options: Any) -> dict[str, Any]:
    (folder / "few.jsonl").write_text("\n".join(f'{{"text": "number {i} of ten"}}' for i in range(10)), encoding="utf-8")
    return {"use": "data.jsonl", "paths": [str(folder / "few.jsonl")], "text": "text", "heldout": 0.0, **options}


def test_epochs_of_data_that_must_be_read_are_counted_where_a_duration_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    config = base(data={"sources": {"few": lines(tmp_path, rows="padded")}, "batch_size": 4, "seq_len": 4})
    config["model"]["embedding"]["vocab"] = 300
    phases = {"one": {"until": "2 epochs of few"}, "two": {"optimizer": {"lr": 0.1}}}
    assert plan_of(config, run={"horizon": "4 epochs"}, phases=phases).schedule.clock.starts == (0, 5, 10)
    assert plan_of(config, evaluate={"h": {"every": "2 epochs"}}).schedule.evaluate_at["h"] == (0, 5, 10, 12)
    learnt = {"bpe": {"vocab": 270, "min_frequency": 1}}
    stream = plan_of(config, data={"sources": {"few": {"rows": "stream", "tokenizer": learnt}}}, run={"horizon": "1 epoch"})
    loader = stackwise.assemble(stream).data._ready[0].loader
    assert 0 <= stream.schedule.steps * 4 * 5 - loader.epoch_size().entries < 4 * 5 + 5  # type: ignore[attr-defined]  # this loader says it


def test_data_that_cannot_be_counted_are_told_with_their_place_where_something_counts_them(tmp_path: Path) -> None:
    config = base(data={"sources": {"few": lines(tmp_path)}, "batch_size": 4, "seq_len": 4})
    config["model"]["embedding"]["vocab"] = 256
    (tmp_path / "few.jsonl").write_text('{"other": 1}', encoding="utf-8")
    plan_of(config)
    (problem,) = problems_of(config, run={"horizon": "4 epochs"})
    assert problem.path == "data.sources.few" and "there is no field 'text'; this one has other" in problem.message


def test_epochs_of_one_source_pass_at_the_speed_of_its_share() -> None:
    config = base(data={"sources": {"web": rows(30), "wiki": rows(10, 1)}, "mix": {"web": 3, "wiki": 1}, "batch_size": 4, "seq_len": 4})
    plan = plan_of(config, run={"horizon": "2 epochs of wiki"}, phases={"one": {"until": "1 epochs of web"}, "two": {}})
    assert plan.schedule.clock.starts == (0, 10, 20)  # a step reads three rows of web and one of wiki
    (line,) = problems_of(config, run={"horizon": "2 epochs of books"})
    assert "epochs of books, which nothing counts" in line.message


def test_a_horizon_in_samples_counts_rows_of_every_micro_batch() -> None:
    config = base(data={"sources": {"a": memory()}, "batch_size": 2, "seq_len": {"piecewise": {"values": {"0%": 4, "50%": 6}}}})
    plan = plan_of(config, data={"step_tokens": 24}, run={"horizon": "60 samples"})
    shapes = [plan.schedule.phases[0].state.data.shape(k) for k in range(plan.schedule.steps)]  # type: ignore[union-attr]  # a plan's phases are declared
    assert [shape.seq_len for shape in shapes] == [4] * 5 + [6] * 8  # six rows a step up to 30 samples, then four
    assert sum(shape.rows or 0 for shape in shapes) == 62 and {shape.tokens for shape in shapes} == {24}


def test_a_token_budget_below_one_row_is_refused_where_it_first_happens() -> None:
    growing = {"piecewise": {"values": {"0%": 4, "50%": 64}}}
    (problem,) = problems_of(base(data={"sources": {"a": memory()}, "seq_len": growing, "step_tokens": 32}))
    assert "does not hold one row of 64" in problem.message


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"0%": 4.5}, "whole number"),
        ({"0%": 0}, "whole number of at least 1"),
        ({"50%": 4}, "give one at 0%"),
    ],
)
def test_counts_over_time_are_whole_and_begin_at_the_start(values: dict[str, float], rule: str) -> None:
    (problem,) = problems_of(base(data={"sources": {"a": memory()}, "batch_size": 2, "seq_len": {"piecewise": {"values": values}}}))
    assert rule in problem.message and problem.path == "data.seq_len"


# -- many phases ---------------------------------------------------------------------------------------------------------


def test_a_thousand_phases_are_planned_and_each_component_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = {
        f"p{i}": {
            "until": f"{2 * i + 2} steps",
            "data": {"seq_len": 4 + i % 3, "mix": {"a": 1 + i % 5}},
            "optimizer": {"lr": 0.01 * (1 + i % 2)},
        }
        for i in range(1000)
    }
    registry()
    loaded: list[str] = []
    load = Registered.load_options

    def counted(component: Registered) -> type:
        loaded.append(f"{component.kind}:{component.id}")
        return load(component)

    monkeypatch.setattr(Registered, "load_options", counted)
    sources = {"a": memory(0), "b": memory(1)}
    plan = plan_of(base(run={"horizon": "2000 steps"}, data={"sources": sources, "mix": {"b": 1}, "batch_size": 2}, phases=phases))
    assert plan.schedule.clock.starts == tuple(range(0, 2001, 2))
    assert [plan.schedule.phase_at(k).index for k in (0, 1, 777, 1999)] == [0, 0, 388, 999]
    assert len(loaded) == len(set(loaded)) == 6


# -- a curriculum as a function ------------------------------------------------------------------------------------------


def test_a_function_of_time_becomes_phases() -> None:
    asked: list[float] = []

    def curriculum(t: float) -> dict[str, Any]:
        asked.append(t)
        return {"data": {"seq_len": 4 + round(8 * t)}}

    config = base(phases=stackwise.sample(curriculum, at=["0%", "25%", "50%", "75%"]))
    schedule = plan_of(config).schedule
    assert asked == [0.0, 0.25, 0.5, 0.75]
    assert [(phase.start, phase.state.data.shape(phase.start).seq_len) for phase in schedule if phase.state] == [
        (0, 4),
        (3, 6),
        (6, 8),
        (9, 10),
    ]
    assert [event.phase for event in drive(machine_of(config)) if isinstance(event, stackwise.PhaseEntered)] == [
        f"part-{i}" for i in range(4)
    ]


@pytest.mark.parametrize("at", [[], ["10%"], ["0%", "50%", "50%"], ["0%", "50%", "20%"], ["0%", "100%"], ["0%", "3 steps"]], ids=str)
def test_instants_to_sample_at_are_shares_in_order_from_the_start(at: list[str]) -> None:
    with pytest.raises(ConfigError, match="not instants to sample at"):
        stackwise.sample(lambda t: {}, at=at)


@pytest.mark.parametrize("found", [None, 3, {"until": "50%"}], ids=str)
def test_a_curriculum_gives_deltas(found: Any) -> None:
    with pytest.raises(ConfigError, match=r"the curriculum gives .* at 0%"):
        stackwise.sample(lambda t: found, at=["0%"])


def test_instants_to_sample_at_have_a_unit() -> None:
    with pytest.raises(ScheduleError, match="has no unit"):
        stackwise.sample(lambda t: {}, at=[0])  # type: ignore[list-item]  # what is tested


@pytest.mark.parametrize("step", [1, 7, 29, 40])
def test_run_time_after_a_past_is_that_of_the_whole_run_to_the_bit(step: int) -> None:
    """An epoch of 37 rows makes shares of a step that no float holds: counted anew from where the past ends, they would be rounded
    otherwise."""
    extent = Extent(name="a", end=Duration.parse("100%"), values=START, rate=rate)
    whole = lay_out(Duration.parse("2.6 epochs of web"), [extent])
    rest = lay_out(Duration.parse("2.6 epochs of web"), [extent], Past(step, whole))
    assert [rest.t(k) for k in range(rest.steps)] == [whole.t(k) for k in range(whole.steps)]
    assert rest.pieces == whole.pieces
