"""`stackwise sweep`: one config, many runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stackwise.config.sweep import SweepConfig
    from stackwise.reports.comparison import Reached
    from stackwise.reports.record import RunRecord
    from stackwise.sweeps.tree import Job


@click.command(
    epilog="""\b
Examples:
  stackwise sweep rates.yaml --plan
  stackwise sweep rates.yaml --jobs 2
  stackwise sweep rates.yaml --json > figures.json

\b
  # rates.yaml
  config: base.yaml
  grid: {optimizer.lr: [1e-3, 2e-3, 4e-3]}
  seeds: [1, 2, 3, 4]

\b
  # ends.yaml: several ends of one run
  trunk: runs/trunk-001
  at: 80%
  grid: {optimizer.lr.wsd.decay: [5%, 10%, 20%]}

Exit codes: 0 done, 2 mistakes in FILE or the config, 130 and 143 stopped, with
every state saved; else that of the first run that failed.
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--output", type=click.Path(path_type=Path), help="Directory of the sweep.  [default: sweeps/NAME]")
@click.option(
    "--jobs", "at_once", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at a time, each in a process of its own."
)
@click.option("--plan", "only_plan", is_flag=True, help="Show what would run, what is shared, and what it costs.")
@click.option("--alone", is_flag=True, help="Share nothing: train every run from its first step.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures (with --plan, the runs) as JSON.")
def sweep(file: Path, output: Path | None, at_once: int, only_plan: bool, alone: bool, as_json: bool) -> None:
    """Run the config that FILE names with every combination of its settings, values and seeds.

    Runs with equal declarations up to some step train it once: the later run is branched from the earlier one, which gives it, to the bit,
    what it would have been alone. With `trunk` and `at` in FILE all of them are branched from a run that exists. The same command goes on
    with a sweep that was stopped, and finished runs stay. Each run is a directory like any other below the sweep's; what it printed is in
    `logs`.
    """
    from stackwise.config.sweep import load_sweep
    from stackwise.errors import UserError
    from stackwise.sweeps.tree import jobs_of
    from stackwise.sweeps.work import Work, open_directory

    sweep_config, begin = _on_its_trunk(load_sweep(file))
    jobs = jobs_of(sweep_config, share=not alone, begin=begin)
    if only_plan:
        click.echo(json.dumps([_as_json(job) for job in jobs], indent=2) if as_json else "\n".join(_plan_lines(jobs, sweep_config.trunk)))
        return
    directory = output if output is not None else Path("sweeps") / sweep_config.name
    lock = open_directory(directory, sweep_config, jobs)
    work = Work(directory=directory, sweep=sweep_config, jobs=jobs, at_once=at_once, say=lambda text: click.echo(text, err=True))
    try:
        work.run()
    finally:
        lock.release()
    finished = [directory / job.point.name for job in jobs if work.is_finished(job)]
    if finished:
        _show_figures(finished, as_json)
    if work.failures:
        first = work.failures[0]
        error = UserError(f"{len(work.failures)} of {len(jobs)} runs did not finish, the first {first.name}: see {first.log}")
        error.exit_code = first.exit_code if first.exit_code > 0 else 128 - first.exit_code
        raise error


def _on_its_trunk(sweep_config: SweepConfig) -> tuple[SweepConfig, int]:
    """A sweep with the config that its runs share, and the step of its trunk that they begin at; every run declares that past as the trunk.

    Raises:
        UserError: a run declares it otherwise, or there is no such step; the message names the run.
    """
    from attrs import evolve

    from stackwise import config
    from stackwise.errors import UserError
    from stackwise.runs.rest import Rest, checkpoint_at, config_of

    if not sweep_config.trunk:
        return sweep_config, 0
    trunk = Path(sweep_config.trunk)
    whole = evolve(sweep_config, config=sweep_config.config or str(config_of(trunk)))
    checkpoint, _ = checkpoint_at(trunk, sweep_config.at)
    for point in whole.points():
        try:
            Rest.after(checkpoint, config.load(Path(whole.config), point.overrides), trunk)
        except UserError as error:
            raise UserError(f"{point.name or 'the config'}: {error}") from error
    return whole, checkpoint.step


def _as_json(job: Job) -> dict[str, Any]:
    shared = {"parent": job.parent, "start": job.start, "steps": job.steps, "flops": job.flops, "flops_alone": job.flops_alone}
    return {"name": job.point.name, "values": dict(job.point.values), **shared}


def _plan_lines(jobs: Sequence[Job], trunk: str) -> list[str]:
    from stackwise.reports.terminal import columns_of, table

    name, begin = Path(trunk).name, min(job.start for job in jobs)
    rows = [["run", "begins in", "at step", "own steps", "training FLOPs"]]
    for job in jobs:
        figures = [f"{job.start:,}", f"{job.steps - job.start:,}", _flops(job.flops)]
        rows.append([job.point.name, job.parent or name or "–", *figures])
    own, alone = sum(job.steps - job.start for job in jobs), sum(job.steps - begin for job in jobs)
    costs = [cost for job in jobs for cost in (job.flops, job.flops_alone)]
    compute = "" if None in costs else f"; {_flops(sum(filter(None, costs[::2])))} of {_flops(sum(filter(None, costs[1::2])))} FLOPs"
    where = f"step {begin:,} of {trunk}" if trunk else "its start"
    return [*table(rows, columns_of()), f"{len(jobs)} runs: {own:,} steps to train, {alone:,} if each began at {where}{compute}"]


def _flops(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _show_figures(finished: Sequence[Path], as_json: bool) -> None:
    """The last figures of every combination, over its seeds."""
    from stackwise.reports import comparison
    from stackwise.reports.record import read_run

    records = [read_run(path) for path in finished]
    groups, reached = comparison.seed_groups(records), comparison.compare(records, "end")
    if as_json:
        rows = [_figures(records, groups, row) for row in reached]
        click.echo(json.dumps({"runs": [str(path) for path in finished], "groups": list(groups), "reached": rows}, indent=2))
        return
    click.echo("\n".join(_figure_lines(records, groups, reached)))


def _figures(records: Sequence[RunRecord], groups: Sequence[int], row: Reached) -> dict[str, Any]:
    from attrs import asdict

    from stackwise.reports import comparison

    means, differences = comparison.intervals(row, groups), comparison.paired_differences(records, row, groups)
    intervals = {"means": means, "differences": differences}
    by_group = {name: {str(group): asdict(interval) for group, interval in each.items()} for name, each in intervals.items()}
    return {"evaluation": row.evaluation, "metric": row.metric, "step": row.at, "steps": row.steps, "values": row.values, **by_group}


def _figure_lines(records: Sequence[RunRecord], groups: Sequence[int], reached: Sequence[Reached]) -> list[str]:
    from stackwise.reports import comparison
    from stackwise.reports.terminal import columns_of, table

    if not reached:
        return ["none of the runs was evaluated: declare an evaluation to compare them"]
    order = list(dict.fromkeys(groups))
    names = [_combination(records[list(groups).index(group)]) for group in order]
    lines = []
    for row in reached:
        means, differences = comparison.intervals(row, groups), comparison.paired_differences(records, row, groups)
        at = f"step {row.at:,}" if len(set(row.steps)) == 1 else "the end of each"
        rows = [[f"{row.evaluation} {row.metric.replace('_', ' ')} at {at}", "runs", "mean", f"− {names[0]}, by seed"]]
        for group, name in zip(order, names, strict=True):
            count = str(means[group].count) if group in means else "0"
            rows.append([name, count, str(means.get(group, "–")), str(differences.get(group, "–"))])
        lines += [*table(rows, columns_of()), ""]
    return [*lines, *_warning(groups)]


def _combination(record: RunRecord) -> str:
    """The name of a run without its seed."""
    return re.sub(r",?seed=\d+\Z", "", record.name) or "the config"


def _warning(groups: Sequence[int]) -> list[str]:
    from stackwise.reports.comparison import FEW_SEEDS

    fewest = min(list(groups).count(group) for group in groups)
    return [f"{fewest} seeds: a difference between fewer than {FEW_SEEDS} is easily luck"] if 0 < fewest < FEW_SEEDS else []
