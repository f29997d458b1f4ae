"""`core.wandb`: scalars, config and files as Weights & Biases keeps them, online or offline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from stackwise.builtin.provider import WandbOptions
from stackwise.builtin.tracking import Tracker, library
from stackwise.contracts.components import BuildContext
from stackwise.contracts.events import RunFacts


class Wandb:
    """One run of wandb for one run directory; its files lie there, in `wandb`.

    Steps are an axis of our own, `step`: wandb's counter refuses to go back, as a rewind does.
    """

    def __init__(self, options: WandbOptions) -> None:
        self._options = options
        self._library = library("wandb", "wandb")
        self._run: Any = None

    def open(self, facts: RunFacts, step: int, identity: str | None) -> str:
        if self._run is not None:
            return str(self._run.id)
        o, mode = self._options, self._options.mode or None
        identity = identity or uuid4().hex[:12]
        settings = self._library.Settings(console="off", silent=True)
        self._library.setup(settings=settings)
        where = {"dir": facts.directory or None, "project": o.project, "entity": o.entity or None, "mode": mode, "name": facts.name}
        offline = (mode or os.environ.get("WANDB_MODE")) == "offline"
        resume = {} if offline else {"resume": "allow"}  # offline wandb says that it ignores it; `wandb sync` joins what has one id
        config = {**facts.config, "plan": facts.plan}
        self._run = self._library.init(id=identity, config=config, settings=settings, **where, **resume)
        self._run.define_metric("*", step_metric="step")
        return identity

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def flush(self) -> None:
        """Nothing to do: wandb writes in a process of its own, which outlives this one."""

    def attach(self, place: Path, kind: str) -> None:
        name = f"{self._run.id}-{kind}"
        artifact = self._library.Artifact(name, type=kind)
        if place.is_dir():
            artifact.add_dir(str(place))
        else:
            artifact.add_file(str(place))
        self._run.log_artifact(artifact, aliases=["latest", place.name] if kind == "checkpoint" else None)

    def close(self, status: str) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(status.startswith("failed")))
            self._run = None


def build(options: WandbOptions, context: BuildContext) -> Tracker:
    """The factory of `core.wandb`."""
    return Tracker(Wandb(options), options.every, f"wandb {options.entity}/{options.project}", options.artifacts)
