"""`stackwise resume`."""

from __future__ import annotations

from pathlib import Path

import click

from stackwise.cli.run import show


@click.command(
    epilog="""\b
Examples:
  stackwise resume runs/grow-bytes-001
  stackwise resume runs/grow-bytes-001 --set run.horizon="2400 steps"

Exit codes: as of `stackwise run`; 0 also where the run has finished before
and nothing is left.
"""
)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key for what is to come; may be given often.")
def resume(directory: Path, overrides: tuple[str, ...]) -> None:
    """Go on with the run in the directory RUN from its newest valid checkpoint.

    What follows is, bit for bit, what would have followed without the interruption. A damaged checkpoint is passed over, with the
    reason. The logs are cut back to the checkpoint, so that they tell of every step once.

    A change may touch only what is still to come: what declares steps that are done is refused, and phases that have ended keep
    their last step, also when the horizon moves.
    """
    from stackwise.storage.lock import refuse_held

    refuse_held(directory)
    from stackwise.runs.run import resume as resume_run

    show(resume_run(directory, overrides))
