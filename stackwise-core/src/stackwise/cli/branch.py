"""`stackwise branch`: begin a run in the middle of another."""

from __future__ import annotations

from pathlib import Path

import click

from stackwise.cli.process import load_torch, prepare_process
from stackwise.cli.ranks import process_options, start_processes
from stackwise.cli.run import show


@click.command(
    epilog="""\b
Examples:
  stackwise branch runs/trunk --at 80% --set optimizer.lr.wsd.decay=10%
  stackwise branch runs/trunk --at "step 640" --output runs/other-end \\
      --set phases.decay.data.mix.code=3
  stackwise branch runs/trunk --at 80% --config other-end.yaml

Exit codes: as for `stackwise run`.
"""
)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--at",
    required=True,
    metavar="WHERE",
    help="85%: the newest valid checkpoint up to there; 'step 640': the one of that step; or a checkpoint's name.",
)
@click.option("--config", "source", type=click.Path(path_type=Path, dir_okay=False), help="Config of the new run.  [default: that of RUN]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key from here on; repeatable.")
@click.option("--output", type=click.Path(path_type=Path), help="The new run directory.  [default: runs/NAME-001, …]")
@click.option("-q", "--quiet", is_flag=True, help="Show only what does not go as planned, and print nothing but the run directory.")
@process_options
@click.pass_context
def branch(
    context: click.Context,
    directory: Path,
    at: str,
    source: Path | None,
    overrides: tuple[str, ...],
    output: Path | None,
    quiet: bool,
    ranks: int | None,
    max_restarts: int,
) -> None:
    """Begin a new run in the middle of the run in the directory RUN.

    The two share the steps up to the checkpoint, logs included; what follows may be declared otherwise. The origin (directory, step,
    digest) is recorded in status.json and in every checkpoint of the new run.
    """
    prepare_process()
    start_processes(context, ranks, max_restarts)
    load_torch()
    from stackwise.runs.run import branch as branch_run

    show(branch_run(directory, at, overrides, output, source=source, quiet=quiet), quiet=quiet)
