"""The state of an installation and of a run directory, as records; nothing is changed."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from attrs import frozen

from stackwise import __version__
from stackwise.errors import UserError
from stackwise.host.discovery import discover
from stackwise.host.provider import Provider
from stackwise.processes.ranks import joined
from stackwise.storage.checkpoints.of_run import store_of
from stackwise.storage.checkpoints.store import SET_ASIDE
from stackwise.storage.lock import is_held, read_writer
from stackwise.storage.run_directory import CHECKPOINTS, CONFIG, FINAL, read_status
from stackwise.storage.weights import WEIGHTS, read_weights

LITTLE_SPACE = 1 << 30
"""Free bytes below which a disk is reported as short of space."""


@frozen(kw_only=True)
class Environment:
    """What runs would run on."""

    stackwise: str
    python: str
    platform: str
    torch: str
    cuda_build: str | None
    """The CUDA version torch was built for; None for a CPU build."""
    devices: tuple[str, ...]
    threads: int
    cpus: int
    compiler: str | None
    """The C++ compiler that `torch.compile` would call on a CPU; None without one."""


@frozen(kw_only=True)
class Process:
    """What one of several processes sees."""

    rank: int
    host: str
    device: str
    threads: int
    versions: str
    sees_run: bool
    """Whether the run directory that was asked for is there."""


@frozen(kw_only=True)
class Disk:
    """Where runs are written."""

    path: str
    free_bytes: int
    total_bytes: int
    writable: bool

    @property
    def problems(self) -> tuple[str, ...]:
        """What prevents a run there."""
        space = (f"only {self.free_bytes / 1e9:.2f} GB are free",) if self.free_bytes < LITTLE_SPACE else ()
        return (*space, *(() if self.writable else ("it cannot be written",)))


@frozen(kw_only=True)
class Examined:
    """One checkpoint, or the final weights."""

    name: str
    bytes: int
    problems: tuple[str, ...]


@frozen(kw_only=True)
class RunHealth:
    """A run directory."""

    path: str
    status: str
    steps: int | None
    written_by: str | None
    """Process and host that write to it now; None where nobody does."""
    checkpoints: tuple[Examined, ...]
    """Newest first."""
    final: Examined | None
    unfinished: tuple[str, ...]
    """Leftovers of interrupted saves; the next save removes them."""
    set_aside: tuple[str, ...] = ()
    """Checkpoints that a resume passed over; nothing reads them again."""

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each damage."""
        everything = (*self.checkpoints, *((self.final,) if self.final is not None else ()))
        return tuple(f"{each.name}: {problem}" for each in everything for problem in each.problems)


@frozen(kw_only=True)
class Diagnosis:
    """Everything `stackwise doctor` says."""

    environment: Environment
    providers: tuple[Provider, ...]
    disk: Disk
    run: RunHealth | None

    @property
    def exit_code(self) -> int:
        """2 for what the user can repair (disk, damaged run), else 3 for a broken provider, else 0."""
        if self.disk.problems or (self.run is not None and self.run.problems):
            return UserError.exit_code
        return 3 if any(not provider.ok for provider in self.providers) else 0


def processes_here(run: Path | None = None) -> list[Process]:
    """What each of the processes that were started together sees; empty where this one is alone."""
    with joined() as ranks:
        if ranks is None:
            return []
        device = f"cuda:{torch.cuda.current_device()} {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "cpu"
        versions = f"stackwise {__version__}, torch {torch.__version__}, python {platform.python_version()}"
        own = Process(
            rank=ranks.place.rank,
            host=ranks.place.host,
            device=device,
            threads=torch.get_num_threads(),
            versions=versions,
            sees_run=run is None or (run / CONFIG).is_file(),
        )
        return ranks.gather(own)


def diagnose(run: Path | None = None) -> Diagnosis:
    """Examine the installation and, with a path, a run directory: every file of its checkpoints is read.

    Raises:
        UserError: the path is not a run directory.
    """
    if run is not None and not (run / CONFIG).is_file():
        raise UserError(f"{run} is not a run directory: there is no {CONFIG} in it")
    return Diagnosis(
        environment=_environment(),
        providers=discover().providers,
        disk=_disk(run if run is not None else Path("runs")),
        run=_run_health(run) if run is not None else None,
    )


def _environment() -> Environment:
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))), None)
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Environment(
        stackwise=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        platform=platform.platform(),
        torch=torch.__version__,
        cuda_build=torch.version.cuda,
        devices=("cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(cuda))),
        threads=torch.get_num_threads(),
        cpus=os.cpu_count() or 1,
        compiler=compiler,
    )


def _disk(path: Path) -> Disk:
    """The disk of a path that may not exist yet: that of its nearest existing parent."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return Disk(path=str(path), free_bytes=usage.free, total_bytes=usage.total, writable=os.access(folder, os.W_OK))


def _run_health(run: Path) -> RunHealth:
    status, writer = read_status(run), read_writer(run) or {}
    steps = status.get("steps")
    checkpoints = store_of(run)
    return RunHealth(
        path=str(run),
        status=str(status.get("status", "unknown: there is no readable status.json")),
        steps=steps if isinstance(steps, int) else None,
        written_by=f"process {writer.get('pid')} on host {writer.get('host')}" if is_held(run) else None,
        checkpoints=tuple(
            Examined(name=path.name, bytes=_size(path), problems=tuple(problems)) for path, problems in checkpoints.examine()
        ),
        final=_final(run / FINAL),
        unfinished=tuple(_unfinished(run)),
        set_aside=tuple(sorted(path.name for path in (run / CHECKPOINTS).glob(f"*{SET_ASIDE}"))),
    )


def _final(directory: Path) -> Examined | None:
    if not directory.is_dir():
        return None
    problems: tuple[str, ...] = ()
    try:
        read_weights(directory)
    except UserError as error:
        problems = (str(error),)
    return Examined(name=f"{FINAL}/{WEIGHTS}", bytes=_size(directory), problems=problems)


def _unfinished(run: Path) -> Iterator[str]:
    for folder in (run, run / CHECKPOINTS):
        if folder.is_dir():
            yield from sorted(path.name for path in folder.iterdir() if path.name.startswith(".") and path.name.endswith(".writing"))


def _size(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.iterdir())
