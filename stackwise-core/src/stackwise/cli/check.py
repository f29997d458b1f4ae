"""`stackwise check`: an installed provider against the contract."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stackwise.conformance import Outcome

_MARKS = {"passed": "ok", "failed": "FAIL", "not applicable": "-", "blocked": "blocked", "expected": "expected"}


@click.command(
    epilog="""\b
Examples:
  stackwise check waves
  stackwise check rack:waves.conv --json
  stackwise check waves ripples
  stackwise check waves --expect-failure 'check_causal=it looks ahead'

Exit codes: 0 every check passes that is not expected to fail, 2 nothing of that name is installed,
3 the provider is broken or fails a check.
"""
)
@click.argument("providers", metavar="PROVIDER...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of outcomes instead of text.")
@click.option(
    "--expect-failure",
    "expected",
    metavar="[COMPONENT.]CHECK=REASON",
    multiple=True,
    help="A check that may fail, and why. The reason is shown beside the result; a check that passes all the same counts as failed. "
    "May be given several times.",
)
@click.pass_context
def check(ctx: click.Context, providers: tuple[str, ...], as_json: bool, expected: tuple[str, ...]) -> None:
    """Check every component of each PROVIDER against the contract of its kind.

    PROVIDER is the name of an installed provider, or the id of one component as `list-providers` prints it. Each component is
    built from its own example and joined to neutral partners, so no other provider is needed. pytest runs the same checks with
    `stackwise.conformance`.

    The JSON objects have the keys component, check, verdict ('passed', 'failed', 'not applicable', 'blocked', or 'expected' for a
    failure that --expect-failure names), reason and, where a check failed, explanation.
    """
    from stackwise.conformance import Runner, expected_of, subjects_of

    subjects = [subject for provider in providers for subject in subjects_of(provider)]
    reasons = expected_of(dict(_parsed(each) for each in expected), subjects)
    runner = Runner(reasons)
    outcomes: list[Outcome] = []
    for subject in subjects:
        of_subject = [as_expected(outcome, reasons) for outcome in runner.run_all(subject)]
        outcomes += of_subject
        if not as_json:
            click.echo(_as_text(of_subject))
    if as_json:
        click.echo(json.dumps([_as_object(outcome) for outcome in outcomes], indent=1))
    else:
        counts = Counter(outcome.verdict for outcome in outcomes)
        click.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if any(outcome.verdict in ("failed", "blocked") for outcome in outcomes):
        ctx.exit(3)


def _parsed(text: str) -> tuple[str, str]:
    """Split CHECK=REASON.

    Raises:
        UsageError: no reason is given.
    """
    name, _, reason = text.partition("=")
    if not reason.strip():
        raise click.UsageError(f"--expect-failure {text!r} gives no reason: write CHECK=REASON")
    return name.strip(), reason.strip()


def as_expected(outcome: Outcome, reasons: Mapping[str, str]) -> Outcome:
    """The outcome, judged by what was expected."""
    from attrs import evolve

    reason = reasons.get(outcome.id)
    if reason is None:
        return outcome
    if outcome.verdict == "failed":
        return evolve(outcome, verdict="expected", reason=f"{reason} ({outcome.reason})")
    return evolve(
        outcome, verdict="failed", reason=f"it was expected to fail ({reason}) and is {outcome.verdict}: remove this --expect-failure"
    )


def _as_object(outcome: Outcome) -> dict[str, str]:
    row = {"component": outcome.subject.id, "check": outcome.check.name, "verdict": outcome.verdict, "reason": outcome.reason}
    return row | ({"explanation": outcome.check.explanation()} if outcome.verdict == "failed" else {})


def _as_text(outcomes: Sequence[Outcome]) -> str:
    """One line a check; a failure with its promise and usual cause."""
    subject = outcomes[0].subject
    lines = [f"{subject.id}  ({subject.registered.distribution} {subject.registered.version})"]
    width = max(len(mark) for mark in _MARKS.values())
    for outcome in outcomes:
        reason = f": {outcome.reason}" if outcome.reason else ""
        lines.append(f"  {_MARKS[outcome.verdict]:<{width}}  {outcome.check.name}{reason}")
        if outcome.verdict == "failed":
            lines += [f"  {'':<{width}}    {line}".rstrip() for line in outcome.check.explanation().splitlines()]
    return "\n".join(lines)
