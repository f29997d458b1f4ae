"""`stackwise run`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  stackwise run examples/grow-bytes.yaml
  stackwise run exp.yaml --set run.horizon="200 steps" --set optimizer.lr=1e-3
  stackwise run exp.yaml --output runs/first

Exit codes: 0 done, 2 mistakes in config or data, 3 a provider's defect,
4 halted because steps were not finite, 130 stopped.
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of the config; may be given often.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Run directory, which must not exist yet. [default: runs/NAME-001, -002, …]"
)
def run(file: Path, overrides: tuple[str, ...], output: Path | None) -> None:
    """Train what the config FILE declares, phase by phase.

    The config is checked whole before anything is read or built. The run directory then holds the resolved config, the plan,
    events.jsonl, metrics.jsonl, status.json and the final weights (safetensors with a JSON description).
    """
    from stackwise.cli import provider_lists
    from stackwise.run import run as run_experiment

    result = run_experiment(file, overrides, output, lists=provider_lists())
    click.echo(result.summary.text())
    click.echo(f"files: {result.directory}/ (config.yaml, plan.json, events.jsonl, metrics.jsonl, status.json, final/weights.safetensors)")
