"""`stackwise runs`: the runs of a directory, the newest last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stackwise.reports.record import RunRecord


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

    `last` is the newest figure of the first evaluation; `best` the best of the metric that run.checkpoint.best names, else the lowest
    loss of that evaluation. Runs are only read.
    """
    from stackwise.errors import UserError
    from stackwise.reports.record import CONFIG, read_run

    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}: name the one that holds your runs")
    places = [path for path in directory.iterdir() if (path / CONFIG).is_file() and not path.name.startswith(".")]
    records = sorted((read_run(path) for path in places), key=lambda record: (record.began, record.name))
    if as_json:
        click.echo(json.dumps([_as_json(record) for record in records], indent=2))
    else:
        click.echo("\n".join(_lines(records)) if records else f"no runs in {directory}")


def _as_json(record: RunRecord) -> dict[str, Any]:
    from stackwise.reports.comparison import best_of, last_of

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


def _lines(records: list[RunRecord]) -> list[str]:
    from datetime import datetime

    from stackwise.reports.comparison import best_of, last_of
    from stackwise.reports.page.tables import size
    from stackwise.reports.terminal import columns_of, table

    rows = [["run", "began", "status", "phase", "step", "last", "best", "size", "parent"]]
    for record in records:
        last, best = last_of(record), best_of(record)
        parent = "–" if record.parent is None else f"{Path(str(record.parent.get('run'))).name} @ {record.parent.get('step')}"
        when = datetime.fromtimestamp(record.began).strftime("%Y-%m-%d %H:%M")
        steps = f"{record.last_step:,}/{record.plan.get('steps', 0):,}"
        figures = ["–" if figure is None else str(figure) for figure in (last, best)]
        status = record.status if len(record.status) <= 24 else record.status[:23] + "…"
        rows.append([record.name, when, status, record.phase or "–", steps, *figures, size(record.bytes), parent])
    shown = rows if any(record.parent is not None for record in records) else [row[:-1] for row in rows]
    return table(shown, columns_of())
