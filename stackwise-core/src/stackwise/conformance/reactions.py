"""Reactions: declared answers to the training signal, inside a stated envelope."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import sin

from stackwise.conformance.building import artifact_of
from stackwise.conformance.subject import Subject, must

SIGNALS: Mapping[str, tuple[float, ...]] = {
    "a loss that stays": tuple([2.0] * 400),
    "a loss that falls": tuple(4.0 / (1 + step / 20) for step in range(400)),
    "a loss that rises": tuple(1.0 + step / 10 for step in range(400)),
    "a loss that swings": tuple(2.0 + sin(step / 3) for step in range(400)),
    "a loss that falls and stays": tuple(max(4.0 - step / 20, 1.0) for step in range(400)),
}
EVERY = 20
"""Steps between two evaluations."""


def check_starts_at_one(subject: Subject) -> None:
    """The factor is 1 until the first answer.

    Usual cause: a warm-up inside the reaction, which is the schedule's work.
    """
    factor = artifact_of(subject).factor
    must(isinstance(factor, int | float) and factor == 1, f"the factor is {factor!r} before any number was shown")


def check_envelope(subject: Subject) -> None:
    """The factor never leaves the envelope that the options state for the plan.

    Usual cause: a factor that is multiplied again and again without a floor.
    """
    options = subject.options()
    must(hasattr(options, "envelope"), f"{type(options).__name__} has no envelope() → (lowest, highest) factor, which the plan prints")
    low, high = options.envelope()
    must(0 < low <= 1 <= high, f"the envelope is {low} to {high}: it holds 1, and nothing at or below 0")
    for name, losses in SIGNALS.items():
        reaction = artifact_of(subject)
        for step, metrics in _shown(subject, losses):
            reaction.watch(step, metrics)
            must(low <= reaction.factor <= high, f"{name}: at step {step} the factor is {reaction.factor}, outside of {low} to {high}")


def check_changes_are_told(subject: Subject) -> None:
    """`watch` returns a sentence exactly when the factor changed, and the same numbers get the same answers.

    Usual cause: a sentence at every step after the first change; the clock or chance in the decision.
    """
    for name, losses in SIGNALS.items():
        first, second = artifact_of(subject), artifact_of(subject)
        for step, metrics in _shown(subject, losses):
            before = first.factor
            answer = first.watch(step, metrics)
            changed = first.factor != before
            must(
                answer is None or (isinstance(answer, str) and bool(answer.strip())),
                f"{name}: watch returned {answer!r}: a sentence or None",
            )
            must(
                changed == (answer is not None),
                f"{name}: at step {step} the factor goes from {before} to {first.factor} and watch says {answer!r}",
            )
            must(second.watch(step, metrics) == answer and second.factor == first.factor, f"{name}: the same numbers got another answer")


def check_reaction_resumes(subject: Subject) -> None:
    """A reaction that loads the state of another answers as the other does from there on; the state is plain data.

    Usual cause: a counter or a best value that is not in the state.
    """
    for name, losses in SIGNALS.items():
        shown = list(_shown(subject, losses))
        reaction = artifact_of(subject)
        for stop in (1, EVERY + 1, 3 * EVERY + 7, 8 * EVERY):
            reaction, resumed = artifact_of(subject), artifact_of(subject)
            for step, metrics in shown[:stop]:
                reaction.watch(step, metrics)
            resumed.load_state_dict(json.loads(json.dumps(reaction.state_dict())))
            for step, metrics in shown[stop:]:
                answers = reaction.watch(step, metrics), resumed.watch(step, metrics)
                same = answers[0] == answers[1] and reaction.factor == resumed.factor
                must(same, f"{name}: saved after {stop} answers, another answer comes at step {step}")


def watched_metrics(subject: Subject) -> list[str]:
    """Metrics of evaluations that a reaction says it watches; `check.loss` if it says none."""
    options = subject.options()
    watches = options.watches() if hasattr(options, "watches") else ()
    return [metric for metric in watches if metric.partition(".")[0] != "train"] or ["check.loss"]


def _shown(subject: Subject, losses: tuple[float, ...]) -> Iterator[tuple[int, dict[str, float]]]:
    """What a run shows: the loss of every step, and every so often the metrics of each evaluation, in the order of their names."""
    of_evaluation: dict[str, list[str]] = {}
    for metric in watched_metrics(subject):
        of_evaluation.setdefault(metric.partition(".")[0], []).append(metric)
    for step, loss in enumerate(losses):
        yield step, {"train.loss": loss}
        if step % EVERY == 0:
            for name, metrics in sorted(of_evaluation.items()):
                yield step, {f"{name}.loss": loss, **dict.fromkeys(metrics, loss)}
