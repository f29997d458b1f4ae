"""`stackwise plan`: the timeline of a config and its price, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stackwise.cli.process import load_torch, prepare_process


@click.command(
    epilog="""\b
Examples:
  stackwise plan examples/grow-bytes.yaml
  stackwise plan examples/grow-bytes.yaml --html plan.html
  stackwise plan examples/grow-bytes.yaml --measure 5

Exit codes: 0 done, 2 mistakes in the config, 3 a provider's defect.
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of the config; maps are merged; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Draw the timeline into this HTML file, too.")
@click.option(
    "--measure",
    "steps",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Read the data, train this many steps of each phase here, keep nothing, and estimate how long the run will take.",
)
def plan(file: Path, overrides: tuple[str, ...], as_json: bool, page: Path | None, steps: int | None) -> None:
    """Show the timeline that the config FILE declares, without weights in memory and without reading data, unless --measure asks for it.

    For every phase: steps, tokens, stacks and blocks, parameters, optimizer state, training FLOPs and learning rate; and the memory of
    its tensors in one process, counted in a training step and the evaluations with tensors that hold no numbers. For every boundary:
    what each plane changes, which block comes from which, what is adopted, copied, fresh or dropped, and whether the model still
    computes the same function.
    """
    if steps is not None:
        prepare_process()
        load_torch()
    from stackwise import config
    from stackwise.assembly.planning import make_plan
    from stackwise.assembly.pricing import price
    from stackwise.host.discovery import discover
    from stackwise.reports.plan_text import plan_as_json, plan_as_text
    from stackwise.reports.terminal import columns_of
    from stackwise.reports.time_text import time_as_json, time_lines

    compiled = make_plan(config.load(file, overrides), discover())
    prices = price(compiled, memory_from=0.0)
    if page is not None:
        from stackwise.cli.report import write_page
        from stackwise.reports.page.render import render_plan

        write_page(page, render_plan(plan_as_json(compiled, prices), plan_as_text(compiled, prices)))
    times = None
    if steps is not None:
        from stackwise.assembly.timing import measure

        times = measure(compiled, steps)
    if as_json:
        time = {} if times is None else {"time": time_as_json(times)}
        click.echo(json.dumps({**plan_as_json(compiled, prices), **time}, indent=1))
        return
    click.echo(plan_as_text(compiled, prices, columns_of()))
    if times is not None:
        click.echo("\n".join(time_lines(times, columns_of())))
