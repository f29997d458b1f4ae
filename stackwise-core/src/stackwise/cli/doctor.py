"""`stackwise doctor`: the installation and a run directory examined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stackwise.processes.place import Place

if TYPE_CHECKING:
    from stackwise.runs.diagnosis import Diagnosis, Examined, Process, RunHealth


@click.command(
    epilog="""\b
Examples:
  stackwise doctor
  stackwise doctor runs/grow-bytes-001
  stackwise doctor runs/grow-bytes-001 --json

\b
Exit codes:
  0  healthy
  2  RUN is not a run directory, a checkpoint or the final weights are
     damaged, or the disk is full or cannot be written, or processes differ
     in their versions or do not see the run
  3  none of these, but an installed provider is broken
"""
)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: environment, providers, disk, run, exit_code.")
@click.pass_context
def doctor(context: click.Context, run: Path | None, as_json: bool) -> None:
    """Examine the installation, and with RUN a run directory.

    Reports Python, torch and its devices, every provider and what is wrong with it, and the disk that runs are written to. For a RUN it
    reports the status, which process is writing to it, and for every checkpoint whether it is valid, or why not; all files are read for
    this, and nothing is changed. Under torchrun the first process prints what each of them sees.
    """
    from stackwise.runs.diagnosis import diagnose, processes_here

    processes = processes_here(run)
    if not Place.here().is_first:
        return
    diagnosis = diagnose(run)
    sections = [*_sections(diagnosis), *([_together(processes)] if processes else [])]
    click.echo(_as_json(diagnosis, processes) if as_json else "\n\n".join(sections))
    apart = len({each.versions for each in processes}) > 1 or not all(each.sees_run for each in processes)
    context.exit(2 if apart else diagnosis.exit_code)


def _together(processes: Sequence[Process]) -> str:
    """One line for each process, with what differs from the first."""
    lines = []
    for each in processes:
        other = "" if each.versions == processes[0].versions else f"  OTHER VERSIONS: {each.versions}"
        blind = "" if each.sees_run else "  DOES NOT SEE THE RUN: put it on a file system that all machines share"
        lines.append(f"  rank {each.rank:<4} {each.host}  {each.device}, {each.threads} threads{other}{blind}")
    return "\n".join(["processes", *lines])


def _as_json(diagnosis: Diagnosis, processes: Sequence[Process]) -> str:
    import json

    import attrs

    providers = [
        {"provider": p.name, "distribution": p.distribution, "version": p.version, "status": p.status, "components": len(p.components)}
        for p in diagnosis.providers
    ]
    run: dict[str, Any] | None = (
        None if diagnosis.run is None else {**attrs.asdict(diagnosis.run), "problems": list(diagnosis.run.problems)}
    )
    disk = {**attrs.asdict(diagnosis.disk), "problems": list(diagnosis.disk.problems)}
    about = {"environment": attrs.asdict(diagnosis.environment), "providers": providers, "disk": disk, "run": run}
    if processes:
        about["processes"] = [attrs.asdict(each) for each in processes]
    return json.dumps({**about, "exit_code": diagnosis.exit_code}, indent=2)


def _sections(diagnosis: Diagnosis) -> list[str]:
    environment, disk = diagnosis.environment, diagnosis.disk
    build = f"built for CUDA {environment.cuda_build}" if environment.cuda_build else "built for CPUs"
    compiles = f"with {environment.compiler}" if environment.compiler else "not here: there is no C++ compiler (g++, clang++ or $CXX)"
    lines = [
        "environment",
        f"  stackwise      {environment.stackwise}",
        f"  python         {environment.python}",
        f"  platform       {environment.platform}",
        f"  torch          {environment.torch}, {build}, {environment.threads} of {environment.cpus} threads",
        f"  devices        {', '.join(environment.devices)}",
        f"  torch.compile  {compiles}",
    ]
    providers = [f"  {p.name:<14} {p.distribution} {p.version}: {_health(p.ok, p.status, len(p.components))}" for p in diagnosis.providers]
    space = f"  {disk.path}: {disk.free_bytes / 1e9:.1f} of {disk.total_bytes / 1e9:.1f} GB free"
    sections = ["\n".join(lines), "\n".join(["providers", *providers]), "\n".join(["disk", space, *(f"  {p}" for p in disk.problems)])]
    return [*sections, *([_run(diagnosis.run)] if diagnosis.run is not None else [])]


def _health(ok: bool, status: str, components: int) -> str:
    return f"ok, {components} components" if ok else f"BROKEN: {status}"


def _run(run: RunHealth) -> str:
    steps = "" if run.steps is None else f", {run.steps:,} steps done"
    lines = [f"run {run.path}", f"  status         {run.status}{steps}", f"  written by     {run.written_by or 'nobody now'}"]
    lines += [_examined(each) for each in run.checkpoints] or ["  there is no checkpoint"]
    lines += [_examined(run.final)] if run.final is not None else []
    lines += [f"  {name}: left by a save that was interrupted; the next save removes it" for name in run.unfinished]
    lines += [f"  {name}: a checkpoint that a resume passed over; nothing reads it, remove it when you like" for name in run.set_aside]
    return "\n".join(lines)


def _examined(each: Examined) -> str:
    verdict = "valid" if not each.problems else "DAMAGED: " + "; ".join(each.problems)
    return f"  {each.name}  {each.bytes / 1e6:.1f} MB  {verdict}"
