"""Runs the jobs of a sweep, each in its own process, a few at a time. Unfinished runs go on, finished runs stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from types import FrameType
from typing import Any

from attrs import define, field, frozen

from stackwise.config.documents import read_file
from stackwise.config.sweep import LOGS, RECORD, SweepConfig
from stackwise.errors import RunStopped, UserError
from stackwise.storage.checkpoints.store import name_of
from stackwise.storage.codec import read_object, typed
from stackwise.storage.lock import RunLock
from stackwise.storage.regular import read_regular
from stackwise.storage.run_directory import CHECKPOINTS, CONFIG, FINISHED, read_status
from stackwise.sweeps.tree import Job

_POLL_S = 0.2
_CALL = "from stackwise.cli import main; main(prog_name='stackwise')"


@frozen
class Failure:
    """A run that did not finish."""

    name: str
    exit_code: int
    log: Path


def open_directory(path: Path, sweep: SweepConfig, jobs: Sequence[Job]) -> RunLock:
    """Make the directory of a sweep, or compare an existing one with what is asked for. The lock keeps other processes out until it is
    released.

    Raises:
        UserError: it is the directory of something else, a run in it was declared in another way, or another process writes to it.
    """
    record = {
        job.point.name: {"values": dict(job.point.values), "parent": job.parent, "start": job.start, "saves": job.saves} for job in jobs
    }
    about = {"config": read_file(Path(sweep.config)).plain(), "trunk": sweep.trunk, "runs": record}
    wanted = json.loads(json.dumps(about, default=str))
    place = path / RECORD
    if path.exists() and not place.exists():
        raise UserError(f"{path} exists already and is not a sweep: give another --output, or remove it")
    if place.exists():
        held = _record(place)
        changed = [f"its {each}" for each in ("config", "trunk") if held.get(each, "") != wanted[each]]
        changed += [name for name, about in held["runs"].items() if wanted["runs"].get(name) != about and (path / name).exists()]
        if changed:
            raise UserError(f"{path} is a sweep of something else ({', '.join(changed[:5])} changed): give another --output, or remove it")
    (path / LOGS).mkdir(parents=True, exist_ok=True)
    lock = RunLock(path)
    place.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return lock


@define(kw_only=True)
class Work:
    """Runs the jobs of a sweep.

    Args:
        directory: the directory of the sweep; it has a folder for each run, by its name, and what the run printed in `logs`.
        sweep: the sweep, whose config the runs share.
        jobs: the runs, each after the one that it begins in.
        at_once: how many processes may run at a time.
        say: called with a line for each run that begins or ends.
    """

    directory: Path
    sweep: SweepConfig
    jobs: Sequence[Job]
    at_once: int
    say: Callable[[str], None]
    failures: list[Failure] = field(factory=list, init=False)
    _running: dict[str, subprocess.Popen[bytes]] = field(factory=dict, init=False)
    _signal: signal.Signals | None = field(default=None, init=False)

    def run(self) -> None:
        """Run what is left.

        Raises:
            RunStopped: by SIGINT or SIGTERM, which was passed on to every process; their work is saved.
        """
        waiting = [job for job in self.jobs if not self.is_finished(job)]
        with self._passing_on_signals():
            while (waiting and self._signal is None) or self._running:
                self._reap()
                waiting = [job for job in waiting if not self._is_lost(job)]
                ready = [job for job in waiting if self._can_begin(job)]
                for job in ready[: self.at_once - len(self._running)] if self._signal is None else ():
                    waiting.remove(job)
                    self._begin(job)
                sleep(_POLL_S)
        if self._signal is not None:
            raise RunStopped(f"the sweep in {self.directory}; the same command goes on with it", by=self._signal)

    def is_finished(self, job: Job) -> bool:
        """Whether a run has nothing left to do."""
        return self._has_finished(job.point.name)

    def _can_begin(self, job: Job) -> bool:
        return job.parent is None or self._exists(job) or self._state_for(job).is_dir() or self._has_finished(job.parent)

    def _has_finished(self, name: str) -> bool:
        return read_status(self.directory / name).get("status") == FINISHED

    def _state_for(self, job: Job) -> Path:
        """The checkpoint that a run begins at."""
        return self.directory / str(job.parent) / CHECKPOINTS / name_of(job.start)

    def _exists(self, job: Job) -> bool:
        return (self.directory / job.point.name / CONFIG).is_file()

    def _is_lost(self, job: Job) -> bool:
        """Whether the run that it begins in has failed before that step."""
        lost = any(failure.name == job.parent for failure in self.failures) and not self._can_begin(job)
        if lost:
            self.failures.append(Failure(job.point.name, 2, self._log(str(job.parent))))
            self.say(f"left out  {job.point.name}: {job.parent} failed before step {job.start:,}")
        return lost

    def _begin(self, job: Job) -> None:
        name, command = job.point.name, self._command(job)
        with self._log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-c", _CALL, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C reaches a process once, through `pass_on`: a second signal would leave without a save
            )

    def _command(self, job: Job) -> list[str]:
        """The command that begins a run, or goes on with it; it is said which."""
        name, parent, start = job.point.name, job.parent, job.start
        sets = [word for override in job.overrides for word in ("--set", override)]
        own = [*sets, "--output", str(self.directory / name)]
        if self._exists(job):
            self.say(f"goes on   {name}")
            return ["run", self.sweep.config, *own, "--resume", "auto"]
        left = ""
        if parent is not None and not self._state_for(job).is_dir():  # it stopped early by its own rule, or the checkpoint was removed
            left = f", because {parent} has finished, and has no checkpoint of step {start:,}"
            parent, start = None, min(each.start for each in self.jobs)
        if parent is None and not self.sweep.trunk:
            self.say(f"begins    {name}{', at its own start' if left else ''}{left}")
            return ["run", self.sweep.config, *own, "--resume", "auto"]
        origin = self.sweep.trunk if parent is None else str(self.directory / parent)
        self.say(f"begins    {name}, at step {start:,} of {parent or origin}{left}")
        return ["branch", origin, "--at", f"step {start}", "--config", self.sweep.config, *own]

    def _environment(self) -> dict[str, str]:
        """One share of the cores for each process, where nothing else was asked for."""
        share = max(1, (os.cpu_count() or 1) // self.at_once)
        return {"OMP_NUM_THREADS": str(share), **os.environ}

    def _log(self, name: str) -> Path:
        return self.directory / LOGS / f"{name}.log"

    def _reap(self) -> None:
        for name, process in list(self._running.items()):
            if (code := process.poll()) is None:
                continue
            del self._running[name]
            if code == 0:
                self.say(f"finished  {name}")
            elif self._signal is None:
                self.failures.append(Failure(name, code, self._log(name)))
                self.say(f"failed    {name}: exit code {code}, {self._log(name)}")

    @contextmanager
    def _passing_on_signals(self) -> Iterator[None]:
        """Every signal is passed on to every process: the first makes it save and end."""

        def pass_on(number: int, frame: FrameType | None) -> None:
            self._signal = signal.Signals(number)
            for process in self._running.values():
                process.send_signal(signal.SIGTERM)

        caught = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {number: signal.signal(number, pass_on) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _record(place: Path) -> dict[str, Any]:
    """What an earlier call wrote of its sweep.

    Raises:
        UserError: the file is damaged.
    """
    try:
        record = read_object(read_regular(place))
        typed(record.get("runs"), dict[str, Any], "runs")
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    else:
        return record
    raise UserError(
        f"{place} is damaged: {reason}: remove it and its runs, give another --output, or go on with each run by `stackwise resume`"
    )
