"""`core.mlflow`: scalars, parameters and files as MLflow keeps them, in a folder or on a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from time import time
from typing import Any

from stackwise.builtin.provider import MlflowOptions
from stackwise.builtin.tracking import Tracker, library
from stackwise.contracts.components import BuildContext
from stackwise.contracts.events import RunFacts

MOST_METRICS, MOST_PARAMETERS = 1000, 100
"""How many MLflow takes in one call."""
LONGEST_VALUE = 6000


class Mlflow:
    """One run of MLflow for one run directory. Scalars are sent by the thousand, and whenever a checkpoint or an evaluation comes."""

    def __init__(self, options: MlflowOptions) -> None:
        self._options = options
        library("mlflow", "mlflow")
        self._tracking = library("mlflow.tracking", "mlflow")
        self._entities = library("mlflow.entities", "mlflow")
        self._client: Any = None
        self._run = ""
        self._waiting: list[Any] = []

    def open(self, facts: RunFacts, step: int, identity: str | None) -> str:
        if self._client is not None:
            return self._run
        self._client = self._tracking.MlflowClient(tracking_uri=self._options.uri or None)
        if identity is not None:
            self._client.update_run(identity, status="RUNNING")
            self._run = identity
            return identity
        experiment = self._client.get_experiment_by_name(self._options.experiment)
        place = self._client.create_experiment(self._options.experiment) if experiment is None else experiment.experiment_id
        self._run = str(self._client.create_run(place, run_name=facts.name).info.run_id)
        flat = [self._entities.Param(key, text[:LONGEST_VALUE]) for key, text in flattened(facts.config)]
        for start in range(0, len(flat), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=flat[start : start + MOST_PARAMETERS])
        return self._run

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now = int(time() * 1000)
        self._waiting += [self._entities.Metric(name, float(value), now, step) for name, value in scalars.items()]
        if len(self._waiting) >= MOST_METRICS:
            self.flush()

    def flush(self) -> None:
        while self._waiting:
            batch = self._waiting[:MOST_METRICS]
            self._client.log_batch(self._run, metrics=batch)
            del self._waiting[: len(batch)]

    def attach(self, place: Path, kind: str) -> None:
        if place.is_dir():
            self._client.log_artifacts(self._run, str(place), f"{kind}/{place.name}" if kind == "checkpoint" else kind)
        else:
            self._client.log_artifact(self._run, str(place))

    def close(self, status: str) -> None:
        if self._client is not None:
            self.flush()
            ending = "FINISHED" if status == "finished" else "FAILED" if status.startswith("failed") else "KILLED"
            self._client.set_terminated(self._run, ending)
            self._client = None


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a config by its dotted path, as text."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)


def build(options: MlflowOptions, context: BuildContext) -> Tracker:
    """The factory of `core.mlflow`."""
    return Tracker(Mlflow(options), options.every, f"mlflow {options.uri} {options.experiment}", options.artifacts)
