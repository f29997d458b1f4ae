"""`stackwise run`: train what a config declares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from stackwise.cli.process import load_torch, prepare_process
from stackwise.cli.ranks import process_options, start_processes
from stackwise.processes.place import Place

if TYPE_CHECKING:
    from stackwise.runs.run import Result


@click.command(
    epilog="""\b
Examples:
  stackwise run examples/grow-bytes.yaml
  stackwise run exp.yaml --set run.horizon="200 steps" --set optimizer.lr=1e-3
  stackwise run exp.yaml --output runs/first
  stackwise run exp.yaml --output runs/first --resume auto
  stackwise run exp.yaml --ranks 2 --max-restarts 3

Exit codes: 0 done, 2 mistakes in config or data, 3 a provider's defect,
4 halted because steps were not finite, 5 stopped by run.stop.after, 130 by
Ctrl-C and 143 by SIGTERM, with the state saved, 137 when one of several
processes was killed or hangs.
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of the config; maps are merged; repeatable.")
@click.option("--output", type=click.Path(path_type=Path), help="Run directory.  [default: runs/NAME-001, …]")
@click.option(
    "--resume",
    type=click.Choice(["never", "auto", "must"]),
    default="never",
    show_default=True,
    help="Continue the run at --output, or the newest of this name: never, if there is one, or always.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show only what does not go as planned, and print nothing but the run directory.")
@process_options
@click.pass_context
def run(
    context: click.Context,
    file: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    resume: Literal["never", "auto", "must"],
    quiet: bool,
    ranks: int | None,
    max_restarts: int,
) -> None:
    """Train what the config FILE declares, phase by phase.

    The config is checked whole before anything is read or built. The run directory then holds the resolved config, the plan,
    events.jsonl, metrics.jsonl, status.json, checkpoints and the final weights (safetensors with a JSON description).

    With --ranks N, or under torchrun, N processes divide the micro-batches of each step among them. If one of them fails, all end.

    SIGTERM and Ctrl-C finish the step, save the state and stop; a second one stops at once. SIGUSR1 saves the state and goes on.
    """
    prepare_process()
    start_processes(context, ranks, max_restarts)
    from stackwise.storage.lock import refuse_held

    if Place.here().is_first and resume != "never" and output is not None:
        refuse_held(output)
    load_torch()
    from stackwise.runs.run import run as run_experiment

    show(run_experiment(file, overrides, output, resume=resume, quiet=quiet), quiet=quiet)


def show(result: Result, *, quiet: bool) -> None:
    """Print the outcome of a run, in its first process; with `quiet` its directory alone."""
    from stackwise.reports.terminal import columns_of, wrap

    if result.rank:
        return
    if quiet:
        click.echo(result.directory)
        return
    if result.finished_before:
        steps = result.summary.finished.steps if result.summary.finished is not None else 0
        click.echo(f"{result.directory} has finished already, after {steps:,} steps: nothing is left to train")
        further = "run.horizon=…" if result.summary.stopped is None else "run.stop=null, or a larger run.stop.patience,"
        click.echo(f"to train it further: --set {further} (or `stackwise branch`)")
        return
    click.echo(result.summary.text(columns_of()))
    files = "config.yaml, plan.json, events.jsonl, metrics.jsonl, status.json, checkpoints/, final/weights.safetensors"
    click.echo(wrap(f"files: {result.directory}/ ({files})", columns_of()))
    click.echo(wrap(f"next: stackwise report {result.directory}, stackwise export {result.directory} weights", columns_of()))
