"""`stackwise evaluate`: the evaluations of a run again, or others, with the model that it has reached."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stackwise.cli.process import prepare_process


@click.command(
    epilog="""\b
Examples:
  stackwise evaluate runs/grow-bytes-001
  stackwise evaluate runs/grow-bytes-001 --only heldout --json
  stackwise evaluate runs/grow-bytes-001 --set evaluate.test='{batches: 8,
      sources: {t: {use: data.text-files, heldout: 1, paths: [t/*.txt]}}}'

Exit codes: 0 done, 2 RUN has no weights, or an evaluation or its data are
at fault, 3 a provider's defect.
"""
)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Declare or change a key under `evaluate`; repeatable.")
@click.option("--only", multiple=True, metavar="NAME", help="This evaluation alone; repeatable.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, an object an evaluation.")
def evaluate(directory: Path, overrides: tuple[str, ...], only: tuple[str, ...], as_json: bool) -> None:
    """Evaluate the model of a RUN: its final weights, or those of its newest checkpoint while it has not finished.

    Without options these are the evaluations that the run declares, on the same data, so a finished run prints its last figures again.
    Others are declared as a config would, under `evaluate`. Nothing is written.
    """
    prepare_process()
    from stackwise.saved.evaluate import evaluate as results

    told = []
    for result in results(directory, overrides, only):
        told.append({"evaluation": result.name, "step": result.step, "phase": result.phase, **result.metrics, "seconds": result.seconds})
        if not as_json:
            metrics = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in result.metrics.items())
            click.echo(f"{result.name}  step {result.step:,}  {metrics}  ({result.seconds:.1f} s)")
    if as_json:
        click.echo(json.dumps(told, indent=1))
