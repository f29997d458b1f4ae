"""Loaders that reader processes can build, because they lie at the top of a module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import torch

from stackwise.contracts.specs import BatchSpec, EpochSize, TensorSpec
from stackwise.errors import DataError

STOPPED_AT = 24


class Rows:
    """Row i holds i; a second field has another dtype, a third is empty."""

    def __init__(self, start: int = 0) -> None:
        self.position = start
        self.offset = 0

    def get_batch_spec(self) -> BatchSpec:
        return BatchSpec(fields={"tokens": TensorSpec("batch time", "int64"), "flag": TensorSpec("batch", "bool")})

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        assert rows is not None and length is not None
        index = torch.arange(self.position, self.position + rows)
        self.position += rows
        tokens = index.unsqueeze(1).expand(rows, length) + self.offset
        return {"tokens": tokens, "flag": index % 2 == 0, "none": torch.empty(rows, 0, dtype=torch.bfloat16)}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["position"] < 0:
            raise DataError(f"position {state['position']} lies before the data")
        self.position = state["position"]


class Everything(Rows):
    """With all that a loader may offer beside."""

    def skip(self, rows: int | None, length: int | None) -> None:
        assert rows is not None
        self.position += rows

    def epoch_size(self) -> EpochSize:
        return EpochSize(rows=1000)

    def fingerprint(self) -> dict[str, Any]:
        return {"bytes": 7, "threads": torch.get_num_threads()}

    def apply_values(self, values: Mapping[str, float]) -> None:
        self.offset = int(values["offset"])


class Own(Exception):
    """An exception whose constructor takes something else than its message."""

    def __init__(self, row: int, reason: str) -> None:
        self.row = row
        super().__init__(f"row {row} {reason}")


class Failing(Rows):
    """Raises at the batch that begins at row STOPPED_AT, and goes on behind it."""

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        batch = super().take(rows, length)
        if int(batch["tokens"][0, 0]) == STOPPED_AT:
            self.fail()
        return batch

    def fail(self) -> None:
        raise Own(STOPPED_AT, "is broken")


class FailingPrivately(Failing):
    """Raises what no other process knows."""

    def fail(self) -> None:
        class Private(Exception):
            pass

        raise Private("nobody knows me")


class Killed(Failing):
    """The process is killed from outside, as when memory runs out."""

    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(Failing):
    """Waits for what never comes."""

    def fail(self) -> None:
        time.sleep(300)


class NoTensors(Rows):
    """Delivers a list."""

    def take(self, rows: int | None, length: int | None) -> Any:
        return [1, 2]


def cannot_build() -> Rows:
    """A factory that finds nothing to read."""
    raise DataError("the corpus is empty")


def exits() -> Rows:
    """A factory that ends its process."""
    os._exit(7)
