"""The compiled timeline: moments, phases, and what of a part is structure."""

from __future__ import annotations

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from stackwise.contracts.components import Built
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase, PhaseSchedule
from stackwise.curriculum.states import BatchShape
from stackwise.errors import ScheduleError
from stackwise.timeline.duration import Duration
from stackwise.timeline.layout import compile_clock
from stackwise.timeline.schedules import Curve, Knot


def schedule(horizon: str, ends: list[str], rates: list[int]) -> PhaseSchedule:
    clock = compile_clock(Duration.parse(horizon), [f"p{i}" for i in range(len(ends))], [Duration.parse(end) for end in ends], rates)
    return PhaseSchedule(
        clock, tuple(CompiledPhase(name=f"p{i}", index=i, start=clock.starts[i], stop=clock.starts[i + 1]) for i in range(len(ends)))
    )


@given(st.sampled_from(["30 steps", "300 tokens"]), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_moments_say_what_the_clock_says(horizon: str, rates: list[int]) -> None:
    timeline = schedule(horizon, ["20%", "65%", "100%"], rates)
    moments = [moment for phase in timeline for moment in timeline.moments(phase, phase.start)]
    assert moments == [timeline.at(step=k) for k in range(timeline.steps)]
    for k, moment in enumerate(moments):
        phase = timeline.phases[moment.phase_index]
        assert (moment.step, moment.phase, moment.tokens) == (k, phase.name, timeline.clock.tokens(k))
        assert phase.start <= k < phase.stop and 0 <= moment.t < 1 and 0 <= moment.phase_t < 1
        t0, t1 = timeline.clock.t(phase.start), timeline.clock.t(phase.stop)
        assert moment.phase_t == pytest.approx((moment.t - t0) / (t1 - t0))
    last = timeline.at(step=timeline.steps)
    assert (last.t, last.phase_t, last.phase_index) == (1.0, 1.0, 2)


def test_moments_may_begin_inside_a_phase() -> None:
    timeline = schedule("30 steps", ["50%", "100%"], [2, 3])
    assert list(timeline.moments(timeline.phases[1], 20)) == [timeline.at(step=k) for k in range(20, 30)]


def test_at_takes_a_step_or_a_time() -> None:
    timeline = schedule("10 steps", ["50%", "100%"], [1, 1])
    assert timeline.at(t=0.45) == timeline.at(step=5) and timeline.at(t=0.45).phase == "p1"
    with pytest.raises(TypeError):
        timeline.at()


def test_a_single_phase_needs_a_step() -> None:
    single = PhaseSchedule.single(steps=5)
    assert [(phase.name, phase.start, phase.stop) for phase in single] == [("train", 0, 5)]
    with pytest.raises(ScheduleError):
        PhaseSchedule.single(steps=0)


@frozen
class Options:
    size: int = 1
    rate: float = 0.0


def test_what_follows_time_is_no_structure_and_everything_else_is() -> None:
    curve = Curve((Knot(0.0, 0.0, "linear"), Knot(1.0, 4.0, "hold")))
    part = Part(kind="rack", id="p.rack", options=Options(), curves={"rate": curve})
    assert part.structure == Part(kind="rack", id="p.rack", options=Options(), curves={}).structure
    assert part.structure != Part(kind="rack", id="p.rack", options=Options(size=2)).structure
    assert part.structure != Part(kind="rack", id="p.other", options=Options()).structure
    assert part.options_at(0.25) == Options(size=1, rate=1.0) and part.values_at(0.5) == {"rate": 2.0}


def test_the_order_of_stacks_is_structure_and_a_given_object_is_itself() -> None:
    built = Built(dict)
    one, other = ({"stacks": {"a": 1, "b": 2}}, {"stacks": {"b": 2, "a": 1}})
    assert one == other
    first, second = (Part(kind="rack", id="dict", options=options, given=built) for options in (one, other))
    assert first.structure != second.structure
    left, right = object(), object()
    assert Part(kind="rack", id="x", given=left).structure != Part(kind="rack", id="x", given=right).structure
    assert Part(kind="rack", id="x", given=left).structure == Part(kind="rack", id="x", given=left).structure


def test_tokens_of_a_step_count_every_micro_batch() -> None:
    shape = BatchShape.of(batch_size=3, seq_len=5, accumulate=2)
    assert (shape.micro_batches, shape.rows, shape.tokens) == ((3, 3), 6, 30)
    assert BatchShape.of(batch_size=3).tokens is None
    assert BatchShape.of(seq_len=3).tokens is None


@given(st.integers(1, 500), st.integers(1, 60), st.none() | st.integers(1, 9))
def test_a_token_budget_splits_itself_evenly_into_micro_batches(budget: int, length: int, most: int | None) -> None:
    if budget < length:
        with pytest.raises(ScheduleError, match="does not hold one row"):
            BatchShape.of(batch_size=most, seq_len=length, step_tokens=budget)
        return
    shape = BatchShape.of(batch_size=most, seq_len=length, step_tokens=budget)
    sizes = [rows for rows in shape.micro_batches if rows is not None]
    assert sum(sizes) == budget // length and max(sizes) - min(sizes) <= 1
    assert max(sizes) <= (most or budget) and len(sizes) == (1 if most is None else -(-sum(sizes) // most))
