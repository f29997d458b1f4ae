"""What each step asks of each source, against counts by hand; nothing is read here."""

from __future__ import annotations

import pytest

from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import BatchShape, DataState
from stackwise.errors import DataError
from stackwise.planes.data.mixture import UNIT
from stackwise.planes.data.requests import Requests
from stackwise.timeline.duration import Moment
from stackwise.timeline.schedules import Curve, Knot


def state(weights: dict[str, Curve], shape: BatchShape) -> DataState:
    return DataState(sources={name: Part(kind="loader", id=name) for name in weights}, mix=weights, shapes=((0, shape),))


def requests_of(weights: dict[str, Curve], shape: BatchShape, lookahead: int = 0) -> Requests:
    made = Requests()
    made.enter(state(weights, shape), weights, lookahead)
    return made


def moment(step: int) -> Moment:
    return Moment(step, step / 10, "p", 0, step / 10, 0)


def test_micro_batches_share_the_rows_of_a_step_by_weight() -> None:
    made = requests_of({"a": Curve.constant(3), "b": Curve.constant(1)}, BatchShape.of(batch_size=4, seq_len=6, accumulate=2), lookahead=1)
    request = made.of(moment(0))
    assert request.takes == ((("a", 3), ("b", 1)),) * 2
    assert (request.seq_len, request.length, made.length(10), made.length(None)) == (6, 7, 11, None)
    assert set(request.debts.values()) == {0}


def test_debts_are_those_after_the_step_however_far_ahead_one_asks() -> None:
    """One row a step of two equal sources: each is owed half a row after the first step, and nothing after the second."""
    made = requests_of({"a": Curve.constant(1), "b": Curve.constant(1)}, BatchShape.of(batch_size=1, seq_len=3))
    first, second = made.of(moment(0)), made.of(moment(1))
    assert (first.takes, second.takes) == (((("a", 1),),), ((("b", 1),),))
    assert first.debts == {"a": -UNIT // 2, "b": UNIT // 2}
    assert second.debts == {"a": 0, "b": 0} == made.debts
    made.owe(first.debts)
    assert made.of(moment(1)) == second


def test_weights_are_those_of_the_step() -> None:
    early, late = Curve((Knot(0, 1, "linear"), Knot(1, 0, "linear"))), Curve((Knot(0, 0, "linear"), Knot(1, 1, "linear")))
    made = requests_of({"early": early, "late": late}, BatchShape.of(batch_size=10, seq_len=3))
    counts = [dict(made.of(moment(step)).takes[0]).get("late", 0) for step in range(10)]
    assert counts == list(range(10))


def test_one_source_gives_all_rows_and_steps_of_one_shape_are_one_request() -> None:
    made = requests_of({"a": Curve.constant(2)}, BatchShape.of(batch_size=5, seq_len=3))
    assert made.only == "a"
    assert made.of(moment(0)).takes == ((("a", 5),),)
    assert made.of(moment(1)) is made.of(moment(0))
    made.enter(state({"a": Curve.constant(2)}, BatchShape.of(batch_size=7, seq_len=3)), ["a"], 0)
    assert made.of(moment(2)).takes == ((("a", 7),),)


def test_a_task_that_needs_more_entries_of_the_same_data_gets_them() -> None:
    """Two phases of one data state: the second task looks one entry further ahead."""
    same, made = state({"a": Curve.constant(1)}, BatchShape.of(batch_size=5, seq_len=3)), Requests()
    for lookahead in (0, 1):
        made.enter(same, ["a"], lookahead)
        assert made.of(moment(lookahead)).length == 3 + lookahead


def test_batches_as_they_come_cannot_be_mixed_row_by_row() -> None:
    one = requests_of({"a": Curve.constant(1)}, BatchShape.of(batch_size=None, seq_len=None))
    assert one.of(moment(0)).takes == ((("a", None),),)
    two = requests_of({"a": Curve.constant(1), "b": Curve.constant(1)}, BatchShape.of(batch_size=None, seq_len=None))
    with pytest.raises(DataError):
        two.of(moment(0))
