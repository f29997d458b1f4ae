"""`core.tensorboard`: scalars, config and plan as TensorBoard reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import finalize

import yaml

from stackwise.builtin.provider import TrackerOptions
from stackwise.builtin.tracking import Tracker, library
from stackwise.contracts.components import BuildContext
from stackwise.contracts.events import RunFacts


class TensorBoard:
    """Event files of `torch.utils.tensorboard`; a run that goes on purges what an earlier process wrote of the steps to come.

    Args:
        folder: where to; `tensorboard` in the run directory when empty.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._summaries = library("torch.utils.tensorboard", "tensorboard")
        self._record = library("tensorboard.compat.proto.summary_pb2", "tensorboard").Summary
        self._writer: Any = None

    def open(self, facts: RunFacts, step: int, identity: str | None) -> None:
        self.close("")
        place = Path(self._folder) / facts.name if self._folder else Path(facts.directory) / "tensorboard"
        self._writer = self._summaries.SummaryWriter(str(place.absolute()), purge_step=step or None)
        self._ending = finalize(self, self._writer.close)  # its thread writes what it holds also where nobody finishes the run
        if step == 0 and facts.config:
            self._writer.add_text("config", f"```yaml\n{yaml.safe_dump(facts.config, sort_keys=False)}```", 0)
            self._writer.add_text("plan", f"```json\n{json.dumps(facts.plan, indent=1)}\n```", 0)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One record for all of them: `add_scalar` writes one each, at five times the price."""
        values = [self._record.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._writer.file_writer.add_summary(self._record(value=values), step)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self, status: str) -> None:
        if self._writer is not None:
            self._ending()
            self._writer = None


def build(options: TrackerOptions, context: BuildContext) -> Tracker:
    """The factory of `core.tensorboard`."""
    return Tracker(TensorBoard(options.directory), options.every)
