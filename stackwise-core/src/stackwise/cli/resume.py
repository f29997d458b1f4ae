"""`stackwise resume`: go on with a run from its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from stackwise.cli.process import load_torch, prepare_process
from stackwise.cli.ranks import process_options, start_processes
from stackwise.cli.run import show
from stackwise.processes.place import Place


@click.command(
    epilog="""\b
Examples:
  stackwise resume runs/grow-bytes-001
  stackwise resume runs/grow-bytes-001 --ranks 2
  stackwise resume runs/grow-bytes-001 --set run.horizon="2400 steps"

Exit codes: as for `stackwise run`; 0 also when the run has already finished.
"""
)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key from here on; repeatable.")
@click.option("-q", "--quiet", is_flag=True, help="Show only what does not go as planned, and print nothing but the run directory.")
@process_options
@click.pass_context
def resume(context: click.Context, directory: Path, overrides: tuple[str, ...], quiet: bool, ranks: int | None, max_restarts: int) -> None:
    """Go on with the run in the directory RUN from its newest valid checkpoint.

    The run continues bit for bit as if it had not been interrupted. With another number of processes it takes the same steps, and only the
    order of floating-point sums differs. A damaged checkpoint is passed over, the reason printed, and the
    checkpoint kept under a name that ends in '.set-aside'. The logs are cut back, so that every step is in them once.

    --set may change only what is still to come: a change of steps already trained is refused, and phases that have ended keep their
    last step even if the horizon moves.
    """
    prepare_process()
    start_processes(context, ranks, max_restarts)
    from stackwise.storage.lock import refuse_held

    if Place.here().is_first:
        refuse_held(directory)
    load_torch()
    from stackwise.runs.run import resume as resume_run

    show(resume_run(directory, overrides, quiet=quiet), quiet=quiet)
