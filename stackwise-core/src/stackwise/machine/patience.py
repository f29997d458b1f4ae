"""The count by which a run or a phase ends because a metric no longer gets better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define

from stackwise.machine.settings import StopRule


@define
class Patience:
    """Counts evaluations without a better figure: a pure function of the figures it was shown, saved with the machine's state.

    Args:
        rule: None never ends anything.
        key: of its entry in the saved state.
    """

    rule: StopRule | None = None
    key: str = "patience"
    _best: float | None = None
    _best_step: int = 0
    _without: int = 0
    _seen: int = -1
    """Step of the newest figure; an evaluation that a resumed run repeats is not counted twice."""

    def enter_phase(self) -> None:
        """Count anew: a boundary may make the metric worse, and what follows deserves its time. The best figure stays."""
        self._without = 0

    def watch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in `<evaluation>.<metric>` → figure; a nan is never better."""
        if self.rule is None or self.rule.metric not in metrics or step <= self._seen:
            return
        figure, self._seen = metrics[self.rule.metric], step
        gain = float("inf") if self._best is None else (figure - self._best) * (1 if self.rule.more else -1)
        if figure == figure and gain > self.rule.least:
            self._best, self._best_step, self._without = figure, step, 0
        else:
            self._without += 1

    @property
    def why(self) -> str | None:
        """Why training ends, as a sentence; None while it goes on."""
        if self.rule is None or self._without < self.rule.patience:
            return None
        by = f" by more than {self.rule.least:g}" if self.rule.least else ""
        best = "no figure yet" if self._best is None else f"{self._best:.6g} at step {self._best_step:,}"
        return f"{self.rule.metric} has not been better{by} than {best} for {self._without} evaluations"

    def state(self) -> dict[str, Any]:
        """What `load` reads; nothing where there is no rule."""
        if self.rule is None:
            return {}
        counts = {"metric": self.rule.metric, "best_step": self._best_step, "without": self._without, "seen": self._seen}
        return {self.key: {**counts, "best": self._best}}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on counting; a state that has no count, or one of another metric, is begun anew."""
        counts = saved.get(self.key)
        if self.rule is not None and counts is not None and counts["metric"] == self.rule.metric:
            self._best, self._best_step = counts["best"], counts["best_step"]
            self._without, self._seen = counts["without"], counts["seen"]
