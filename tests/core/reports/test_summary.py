"""The summary table, from events written by hand."""

from __future__ import annotations

from typing import Any

from stackwise.contracts.events import Evaluated, PhaseEntered, RunFinished, StepDone
from stackwise.reports.summary import Summary
from stackwise.reports.terminal import table


def entered(phase: str, index: int, step: int, parameters: int) -> PhaseEntered:
    counts: dict[str, Any] = dict.fromkeys(
        ("adopted", "copied", "fresh", "dropped", "moments_kept", "moments_copied", "moments_dropped"), 0
    )
    return PhaseEntered(step=step, phase=phase, phase_index=index, parameters=parameters, trainable=parameters, seconds=0.0, **counts)


EVENTS = [
    entered("small", 0, 0, 1000),
    Evaluated(0, "small", "held", "entry", {"loss": 5.0, "bits_per_byte": 8.0}, 0.1),
    StepDone(0, "small", 5.0, 1.0, 0.001, 100, 0.5, False),
    StepDone(1, "small", 4.0, 1.0, 0.002, 200, 0.25, False),
    Evaluated(1, "small", "held", "cadence", {"loss": 4.2, "bits_per_byte": 6.0}, 0.1),
    Evaluated(2, "small", "held", "exit", {"loss": 4.0, "bits_per_byte": 5.5}, 0.1),
    entered("large", 1, 2, 25_000),
    Evaluated(2, "large", "held", "entry", {"loss": 4.1, "bits_per_byte": 5.75}, 0.1),
    StepDone(2, "large", 4.1, 1.0, 0.002, 1400, 2.0, True),
    Evaluated(3, "large", "held", "exit", {"loss": 3.0, "bits_per_byte": 4.0}, 0.1),
    RunFinished(3, 1400, 2.75, 1, {"a": {"rows": 1200, "tokens": 1400}}),
]


def test_every_phase_has_its_own_figures() -> None:
    summary = Summary()
    for event in EVENTS:
        summary(event)
    small, large = summary.phases
    assert (small.steps, small.tokens, small.seconds, small.lr_first, small.lr_last) == (2, 200, 0.75, 0.001, 0.002)
    assert (large.steps, large.tokens, large.seconds) == (1, 1200, 2.0)
    header, rule, first, second, total = summary.text().splitlines()
    assert "held bits per byte: entry → exit" in header and "loss" not in header
    assert first.split() == ["small", "2", "200", "1,000", "0.001", "→", "0.002", "8.000", "→", "5.500", "0.8"]
    assert second.split() == ["large", "1", "1,200", "25,000", "0.002", "→", "0.002", "5.750", "→", "4.000", "2.0"]
    assert set(rule) == {"─", " "}
    assert total == "3 steps, 1,400 tokens in 2.8 s of training, 1 not finite and skipped; delivered: a 1,200 rows"


def test_without_evaluations_there_is_no_column_for_them_and_an_unfinished_run_has_no_total() -> None:
    summary = Summary()
    for event in EVENTS:
        if not isinstance(event, Evaluated | RunFinished):
            summary(event)
    assert "entry" not in summary.text() and len(summary.text().splitlines()) == 4


def test_a_task_that_reports_only_its_loss_shows_the_loss_and_what_is_missing_a_dash() -> None:
    summary = Summary()
    for event in (EVENTS[0], Evaluated(0, "small", "held", "entry", {"loss": 5.0}, 0.1)):
        summary(event)
    assert "held loss: entry → exit" in summary.text() and "5.000 → –" in summary.text()


def test_columns_line_up() -> None:
    lines = table([["name", "n"], ["a", "1,000"], ["longer", "2"]])
    assert lines == ["name        n", "──────  ─────", "a       1,000", "longer      2"]


def test_the_peak_of_memory_stands_beside_each_phase() -> None:
    summary = Summary.of(EVENTS)
    summary.peaks = {"large": 2_500_000_000}
    header, _, small, large, _ = summary.text().splitlines()
    assert header.endswith("peak memory") and small.endswith("–") and large.endswith("2,500 MB")


def test_rows_without_tokens_have_no_column_of_zeros() -> None:
    summary = Summary()
    for event in EVENTS:
        summary(event._replace(tokens=0) if isinstance(event, StepDone | RunFinished) else event)
    header, *_, total = summary.text().splitlines()
    assert "tokens" not in header and "tokens" not in total and "steps" in total
