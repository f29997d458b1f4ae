"""The summary of a run for people, from its events alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import define, field

from stackwise.contracts.events import Evaluated, Event, PhaseEntered, RunFinished, StepDone, Stopped
from stackwise.reports.terminal import table, wrap


@define
class PhaseLine:
    """What happened in one phase."""

    name: str
    entered: PhaseEntered | None
    """None where the log does not say."""
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    lr_first: float = 0.0
    lr_last: float = 0.0
    entry: dict[str, Mapping[str, float]] = field(factory=dict)
    """Evaluation name → metrics at entry."""
    exit: dict[str, Mapping[str, float]] = field(factory=dict)


@define
class Summary:
    """Collects events: call it with each one and read it at the end."""

    phases: list[PhaseLine] = field(factory=list)
    finished: RunFinished | None = None
    stopped: Stopped | None = None
    """The event of a run that ended by `run.stop` and was not continued since."""
    peaks: Mapping[str, int] = field(factory=dict)
    """Phase → its peak memory in bytes."""
    _tokens: int = 0

    @classmethod
    def of(cls, events: Iterable[Event]) -> Summary:
        """The summary of past events."""
        summary = cls()
        for event in events:
            summary(event)
        return summary

    def __call__(self, event: Event) -> None:
        """Add an event."""
        if isinstance(event, PhaseEntered):
            self._line(event.phase).entered = event
        elif isinstance(event, Stopped):
            self.stopped = event
        elif isinstance(event, StepDone):
            self.stopped = None
            line = self._line(event.phase)
            line.lr_first = event.lr if line.steps == 0 else line.lr_first
            line.lr_last = event.lr
            line.steps += 1
            line.seconds += event.seconds
            line.tokens += event.tokens - self._tokens
            self._tokens = event.tokens
        elif isinstance(event, Evaluated) and event.at in ("entry", "exit"):
            line = self._line(event.phase)
            (line.entry if event.at == "entry" else line.exit)[event.name] = event.metrics
        elif isinstance(event, RunFinished):
            self.finished = event

    def _line(self, phase: str) -> PhaseLine:
        """The line of a phase; a new one where the phase is not that of the last line."""
        if not self.phases or self.phases[-1].name != phase:
            self.phases.append(PhaseLine(phase, None))
        return self.phases[-1]

    def text(self, columns: int | None = None) -> str:
        """A table of the phases, then totals.

        Args:
            columns: width of the terminal; None: lines are not wrapped.
        """
        metrics, counts = self._metric(), any(line.tokens for line in self.phases)
        header = [
            "phase",
            "steps",
            *(["tokens"] if counts else []),
            "parameters",
            "lr first → last",
            *(f"{n} {m.replace('_', ' ')}: entry → exit" for n, m in metrics),
            "seconds",
            *(["peak memory"] if self.peaks else []),
        ]
        rows = [header]
        for line in self.phases:
            scores = [f"{_score(line.entry, n, m)} → {_score(line.exit, n, m)}" for n, m in metrics]
            lr = f"{line.lr_first:.2g} → {line.lr_last:.2g}"
            parameters = "–" if line.entered is None else f"{line.entered.parameters:,}"
            tokens = [f"{line.tokens:,}"] if counts else []
            rows.append([line.name, f"{line.steps:,}", *tokens, parameters, lr, *scores, f"{line.seconds:.1f}"])
            if self.peaks:
                rows[-1].append("–" if line.name not in self.peaks else f"{self.peaks[line.name] / 1e6:,.0f} MB")
        lines = table(rows, columns)
        if self.finished is not None:
            done = self.finished
            sources = ", ".join(f"{name} {count.get('rows', 0):,} rows" for name, count in done.ledger.items())
            skipped = f", {done.skipped} not finite and skipped" if done.skipped else ""
            skipped += f", {done.without_targets} skipped for want of a target" if done.without_targets else ""
            read = f", {done.tokens:,} tokens" if done.tokens else ""
            lines.append(f"{done.steps:,} steps{read} in {done.seconds:.1f} s of training{skipped}; delivered: {sources}")
            if self.stopped is not None:
                lines.append(f"stopped at step {self.stopped.step:,}: {self.stopped.why}")
        return wrap("\n".join(lines), columns)

    def _metric(self) -> list[tuple[str, str]]:
        """For each evaluation the metric to show: the first one that the task reports besides the loss, or else the loss."""
        names: dict[str, str] = {}
        for line in self.phases:
            for name, metrics in {**line.entry, **line.exit}.items():
                names[name] = next((metric for metric in metrics if metric != "loss"), "loss")
        return list(names.items())


def _score(metrics: Mapping[str, Mapping[str, float]], name: str, metric: str) -> str:
    value = metrics.get(name, {}).get(metric)
    return "–" if value is None else f"{value:.3f}"
