"""Losses as CSV."""

from __future__ import annotations

from pathlib import Path

from stackwise import BuildContext, StepDone
from waves_for_stackwise.options import CsvOptions


class Csv:
    """One line a step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text("step,loss\n", encoding="utf-8")

    def __call__(self, event: object) -> None:
        """Write the loss of a step; every other event is passed over."""
        if isinstance(event, StepDone):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{event.step},{event.loss}\n")


def build_csv(options: CsvOptions, context: BuildContext) -> Csv:
    """The factory of observer `waves.csv`."""
    return Csv(Path(options.path))
