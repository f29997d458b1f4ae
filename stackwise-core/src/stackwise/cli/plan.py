"""`stackwise plan`: the timeline of a config and its price, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  stackwise plan examples/grow-bytes.yaml
  stackwise plan examples/grow-bytes.yaml --html plan.html

Exit codes: 0 done, 2 mistakes in the config, 3 a provider's defect.
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of the config; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Draw the timeline into this HTML file, too.")
def plan(file: Path, overrides: tuple[str, ...], as_json: bool, page: Path | None) -> None:
    """Show the timeline that the config FILE declares, without weights in memory and without reading data.

    For every phase: steps, tokens, stacks and blocks, parameters, optimizer state, training FLOPs and learning rate. For every
    boundary: what each plane changes, which block comes from which, what is adopted, copied, fresh or dropped, and whether the model
    still computes the same function.
    """
    from stackwise import config
    from stackwise.assembly.planning import make_plan
    from stackwise.assembly.pricing import price
    from stackwise.host.discovery import discover
    from stackwise.reports.plan_text import plan_as_json, plan_as_text
    from stackwise.reports.terminal import columns_of

    compiled = make_plan(config.load(file, overrides), discover())
    prices = price(compiled)
    if page is not None:
        from stackwise.cli.report import write_page
        from stackwise.reports.page.render import render_plan

        write_page(page, render_plan(plan_as_json(compiled, prices), plan_as_text(compiled, prices)))
    click.echo(json.dumps(plan_as_json(compiled, prices), indent=1) if as_json else plan_as_text(compiled, prices, columns_of()))
