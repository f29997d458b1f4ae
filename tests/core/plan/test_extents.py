"""What a step of a phase consumes: rows, entries or batches of an epoch, and how a budget of tokens splits."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from stackwise.contracts.specs import EpochSize
from stackwise.curriculum.states import BatchShape
from stackwise.plan.extents import counts, epochs_of, shape_of

ROWS_OF_FOUR = BatchShape(micro_batches=(8,), seq_len=4)


@pytest.mark.parametrize(
    ("size", "shape", "epochs"),
    [
        (None, ROWS_OF_FOUR, None),
        (EpochSize(rows=16), ROWS_OF_FOUR, Fraction(1, 2)),
        (EpochSize(entries=80), ROWS_OF_FOUR, Fraction(8 * (4 + 1), 80)),
        (EpochSize(entries=80), BatchShape(micro_batches=(8,)), None),
        (EpochSize(batches=6), BatchShape(micro_batches=(None, None)), Fraction(2, 6)),
        (EpochSize(rows=0), ROWS_OF_FOUR, None),
    ],
)
def test_epochs_are_rows_entries_or_batches_over_what_an_epoch_holds(size: Any, shape: BatchShape, epochs: Any) -> None:
    assert epochs_of(Fraction(8), shape, size, lookahead=1) == epochs


def test_a_budget_of_tokens_splits_itself() -> None:
    shape = shape_of({"batch_size": 3, "seq_len": 4, "accumulate": None, "step_tokens": 40})
    assert shape.micro_batches == (3, 3, 2, 2) and shape.tokens == 40


@pytest.mark.parametrize(
    ("declared", "asks"),
    [({"run": {"horizon": "3 epochs"}}, True), ({"phases": {"a": {"until": "2 epochs of x"}}}, True), ({"run": {"name": "epochs"}}, False)],
)
def test_epochs_are_counted_where_a_duration_asks_for_them(declared: Any, asks: bool) -> None:
    assert counts(declared, "epochs") is asks
