"""`stackwise evaluate`: the evaluations of a run again, or others, with the model that it has reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from stackwise.cli.process import load_torch, prepare_process
from stackwise.errors import UserError


@click.command(
    epilog="""\b
Examples:
  stackwise evaluate runs/grow-bytes-001
  stackwise evaluate runs/grow-bytes-001 --only heldout --json
  stackwise evaluate runs/grow-bytes-001 --data test.yaml
  stackwise evaluate runs/grow-bytes-001 --set evaluate.test='{batches: 8,
      sources: {t: {use: data.text-files, heldout: 1, paths: [t/*.txt]}}}'
  stackwise evaluate runs/chat-001 --tasks hellaswag,arc_easy --limit 200
  stackwise evaluate runs/chat-001 --tasks mine --include my-tasks

Exit codes: 0 done, 2 RUN has no weights, or an evaluation or its data are
at fault, 3 a provider's defect.
"""
)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Declare or change a key under `evaluate`; repeatable.")
@click.option(
    "--data",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Evaluate on other data: a YAML file with one evaluation as under `evaluate`, or a config with data.sources; repeatable.",
)
@click.option("--only", multiple=True, metavar="NAME", help="This evaluation alone; repeatable.  [default: all]")
@click.option("--tasks", metavar="NAMES", help="Tasks of lm-evaluation-harness instead, separated by commas (extra: lm-eval).")
@click.option("--include", type=click.Path(path_type=Path), help="Folder with definitions of further --tasks.")
@click.option("--shots", type=click.IntRange(min=0), help="Few-shot examples before each question of --tasks.  [default: as the task says]")
@click.option("--limit", type=click.IntRange(min=1), help="Number of questions of each task in --tasks.  [default: all]")
@click.option("--rows", type=click.IntRange(min=1), help="Rows of --tasks per forward pass.  [default: 16]")
@click.option(
    "--length",
    type=click.IntRange(min=2),
    help="Longest row of --tasks, in tokens; longer ones are cut at their beginning.  [default: the run's]",
)
@click.option(
    "--start", type=click.IntRange(min=0), help="Token id put before a text of --tasks that has no context.  [default: the vocabulary's]"
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, one object per evaluation.")
def evaluate(
    directory: Path,
    overrides: tuple[str, ...],
    data: tuple[Path, ...],
    only: tuple[str, ...],
    tasks: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Evaluate the model of a RUN: its final weights, or those of its newest checkpoint while it has not finished.

    Without options these are the evaluations that the run declares, on the same data, so a finished run gives its last results again.
    Declare others with --set or --data, as under `evaluate` in a config. Nothing is written. A file for --data is
    `sources: {test: {use: data.text-files, paths: [test/*.txt]}}` and, where they matter, batches, batch_size and seq_len.

    With --tasks they are those of lm-evaluation-harness, which fetches their questions where the task's definition says so; with
    HF_HUB_OFFLINE=1 in the environment it fetches nothing. RUN may be an export then.
    """
    prepare_process()
    load_torch()
    chosen = {name: value for name, value in asked.items() if value is not None}
    if tasks is not None:
        if overrides or only or data:
            raise UserError("--set, --data and --only speak of the run's own evaluations, which --tasks replaces: leave them out")
        _ask(directory, tasks, chosen, as_json=as_json)
        return
    if chosen:
        raise UserError(f"--{next(iter(chosen))} belongs to --tasks: name tasks, or leave it out")
    if data:
        from stackwise.saved.evaluate import declaration_in

        others = dict(map(declaration_in, data))
        overrides = (*overrides, *(f"evaluate.{name}={json.dumps(declared)}" for name, declared in others.items()))
        only = (*only, *others)
    _evaluate(directory, overrides, only, as_json=as_json)


def _ask(directory: Path, tasks: str, asked: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the scores of a model on tasks of lm-evaluation-harness."""
    from stackwise.reports.terminal import columns_of, wrap
    from stackwise.saved.harness import HarnessSettings, score_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    scores = score_tasks(directory, HarnessSettings(tasks=names, **asked))
    if as_json:
        click.echo(
            json.dumps([{"task": each.task, "step": each.step, "questions": each.questions, **each.metrics} for each in scores], indent=1)
        )
        return
    for each in scores:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in each.metrics.items())
        click.echo(wrap(f"{each.task}  step {each.step:,}  {metrics}  ({each.questions:,} questions)", columns_of()))
    if scores and scores[0].cut:
        click.echo(
            f"note: {scores[0].cut:,} rows were longer than the run's and lost their beginning: --length allows longer ones", err=True
        )


def _evaluate(directory: Path, overrides: tuple[str, ...], only: tuple[str, ...], *, as_json: bool) -> None:
    """Print the metrics of a run's evaluations."""
    from stackwise.reports.terminal import columns_of, wrap
    from stackwise.saved.evaluate import evaluate as results

    figures = []
    for result in results(directory, overrides, only):
        figures.append({"evaluation": result.name, "step": result.step, "phase": result.phase, **result.metrics, "seconds": result.seconds})
        if not as_json:
            metrics = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in result.metrics.items())
            click.echo(wrap(f"{result.name}  step {result.step:,}  {metrics}  ({result.seconds:.1f} s)", columns_of()))
    if as_json:
        click.echo(json.dumps(figures, indent=1))
