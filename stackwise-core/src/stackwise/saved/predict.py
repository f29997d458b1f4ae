"""Predictions for new rows by the model of a run or of an export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stackwise.contracts.answers import calling, expect, expect_rows
from stackwise.contracts.prediction import Predicts, ReadsRows
from stackwise.errors import DataError, UserError, did_you_mean
from stackwise.host.registry import Registry, blaming
from stackwise.saved.task_model import TextModel, open_model

ARRAYS = ".safetensors"


def predict(run: Path | str, file: Path | str, *, source: str | None = None, rows: int = 256) -> Iterator[Mapping[str, Any]]:
    """Predict the rows of a file with the model of a run: a map of plain values for each row, in the order of the file.

    Args:
        run: a run directory or an export; it is only read.
        file: of the kind that the run's loader reads, with the same columns but for those of targets; or a safetensors file with a tensor
            [rows, …] for each field that the task reads.
        source: whose loader reads the file; the first that can when left out.
        rows: of a forward pass.

    Raises:
        UserError: a task that predicts nothing for new rows, or a loader that reads no other file.
        DataError: rows that do not hold what is asked.
        ProviderError: a component that does not keep to its contract.
    """
    model = open_model(Path(run), _predicting)
    file = Path(file)
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    if file.suffix == ARRAYS:
        with blaming(model.providers):
            for fields in _arrays(file, rows):
                yield from _plain(_predicted(model, fields))
        return
    id, loader = _loader(model, source, file)
    with blaming(model.providers):
        with calling(id, "rows_of"):
            made = loader.rows_of(str(file), rows)
            expect(isinstance(made, Iterable), made, "an iterator of batches")
            batches = iter(made)
        while (batch := _next(id, batches)) is not None:
            predictions, count = _predicted(model, batch), len(next(iter(batch.values())))
            with calling(id, "tell"):
                values = loader.tell(predictions)
                plain = isinstance(values, Sequence) and all(isinstance(row, Mapping) for row in values)
                expect(plain and len(values) == count, values, f"a map for each of {count} rows")
            yield from values


def _next(id: str, batches: Iterator[Any]) -> Mapping[str, torch.Tensor] | None:
    """The next rows that a loader reads; None after the last."""
    with calling(id, "rows_of"):
        batch = next(batches, None)
        if batch is None:
            return None
        expect(isinstance(batch, Mapping) and bool(batch), batch, "a batch, a map from field to tensor")
        return expect_rows(batch, len(next(iter(batch.values()))))


def _predicting(task: object, id: str, registry: Registry) -> Any:
    if not isinstance(task, Predicts):
        registered = registry.get("task", id)
        raise UserError(
            f"task '{id}' ({registered.distribution} {registered.version}) predicts nothing for new rows: a run that is to ends with "
            "a task that does, as classification or regression; `stackwise generate` continues prompts"
        )
    return task


def _predicted(model: TextModel, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    task: Any = model.task
    with calling(model.task_id, "predict"), torch.no_grad():
        return expect_rows(task.predict(model.model, batch), len(next(iter(batch.values()))))


def _loader(model: TextModel, source: str | None, file: Path) -> tuple[str, ReadsRows]:
    """Id and options of the loader that reads the file."""
    options = model.options()
    if source is not None and source not in options:
        raise UserError(f"the run has no source '{source}'{did_you_mean(source, options)}")
    chosen = options if source is None else {source: options[source]}
    reader = next(((model.sources.get(name, name), each) for name, each in chosen.items() if isinstance(each, ReadsRows)), None)
    if reader is None:
        named = ", ".join(f"'{name}' ({model.sources.get(name, '?')})" for name in chosen) or "none is known here"
        raise UserError(
            f"no loader of the run reads rows from {file.name} ({named}): give a {ARRAYS} file with a tensor [rows, …] for each field that "
            "the task reads"
        )
    return reader


def _arrays(file: Path, rows: int) -> Iterator[dict[str, torch.Tensor]]:
    try:
        fields = load_file(file, backend="pread")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} is not a readable safetensors file: {error}") from None
    counts = {name: len(tensor) if tensor.dim() else 0 for name, tensor in fields.items()}
    if not counts or len(set(counts.values())) != 1 or not next(iter(counts.values())):
        raise DataError(f"{file}: every field has a row of its own for each row, and these have {counts}: mend the file")
    for first in range(0, next(iter(counts.values())), rows):
        yield {name: tensor[first : first + rows] for name, tensor in fields.items()}


def _plain(predictions: Mapping[str, torch.Tensor]) -> Sequence[Mapping[str, Any]]:
    values = {name: tensor.tolist() for name, tensor in predictions.items()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
