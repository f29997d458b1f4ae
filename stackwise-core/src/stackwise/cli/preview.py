"""`stackwise preview`: what the model gets, before anything trains."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  stackwise preview examples/grow-bytes.yaml
  stackwise preview exp.yaml --phase deep --rows 1

Exit codes: 0 done, 2 mistakes in config or data, 3 a provider's defect.
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of the config; maps are merged; repeatable.")
@click.option("--phase", "only", metavar="NAME", help="Show this phase.  [default: all]")
@click.option("--rows", type=click.IntRange(min=1), default=2, show_default=True, help="Rows of each source.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, one object per phase, with all numbers.")
def preview(file: Path, overrides: tuple[str, ...], only: str | None, rows: int, as_json: bool) -> None:
    """Show what the model gets in the first step of every phase that the config FILE declares, as its task prepares it.

    For every field: shape, values, and the share of padding and of entries without a target; then some rows of each source, as text if the
    source can decode its ids. The batch of the first phase is exactly the one that the first step will train on; a later phase is shown as
    if the run began with it. No model is built.
    """
    from stackwise import config
    from stackwise.assembly.planning import make_plan
    from stackwise.assembly.preview import previews
    from stackwise.errors import UserError, did_you_mean
    from stackwise.host.discovery import discover
    from stackwise.reports.preview_text import preview_as_json, preview_as_text
    from stackwise.reports.terminal import columns_of

    plan = make_plan(config.load(file, overrides), discover())
    names = [phase.name for phase in plan.schedule]
    if only is not None and only not in names:
        raise UserError(f"--phase: there is no phase '{only}'{did_you_mean(only, names)}; there is {', '.join(names)}")
    shown = [each for each in previews(plan) if only in (None, each.phase)]
    if as_json:
        click.echo(json.dumps([preview_as_json(each, rows) for each in shown], indent=1))
    else:
        click.echo("\n\n\n".join(preview_as_text(each, rows, columns_of()) for each in shown))
