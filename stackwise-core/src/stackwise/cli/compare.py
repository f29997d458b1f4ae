"""`stackwise compare`: what runs differ in, and what each has reached where all had consumed as much."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stackwise.reports.comparison import Axis, Crossing, Reached
    from stackwise.reports.record import RunRecord


@click.command(
    epilog="""\b
Examples:
  stackwise compare runs/a-001 runs/a-002
  stackwise compare runs/seed-* runs/other --at tokens
  stackwise compare runs/seed-* --csv > reached.csv

Exit codes: 0 done, 2 a RUN is not a run directory, or is given twice.
"""
)
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--at",
    "axis",
    type=click.Choice(["steps", "tokens", "flops", "end"]),
    default="steps",
    show_default=True,
    help="Compare at equal numbers of these, or each run at its own end.",
)
@click.option("--to", metavar="METRIC=VALUE", help="Say where each run first reached it: heldout.loss=2.0 (>= where more is better).")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: runs, groups, keys, reached, to.")
@click.option("--csv", "as_csv", is_flag=True, help="Print what they reached as CSV, one line per run and metric.")
def compare(runs: tuple[Path, ...], axis: Axis, to: str | None, as_json: bool, as_csv: bool) -> None:
    """Compare RUNs: the config keys that differ, and every metric at equal steps, tokens or FLOPs.

    A metric is compared at the farthest point that all runs with it have reached; a run that was not evaluated there counts with its last
    evaluation before, and with `--at end` each counts with its last one. Runs that differ only in seed and name are one group, with the
    mean and its 95% interval over the seeds, and the differences from the first group seed by seed.
    """
    from stackwise.errors import UserError
    from stackwise.reports.record import read_runs, understood

    if len(runs) < 2:
        raise UserError(f"there is nothing to compare {runs[0]} with: name two runs or more")
    if as_json and as_csv:
        raise UserError("--json and --csv are two forms of the same: choose one")
    records = read_runs(runs)
    for record in records:
        if record.passed_over:
            click.echo(
                f"{record.path}: lines of its events that could not be understood were passed over: {record.passed_over:,}", err=True
            )
    with understood(runs):
        _show(records, axis, to, as_json=as_json, as_csv=as_csv)


def _show(records: Sequence[RunRecord], axis: Axis, to: str | None, *, as_json: bool, as_csv: bool) -> None:
    from stackwise.reports import comparison

    groups, reached = comparison.seed_groups(records), comparison.compare(records, axis)
    crossed = [] if to is None else _crossings(records, to)
    if as_csv:
        _write_csv(records, groups, reached, axis)
    elif as_json:
        click.echo(json.dumps({**_as_json(records, groups, reached, axis), "to": [_asdict(each) for each in crossed]}, indent=2))
    else:
        click.echo("\n".join([*_lines(records, groups, reached, axis), *_crossing_lines(records, crossed, to)]))


def _crossings(records: Sequence[RunRecord], to: str) -> list[Crossing | None]:
    """Where each run first reached what `--to` says."""
    from stackwise.errors import UserError
    from stackwise.reports.comparison import crossing

    name, sign, value = to.partition(">=" if ">=" in to else "=")
    evaluation, dot, metric = name.strip().partition(".")
    try:
        wanted = float(value)
    except ValueError:
        wanted = None
    if not dot or wanted is None:
        raise UserError(f"--to {to}: write an evaluation's metric and a value, as heldout.loss=2.0, or >= where more is better")
    if not any(event["name"] == evaluation and metric in event["metrics"] for record in records for event in record.evaluations):
        raise UserError(f"--to {to}: no run has evaluated '{evaluation}.{metric}'")
    return [crossing(record, evaluation, metric, wanted, most=sign == ">=") for record in records]


def _crossing_lines(records: Sequence[RunRecord], crossed: Sequence[Crossing | None], to: str | None) -> list[str]:
    from stackwise.reports.terminal import columns_of, table

    if to is None:
        return []
    rows = [[f"first at {to}", "steps", "tokens", "seconds", "training FLOPs"]]
    for record, found in zip(records, crossed, strict=True):
        values = (
            ("never", "", "", "") if found is None else (_number(found.steps), _number(found.tokens), _number(found.seconds), _flops(found))
        )
        rows.append([record.name, *values])
    return ["", *table(rows, columns_of())]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _flops(found: Crossing) -> str:
    return "–" if found.flops is None else f"{found.flops:.3g}"


def _asdict(found: Crossing | None) -> dict[str, Any] | None:
    from attrs import asdict

    return None if found is None else asdict(found)


def _as_json(records: Sequence[RunRecord], groups: Sequence[int], reached: Sequence[Reached], axis: str) -> dict[str, Any]:
    from stackwise.reports.comparison import differing_keys, intervals, paired_differences

    rows = []
    for row in reached:
        pairs = paired_differences(records, row, groups)
        differences = {str(group): {"mean": i.mean, "half_width": i.half_width, "runs": i.count} for group, i in pairs.items()}
        means = {str(group): {"mean": i.mean, "half_width": i.half_width, "runs": i.count} for group, i in intervals(row, groups).items()}
        figures = {"values": row.values, "evaluated_at_step": row.steps, "groups": means, "differences": differences}
        rows.append({"evaluation": row.evaluation, "metric": row.metric, axis: row.at, **figures})
    return {"runs": [str(record.path) for record in records], "groups": list(groups), "keys": differing_keys(records), "reached": rows}


def _write_csv(records: Sequence[RunRecord], groups: Sequence[int], reached: Sequence[Reached], axis: str) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["run", "group", "evaluation", "metric", axis, "evaluated_at_step", "value"])
    for row in reached:
        for record, group, step, value in zip(records, groups, row.steps, row.values, strict=True):
            out.writerow([record.name, group, row.evaluation, row.metric, row.at, step, value])


def _lines(records: Sequence[RunRecord], groups: Sequence[int], reached: Sequence[Reached], axis: Axis) -> list[str]:
    from stackwise.reports.comparison import FEW_SEEDS, differing_keys, intervals, paired_differences
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
    first, paired = order[0], {group for row in reached for group in paired_differences(records, row, groups)} & {*with_means}
    heads = [*(f"mean {_letter(group)}" for group in with_means), *(f"{_letter(group)} − {_letter(first)}" for group in sorted(paired))]
    rows = [["evaluation", "at" if axis == "end" else f"at {axis}", *names, *heads]]
    for row in reached:
        means, differences = intervals(row, groups), paired_differences(records, row, groups)
        figures = ["–" if value is None else f"{value:.4f}" for value in row.values]
        rows.append(
            [
                *(f"{row.evaluation} {row.metric.replace('_', ' ')}", _place(row, axis), *figures),
                *(str(means.get(g, "–")) for g in with_means),
                *(str(differences.get(g, "–")) for g in sorted(paired)),
            ]
        )
    few = [list(groups).count(group) for group in with_means if list(groups).count(group) < FEW_SEEDS]
    note = ["", f"{min(few)} seeds in a group: a difference between fewer than {FEW_SEEDS} is easily luck"] if few else []
    return [*lines, "", *table(rows, columns_of()), *note]


def _place(row: Reached, axis: Axis) -> str:
    return "its end" if axis == "end" else f"{row.at:.3g}" if axis == "flops" else f"{row.at:,}"


def _letter(group: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[group % 26]
