"""`stackwise validate`: every mistake of a config at once."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Example:
  stackwise validate exp.yaml

Exit codes: 0 valid, 2 mistakes in the config (all of them are printed),
3 a provider's defect.
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of the config; maps are merged; repeatable.")
@click.option("--cold", is_flag=True, help="Only the first half, without importing torch.")
def validate(file: Path, overrides: tuple[str, ...], cold: bool) -> None:
    """Check the config FILE and report every mistake at once, with its line and column.

    The first half needs no torch: keys, options, the timeline, and whether all parts fit at their junctions. Then every phase is built
    on the meta device, which costs no memory, to check shapes and that selectors match parameters; and the device, the weights to start
    from and a row of everything that is read are looked at. No step is made and nothing is written.
    """
    from stackwise import config
    from stackwise.assembly.planning import assuming_times, make_plan
    from stackwise.errors import UserError
    from stackwise.host.discovery import discover
    from stackwise.plan.extents import counts
    from stackwise.reports.terminal import columns_of, wrap

    experiment = config.load(file, overrides)
    if cold and counts(experiment.resolved, "flops"):
        raise UserError(f"{file} measures its timeline in FLOPs, which torch counts: leave --cold out")
    plan = make_plan(assumed := assuming_times(experiment), discover())
    if not cold:
        from stackwise.assembly.pricing import price
        from stackwise.assembly.rehearsal import rehearse

        price(plan)
        rehearse(plan)
    phases = ", ".join(f"{phase.name} {phase.start}–{phase.stop}" for phase in plan.schedule)
    length = f"{plan.schedule.steps:,} steps ({phases})" if assumed is experiment else "its steps are known when it begins, by the clock"
    lines = [f"{file} is valid: {length}", *(f"bridged  {bridge}" for bridge in plan.bridges)]
    unseen = "shapes, selectors, the device, weights to start from, data; and " if cold else ""
    lines.append(f"not checked  {unseen}what only steps show: whether memory is enough, losses stay finite, and later rows can be read")
    click.echo(wrap("\n".join(lines), columns_of()))
