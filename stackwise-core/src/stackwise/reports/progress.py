"""Progress of a run: one bar whose segments are the phases on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from time import monotonic
from typing import TextIO

import numpy as np

from stackwise.contracts.events import (
    CheckpointRefused,
    ConfigChanged,
    Evaluated,
    Event,
    PhaseEntered,
    Reacted,
    Rewound,
    RunFinished,
    RunStarted,
    Stalled,
    StepDone,
    Stopped,
)
from stackwise.curriculum.schedule import PhaseSchedule
from stackwise.errors import printable
from stackwise.reports.terminal import clock, wrap

LINE_EVERY_S = 5.0
REDRAW_EVERY_S = 0.1
ESTIMATED_AFTER = 5
"""The time of the whole run is estimated this many steps after the first."""
WORTH_SAYING_S = 20.0
"""The estimate is printed only when at least this much time is left."""
_COLOURS = (36, 32, 33, 35, 34)


class Progress:
    """An observer that shows where the run is; a terminal or pipe that goes away never stops the run.

    Args:
        schedule: the timeline to draw.
        stream: where to write; standard error when left out.
        quiet: whether to print only what did not go as planned.
        costs: cost of each phase in any unit, such as FLOPs; the time that is left is estimated in proportion. None: all steps cost the
            same.
        compiles: whether the first step of a phase may compile; a line then announces it.
    """

    def __init__(
        self,
        schedule: PhaseSchedule,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        costs: Sequence[float] | None = None,
        compiles: bool = False,
    ) -> None:
        self._quiet, self._compiles = quiet, compiles
        self.plan(schedule, costs)
        stream = stream if stream is not None else sys.stderr
        self._stream: TextIO | None = getattr(stream, "unescaped", stream)  # its lines are escaped here, its own sequences are not
        self._live = not quiet and self._stream is not None and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._live and "NO_COLOR" not in os.environ
        encoding = (getattr(self._stream, "encoding", None) or "ascii").lower()
        self._full, self._empty, self._edge = ("━", "─", "┃") if "utf" in encoding else ("=", "-", "|")
        self._last_draw = self._start = 0.0
        self._speed = 0.0
        self._start_step = 0
        self._window: tuple[float, int] = (0.0, 0)
        self._seconds = 0.0
        """Of training, without evaluation."""
        self._entering = False
        """Whether the next step is the first of its phase: it compiles, and touches all memory for the first time."""
        self._first = 0.0
        """Seconds of the last such step."""
        self._firsts: list[float] = []
        """Seconds of all of them since the clock was started."""

    def plan(self, schedule: PhaseSchedule, costs: Sequence[float] | None) -> None:
        """Draw another timeline from now on."""
        self._schedule = schedule
        self._edges, self._done_at_edges = _cumulated(schedule, costs)

    def __call__(self, event: Event) -> None:
        """Show an event; steps are shown only every so often."""
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, RunStarted):
            self._begin(event)
            for bridge in event.bridges:
                self.tell(f"      bridged {bridge}")
            for note in event.notes:
                self.say(f"      {note}")
        elif isinstance(event, PhaseEntered):
            self.tell(self._entry_text(event))
            for note in event.notes:
                self.say(f"      {note}")
            self._entering = True
            if self._compiles:
                self.tell("      compiles what comes: the first step of each shape takes longer, less where torch kept the result")
        elif isinstance(event, Evaluated):
            metrics = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in event.metrics.items())
            self.tell(f"      {event.phase} {event.step}/{self._schedule.steps}  {event.name} ({event.at})  {metrics}")
        elif isinstance(event, Reacted):
            self.say(f"      step {event.step}: learning rates × {event.factor:g} (were × {event.factor_before:g}): {event.why}")
        elif isinstance(event, Stopped):
            self.say(f"      stops at step {event.step}: {event.why}")
        elif isinstance(event, Stalled):
            self.tell(f"      {event.phase} ends at step {event.step}: {event.why}")
        elif isinstance(event, ConfigChanged):
            self.say(f"      from step {event.step} on  {event.key}: {event.before} → {event.after}")
        elif isinstance(event, CheckpointRefused):
            self.say(f"      step {event.step}: no checkpoint, because {event.why}")
        elif isinstance(event, Rewound):
            self.say(f"      back from step {event.halted_at} to {event.step}, passing over the data in between: {event.why}")
        elif isinstance(event, RunFinished):
            self._clear()

    def _begin(self, event: RunStarted) -> None:
        """Begin to count speed and remaining time here: earlier steps ran in another process, or before a rewind."""
        left = f"{event.steps - event.step:,} of {event.steps:,}" if event.step else f"{event.steps:,}"
        self.tell(f"run   {left} steps on {event.device}, {event.precision}")
        self._start_step, self._start, self._firsts = event.step, 0.0, []
        self._window = (self._seconds, self._schedule.clock.tokens(event.step))

    def _step(self, event: StepDone) -> None:
        now = monotonic()
        if self._start == 0.0:
            self._start = self._last_draw = now
        elif self._entering:
            self._firsts.append(event.seconds)
        if self._entering:
            self._first, self._entering = event.seconds, False
        self._seconds += event.seconds
        if event.skipped:
            values = f"loss {event.loss}, gradient {event.grad_norm}"
            self.say(f"      step {event.step} is skipped, as {event.why or 'something is not finite'} ({values}); nothing was changed")
        if event.step - self._start_step == ESTIMATED_AFTER and (left := self._left(event.step + 1, now)) >= WORTH_SAYING_S:
            self.tell(
                f"time  about {clock(left)} for the {self._schedule.steps - event.step - 1:,} steps left, by the first {ESTIMATED_AFTER}"
            )
        if self._quiet or now - self._last_draw < (REDRAW_EVERY_S if self._live else LINE_EVERY_S):
            return
        self._last_draw = now
        since, tokens = self._window
        if self._seconds - since > 1.0:
            self._speed = (event.tokens - tokens) / (self._seconds - since)
            self._window = (self._seconds, event.tokens)
        parts = self._parts(event, now)
        if self._live:
            self._write("\r\x1b[2K" + self._live_line(event.step + 1, [printable(part) for part in parts]))
        else:
            self.tell("  ".join(parts))

    def evaluating(self, name: str, done: int, batches: int) -> None:
        """Show how far an evaluation is, every so often."""
        now = monotonic()
        if done == 0:
            self._last_draw = now
        if self._quiet or not done or now - self._last_draw < (REDRAW_EVERY_S if self._live else LINE_EVERY_S):
            return
        self._last_draw = now
        text = f"      evaluates {name}: {done:,} of {batches:,} batches"
        if self._live:
            self._write("\r\x1b[2K" + printable(text)[: self._columns() - 1])
        else:
            self.tell(text)

    def _live_line(self, done: int, parts: list[str]) -> str:
        """Bar and text within the terminal's width, because a wrapped line could not be erased; in a narrow terminal the text alone.

        Parts that do not fit are left out: first the speed, then the learning rate, then the loss.
        """
        room, edges = self._columns() - 1, len(self._schedule.phases) - 1
        taken = 0 if room < max(60, 2 * (10 + edges + 1)) else 10 + edges + 1
        while len("  ".join(parts)) > room - taken and len(parts) > 2:
            parts = [*parts[:-2], parts[-1]]
        text = "  ".join(parts)
        if not taken:
            return text[:room]
        width = max(10, min(40, room - len(text) - 1 - edges))
        return f"{self._bar(done, width)} {text[: max(0, room - width - edges - 1)]}"

    def _parts(self, event: StepDone, now: float) -> list[str]:
        done = event.step + 1
        place = f"{event.phase} {done}/{self._schedule.steps}"
        speed = [f"{self._speed:,.0f} tokens/s"] if self._speed else []
        return [place, f"loss {event.loss:.4f}", f"lr {event.lr:.2e}", *speed, f"{clock(self._left(done, now))} left"]

    def _left(self, done: int, now: float) -> float:
        """Estimated seconds to the end, by the speed so far; the first step of each coming phase counts as long as the last such step."""
        first, here, last = (
            float(np.interp(step, self._edges, self._done_at_edges)) for step in (self._start_step + 1, done, self._schedule.steps)
        )
        if here <= first:
            return 0.0
        spent = now - self._start - sum(self._firsts)
        entries = sum(phase.start >= done for phase in self._schedule)
        return spent / (here - first) * (last - here) + max(self._first - spent / (done - self._start_step - 1), 0.0) * entries

    def _bar(self, done: int, width: int) -> str:
        """The phases as segments, each as wide as its share of the steps."""
        total, cells = self._schedule.steps, []
        for phase in self._schedule:
            first, last = phase.start * width // total, phase.stop * width // total
            filled = min(max(done * width // total - first, 0), last - first)
            segment = self._full * filled + self._empty * (last - first - filled)
            colour = _COLOURS[phase.index % len(_COLOURS)]
            cells.append(f"\x1b[{colour}m{segment}\x1b[0m" if self._colour else segment)
        return self._edge.join(cells)

    def _entry_text(self, event: PhaseEntered) -> str:
        text = f"enter {event.phase} at step {event.step}: {event.parameters:,} parameters, {event.trainable:,} trained"
        if event.phase_index == 0:
            return text
        carried = f"adopted {event.adopted}, copied {event.copied}, fresh {event.fresh}, dropped {event.dropped}"
        moments = f"moments kept {event.moments_kept}, copied {event.moments_copied}, dropped {event.moments_dropped}"
        probe = ""
        if event.probe_loss_before is not None:
            probe = f"; probe loss {event.probe_loss_before:.4f} → {event.probe_loss_after:.4f}"
            probe += "" if event.probe_change is None else f", largest change of an output {event.probe_change:.2g}"
        return f"{text}; {carried}; {moments}{probe}; {event.seconds:.2f} s"

    def tell(self, text: str) -> None:
        """Print a line about something that goes as planned; left out when quiet."""
        if not self._quiet:
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one, wrapped to the width of a terminal."""
        self._clear()
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        text = wrap(printable(text), self._columns() if self._live else None)
        self._write(text.encode(encoding, "replace").decode(encoding) + "\n")

    def _clear(self) -> None:
        if self._live:
            self._write("\r\x1b[2K")

    def _columns(self) -> int:
        """Width of the terminal; 80 where it says none, or is gone, which the next write notices."""
        try:
            return (os.get_terminal_size(self._stream.fileno()).columns or 80) if self._stream is not None else 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        """Write to the stream until it fails because its reader has left, its disk is full, or its terminal is gone."""
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: it was closed
            self._stream, self._live = None, False


def _cumulated(schedule: PhaseSchedule, costs: Sequence[float] | None) -> tuple[list[float], list[float]]:
    """Steps at the edges of the phases, and what had been spent by then."""
    edges, spent = [0.0], [0.0]
    for i, phase in enumerate(schedule):
        edges.append(float(phase.stop))
        spent.append(spent[-1] + (phase.stop - phase.start if costs is None else costs[i]))
    return edges, spent
