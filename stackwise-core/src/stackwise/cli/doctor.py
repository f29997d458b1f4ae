"""`stackwise doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stackwise.runs.diagnosis import Diagnosis, Examined, RunHealth


@click.command(
    epilog="""\b
Examples:
  stackwise doctor
  stackwise doctor runs/grow-bytes-001
  stackwise doctor runs/grow-bytes-001 --json

\b
Exit codes:
  0  healthy
  2  something of yours needs mending: RUN is no run directory, a checkpoint or
     the final weights are damaged, the disk is full or cannot be written
  3  nothing of that, but an installed provider is broken
"""
)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object with the keys environment, providers, disk, run and exit_code.")
@click.pass_context
def doctor(context: click.Context, run: Path | None, as_json: bool) -> None:
    """Examine the installation, and with RUN a run directory.

    It tells of Python, torch and its devices, of every provider and what is wrong with it, and of the disk that runs go to. Of a RUN
    it tells the status, who writes to it now, and of every checkpoint whether it is valid, with the reason if it is not: all of their
    files are read. Nothing is changed.
    """
    from stackwise.runs.diagnosis import diagnose

    found = diagnose(run)
    click.echo(_as_json(found) if as_json else "\n\n".join(_sections(found)))
    context.exit(found.exit_code)


def _as_json(found: Diagnosis) -> str:
    import json

    import attrs

    providers = [
        {"provider": p.name, "distribution": p.distribution, "version": p.version, "status": p.status, "components": len(p.components)}
        for p in found.providers
    ]
    run: dict[str, Any] | None = None if found.run is None else {**attrs.asdict(found.run), "problems": list(found.run.problems)}
    disk = {**attrs.asdict(found.disk), "problems": list(found.disk.problems)}
    about = {"environment": attrs.asdict(found.environment), "providers": providers, "disk": disk, "run": run}
    return json.dumps({**about, "exit_code": found.exit_code}, indent=2)


def _sections(found: Diagnosis) -> list[str]:
    environment, disk = found.environment, found.disk
    build = f"built for CUDA {environment.cuda_build}" if environment.cuda_build else "built for CPUs"
    compiles = f"with {environment.compiler}" if environment.compiler else "not here: there is no C++ compiler (g++, clang++ or $CXX)"
    told = [
        "environment",
        f"  stackwise      {environment.stackwise}",
        f"  python         {environment.python}",
        f"  platform       {environment.platform}",
        f"  torch          {environment.torch}, {build}, {environment.threads} of {environment.cpus} threads",
        f"  devices        {', '.join(environment.devices)}",
        f"  torch.compile  {compiles}",
    ]
    providers = [f"  {p.name:<14} {p.distribution} {p.version}: {_health(p.ok, p.status, len(p.components))}" for p in found.providers]
    space = f"  {disk.path}: {disk.free_bytes / 1e9:.1f} of {disk.total_bytes / 1e9:.1f} GB free"
    sections = ["\n".join(told), "\n".join(["providers", *providers]), "\n".join(["disk", space, *(f"  {p}" for p in disk.problems)])]
    return [*sections, *([_run(found.run)] if found.run is not None else [])]


def _health(ok: bool, status: str, components: int) -> str:
    return f"ok, {components} components" if ok else f"BROKEN: {status}"


def _run(run: RunHealth) -> str:
    steps = "" if run.steps is None else f", {run.steps:,} steps done"
    lines = [f"run {run.path}", f"  status         {run.status}{steps}", f"  written by     {run.written_by or 'nobody now'}"]
    lines += [_examined(each) for each in run.checkpoints] or ["  there is no checkpoint"]
    lines += [_examined(run.final)] if run.final is not None else []
    lines += [f"  {name}: left by a save that was interrupted; the next save removes it" for name in run.unfinished]
    return "\n".join(lines)


def _examined(each: Examined) -> str:
    verdict = "valid" if not each.problems else "DAMAGED: " + "; ".join(each.problems)
    return f"  {each.name}  {each.bytes / 1e6:.1f} MB  {verdict}"
