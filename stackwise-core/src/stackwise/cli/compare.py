"""`stackwise compare`: what runs differ in, and what each has reached where all had consumed as much."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stackwise.reports.comparison import Reached
    from stackwise.reports.record import RunRecord


@click.command(
    epilog="""\b
Examples:
  stackwise compare runs/a-001 runs/a-002
  stackwise compare runs/seed-* runs/other --at tokens
  stackwise compare runs/seed-* --csv > reached.csv

Exit codes: 0 done, 2 a RUN is no run directory.
"""
)
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--at", "axis", type=click.Choice(["steps", "tokens"]), default="steps", show_default=True, help="Compare at equal …")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: runs, groups, keys, reached.")
@click.option("--csv", "as_csv", is_flag=True, help="Print what they reached as CSV, a line a run and metric.")
def compare(runs: tuple[Path, ...], axis: Literal["steps", "tokens"], as_json: bool, as_csv: bool) -> None:
    """Compare RUNs: the keys of their configs that differ, and every metric where all of them had consumed as much.

    A metric is compared at the farthest point that all runs with it have reached; a run that was not evaluated there counts with its last
    evaluation before. Runs that differ in nothing but seed and name are one group, with the mean and its 95% interval over the seeds.
    """
    from stackwise.errors import UserError
    from stackwise.reports import comparison
    from stackwise.reports.record import read_run

    if len(runs) < 2:
        raise UserError(f"there is nothing to compare {runs[0]} with: name two runs or more")
    if as_json and as_csv:
        raise UserError("--json and --csv are two forms of the same: choose one")
    records = [read_run(path) for path in runs]
    for record in records:
        if record.passed_over:
            click.echo(
                f"{record.path}: lines of its events that could not be understood were passed over: {record.passed_over:,}", err=True
            )
    groups, reached = comparison.seed_groups(records), comparison.compare(records, axis)
    if as_csv:
        _write_csv(records, groups, reached, axis)
    elif as_json:
        click.echo(json.dumps(_as_json(records, groups, reached, axis), indent=2))
    else:
        click.echo("\n".join(_lines(records, groups, reached, axis)))


def _as_json(records: Sequence[RunRecord], groups: Sequence[int], reached: Sequence[Reached], axis: str) -> dict[str, Any]:
    from stackwise.reports.comparison import differing_keys, intervals

    rows = []
    for row in reached:
        means = {str(group): {"mean": i.mean, "half_width": i.half_width, "runs": i.count} for group, i in intervals(row, groups).items()}
        figures = {"values": row.values, "evaluated_at_step": row.steps, "groups": means}
        rows.append({"evaluation": row.evaluation, "metric": row.metric, axis: row.at, **figures})
    return {"runs": [str(record.path) for record in records], "groups": list(groups), "keys": differing_keys(records), "reached": rows}


def _write_csv(records: Sequence[RunRecord], groups: Sequence[int], reached: Sequence[Reached], axis: str) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["run", "group", "evaluation", "metric", axis, "evaluated_at_step", "value"])
    for row in reached:
        for record, group, step, value in zip(records, groups, row.steps, row.values, strict=True):
            out.writerow([record.name, group, row.evaluation, row.metric, row.at, step, value])


def _lines(records: Sequence[RunRecord], groups: Sequence[int], reached: Sequence[Reached], axis: str) -> list[str]:
    from stackwise.reports.comparison import differing_keys, intervals
    from stackwise.reports.terminal import columns_of, table

    names = [f"{record.name} ({_letter(group)})" for record, group in zip(records, groups, strict=True)]
    keys = differing_keys(records)
    lines = (
        table([["key", *names], *([key, *values] for key, values in keys.items())], columns_of())
        if keys
        else ["their configs are the same"]
    )
    if not reached:
        return [*lines, "", "none of them has been evaluated"]
    order = sorted(set(groups))
    with_means = [group for group in order if list(groups).count(group) > 1]
    rows = [["evaluation", f"at {axis}", *names, *(f"mean {_letter(group)}" for group in with_means)]]
    for row in reached:
        means = intervals(row, groups)
        figures = ["–" if value is None else f"{value:.4f}" for value in row.values]
        rows.append(
            [f"{row.evaluation} {row.metric.replace('_', ' ')}", f"{row.at:,}", *figures, *(str(means.get(g, "–")) for g in with_means)]
        )
    return [*lines, "", *table(rows, columns_of())]


def _letter(group: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[group % 26]
