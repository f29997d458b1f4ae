"""`stackwise branch`."""

from __future__ import annotations

from pathlib import Path

import click

from stackwise.cli.run import show


@click.command(
    epilog="""\b
Examples:
  stackwise branch runs/trunk --at 80% --set optimizer.lr.wsd.decay=10%
  stackwise branch runs/trunk --at "step 640" --output runs/other-end \\
      --set phases.decay.data.mix.code=3

Exit codes: as of `stackwise run`.
"""
)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--at",
    required=True,
    metavar="WHERE",
    help="85%: the newest whole checkpoint up to there; 'step 640': the one of this step; or a checkpoint's name.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key for what is to come; may be given often.")
@click.option("--output", type=click.Path(path_type=Path), help="A new run directory. [default: runs/NAME-001, -002, …]")
def branch(directory: Path, at: str, overrides: tuple[str, ...], output: Path | None) -> None:
    """Begin a new run in the middle of the run in the directory RUN.

    The steps up to the checkpoint are shared, their logs included; what comes after may be declared otherwise. Where the run was
    branched from (directory, step, digest) stands in its status.json and in each of its checkpoints.
    """
    from stackwise.runs.run import branch as branch_run

    show(branch_run(directory, at, overrides, output))
