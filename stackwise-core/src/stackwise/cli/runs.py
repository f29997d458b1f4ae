"""`stackwise runs`: the runs of a directory, the newest last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

if TYPE_CHECKING:
    from stackwise.reports.record import RunRecord

UNREADABLE = "unreadable"
"""Status of a run whose files cannot be read."""


@click.command(
    epilog="""\b
Examples:
  stackwise runs
  stackwise runs experiments/ --json

Exit codes: 0 done, 2 there is no such directory.
"""
)
@click.argument("directory", metavar="[DIR]", default="runs", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, one object per run.")
def runs(directory: Path, as_json: bool) -> None:
    """List the runs in DIR (`runs` when left out): when each began, its status, and what it reached.

    `last` is the latest result of the first evaluation; `best` is the best value of the metric that run.checkpoint.best names, or else the
    lowest loss of that evaluation. Runs are only read; below the table stands what is wrong with those that are `unreadable`.
    """
    from stackwise.errors import UserError
    from stackwise.reports.record import CONFIG

    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}: name the one that holds your runs")
    places = [path for path in directory.iterdir() if (path / CONFIG).is_file() and not path.name.startswith(".")]
    listed = sorted((_read(path) for path in places), key=lambda each: (each.began, each.name))
    if as_json:
        click.echo(json.dumps([_as_json(each) for each in listed], indent=2))
    else:
        click.echo("\n".join(_lines(listed)) if listed else f"no runs in {directory}")


@frozen
class _Unreadable:
    """A run directory that something is wrong with."""

    name: str
    began: float
    fault: str


def _read(path: Path) -> RunRecord | _Unreadable:
    from stackwise.errors import UserError
    from stackwise.reports.record import CONFIG, read_run, understood
    from stackwise.storage.logs import METRICS, Log

    try:
        next(Log(path).documents(METRICS), None)  # what is listed needs its end alone, which a log that cannot be read has not
        with understood([path]):
            record = read_run(path)
            "".join(_row(record)), json.dumps(_as_json(record))  # a document of another shape shows here
        return record
    except UserError as error:
        return _Unreadable(path.resolve().name, (path / CONFIG).stat().st_mtime, str(error))


def _as_json(record: RunRecord | _Unreadable) -> dict[str, Any]:
    from stackwise.reports.comparison import best_of, last_of

    if isinstance(record, _Unreadable):
        return {"name": record.name, "began": record.began, "status": UNREADABLE, "fault": record.fault}
    last, best = last_of(record), best_of(record)
    return {
        "name": record.name,
        "began": record.began,
        "status": record.status,
        "phase": record.phase,
        "step": record.last_step,
        "steps": record.plan.get("steps"),
        "last": None if last is None else last.as_json(),
        "best": None if best is None else best.as_json(),
        "bytes": record.bytes,
        "parent": record.parent,
    }


def _lines(listed: list[RunRecord | _Unreadable]) -> list[str]:
    from datetime import datetime

    from stackwise.reports.terminal import columns_of, table, wrap

    rows = [["run", "began", "status", "phase", "step", "last", "best", "size", "parent"]]
    for record in listed:
        seen = [UNREADABLE, *["–"] * 6] if isinstance(record, _Unreadable) else _row(record)
        rows.append([record.name, datetime.fromtimestamp(record.began).strftime("%Y-%m-%d %H:%M"), *seen])
    shown = rows if any(row[-1] != "–" for row in rows[1:]) else [row[:-1] for row in rows]
    faults = [f"{each.name}: {each.fault}" for each in listed if isinstance(each, _Unreadable)]
    return [*table(shown, columns_of()), *(line for fault in faults for line in wrap(fault, columns_of()).splitlines())]


def _row(record: RunRecord) -> list[str]:
    """What a line of the table says behind name and time."""
    from stackwise.reports.comparison import best_of, last_of
    from stackwise.reports.page.tables import size

    parent = "–" if record.parent is None else f"{Path(str(record.parent.get('run'))).name} @ {record.parent.get('step')}"
    steps = f"{record.last_step:,}/{record.plan.get('steps', 0):,}"
    figures = ["–" if figure is None else str(figure) for figure in (last_of(record), best_of(record))]
    status = record.status if len(record.status) <= 24 else record.status[:23] + "…"
    return [status, record.phase or "–", steps, *figures, size(record.bytes), parent]
