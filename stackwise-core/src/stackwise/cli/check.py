"""`stackwise check`: an installed provider against the contract."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stackwise.conformance import Outcome

_MARKS = {"passed": "ok", "failed": "FAIL", "not applicable": "-", "blocked": "blocked"}


@click.command(
    epilog="""\b
Examples:
  stackwise check waves
  stackwise check rack:waves.conv --json
  stackwise check waves ripples

Exit codes: 0 every check passes, 2 nothing of that name is installed,
3 the provider is broken or fails a check.
"""
)
@click.argument("providers", metavar="PROVIDER...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of outcomes instead of text.")
@click.pass_context
def check(ctx: click.Context, providers: tuple[str, ...], as_json: bool) -> None:
    """Check every component of each PROVIDER against the contract of its kind.

    PROVIDER is the name of an installed provider, or the id of one component as `list-providers` prints it. Each component is
    built from its own example and joined to neutral partners, so no other provider is needed. pytest runs the same checks with
    `stackwise.conformance`.

    The JSON objects have the keys component, check, verdict ('passed', 'failed', 'not applicable' or 'blocked'), reason and,
    where a check failed, explanation.
    """
    from stackwise.conformance import Runner, subjects_of

    runner = Runner()
    outcomes: list[Outcome] = []
    for subject in [subject for provider in providers for subject in subjects_of(provider)]:
        of_subject = list(runner.run_all(subject))
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
