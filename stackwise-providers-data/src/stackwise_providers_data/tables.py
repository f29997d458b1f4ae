"""Rows of numbers and categories: how they are encoded, which the training rows teach, and the encoded rows.

Number x becomes (x - mean) / deviation, of the rows that training sees (0 where they are all equal). Ids of categories stand in this order:
0, which every row has; one for what each column does not know; the values of the first column, of the second, ….
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import inf, isfinite, isnan
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from attrs import Factory, define, frozen

from stackwise import DataError, Tokenizer
from stackwise_providers_data.records import Record, RecordDocuments, RecordFields
from stackwise_providers_data.splits import Part, split_hash

ENCODING = "table.json"
"""The file in which a run keeps what becomes of the columns of a table."""

_CHUNK_ROWS = 4096
_LARGEST_STD = 1e30

Columns = dict[str, npt.NDArray[Any]]
"""Field → rows."""


@frozen
class Scale:
    """What is taken out of a column of numbers."""

    mean: float
    std: float

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(values - mean) / std, 0 of a column whose training rows are all equal."""
        return (values - self.mean) / self.std if self.std else np.zeros_like(values)


@frozen(kw_only=True)
class TableEncoding:
    """What becomes of the columns."""

    rows: int
    """Rows that it was learnt from."""
    numbers: Mapping[str, Scale]
    """Columns of numbers and of targets."""
    categories: Mapping[str, Sequence[str]]
    """Column → its values, in the order of their ids."""

    def as_tokenizer(self) -> Tokenizer:
        """As the run keeps it."""
        content = {
            "rows": self.rows,
            "numbers": {name: {"mean": scale.mean, "std": scale.std} for name, scale in self.numbers.items()},
            "categories": {name: list(values) for name, values in self.categories.items()},
        }
        file = (json.dumps(content, indent=1) + "\n").encode()
        return Tokenizer(vocabulary=_named(file), files={ENCODING: file})


def _named(file: bytes) -> str:
    return f"table-{hashlib.sha256(file).hexdigest()[:16]}"


def encoding_in(tokenizer: Tokenizer) -> TableEncoding:
    """The encoding that a run keeps.

    Raises:
        DataError: the files are not an encoding, or not the one that its name says.
    """
    try:
        if (named := _named(tokenizer.files[ENCODING])) != tokenizer.vocabulary:
            raise ValueError(f"it is {named}")
        content = json.loads(tokenizer.files[ENCODING])
        return TableEncoding(
            rows=content["rows"],
            numbers={name: Scale(float(scale["mean"]), float(scale["std"])) for name, scale in content["numbers"].items()},
            categories={name: tuple(map(str, values)) for name, values in content["categories"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise DataError(f"{tokenizer.vocabulary}: its {ENCODING} is not an encoding of a table: {fault!r}: put the file back") from fault


class TableFields(RecordFields, Protocol):
    """What options say of the columns of a table."""

    @property
    def numbers(self) -> tuple[str, ...] | None: ...
    @property
    def rooms(self) -> Mapping[str, int | tuple[str, ...]]: ...
    @property
    def target(self) -> tuple[str, ...] | None: ...
    @property
    def table_columns(self) -> tuple[str, ...]: ...
    @property
    def missing(self) -> str | None: ...
    @property
    def unknown(self) -> str | None: ...


@define
class Found:
    """What was found in the rows that a model sees in another form than it is written."""

    missing: Counter[str] = Factory(Counter)
    """Column → cells that were filled."""
    unknown: Counter[str] = Factory(Counter)
    """Column → cells that hold none of the values."""
    example: dict[str, str] = Factory(dict)
    """Column → the first of those."""

    def lines(self) -> Iterator[str]:
        """The sentences for the user."""
        for column, count in self.missing.items():
            yield f"{count} cells of '{column}' hold no value and are filled"
        for column, count in self.unknown.items():
            yield f"{count} cells of '{column}' hold none of its values ({self.example[column]} first) and take the vector of the unknown"


class TableDocuments(RecordDocuments):
    """Rows, and what is read of them as numbers and categories."""

    options: TableFields

    def _hash(self, place: str, record: Mapping[str, Any]) -> int:
        return split_hash(json.dumps([record[column] for column in self.options.table_columns], default=str))

    def number(self, place: str, record: Mapping[str, Any], column: str) -> float | None:
        """The number in a column, None where there is none.

        Raises:
            DataError: something else, or an infinite one.
        """
        value = record[column]
        if value is None or (type(value) is float and isfinite(value)):
            return value  # most cells
        try:
            number = None if isinstance(value, str | bytes | list | dict) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or (not isfinite(number) and not isnan(number)):
            raise DataError(f"{place}: '{column}' holds {value!r:.40} where a finite number is wanted: mend or remove it")
        return None if isnan(number) else number

    def category(self, place: str, record: Mapping[str, Any], column: str) -> str | None:
        """The category in a column as text, None where there is none.

        Raises:
            DataError: something that is neither text nor a whole number nor a truth value.
        """
        value = record[column]
        if value is not None and not isinstance(value, str | int):
            raise DataError(
                f"{place}: '{column}' holds {value!r:.40} where text or a whole number is wanted as a category: mend or remove it"
            )
        return None if value is None else str(value)

    def missing(self, place: str, column: str) -> DataError:
        """The error of a cell without a value."""
        fills = column in self.options.rooms or column in (self.options.numbers or ())
        way = "mend or remove the row" + (", or write missing: fill" if fills else "")
        return DataError(f"{place}: '{column}' holds no value: {way}")

    def encoded(self, part: Part, encoding: TableEncoding, found: Found) -> Iterator[Columns]:
        """The rows of a part, some thousand at a time.

        Raises:
            DataError: a row that does not hold what is asked, or no rows.
        """
        rows = self.chosen(part)
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            yield self._chunk(chunk, encoding, found)

    def inputs(self, rows: Sequence[Record], encoding: TableEncoding, found: Found) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """What is read of rows: numbers, and ids of categories."""
        features = np.stack([self._scaled(rows, name, encoding, found) for name in self.options.numbers or ()], axis=1)
        return features, self._ids(rows, encoding, found)

    def _chunk(self, rows: Sequence[Record], encoding: TableEncoding, found: Found) -> Columns:
        options = self.options
        features, categories = self.inputs(rows, encoding, found)
        columns: Columns = {"features": features, "categories": categories}
        if options.target is not None:
            columns["target"] = np.stack([self._scaled(rows, name, encoding, None) for name in options.target], axis=1)
        else:
            columns["label"] = np.array([self._label(place, record) for place, record in rows], dtype=np.int64)
        return columns

    def _scaled(self, rows: Sequence[Record], column: str, encoding: TableEncoding, found: Found | None) -> npt.NDArray[np.float32]:
        scale = encoding.numbers[column]
        values = np.empty(len(rows), dtype=np.float64)
        for i, (place, record) in enumerate(rows):
            number = self.number(place, record, column)
            if number is None:
                if found is None or self.options.missing != "fill":
                    raise self.missing(place, column)
                found.missing[column] += 1
                number = scale.mean
            values[i] = number
        return scale(values).astype(np.float32)

    def _ids(self, rows: Sequence[Record], encoding: TableEncoding, found: Found) -> npt.NDArray[np.int64]:
        ids = np.zeros((len(rows), 1 + len(self.options.rooms)), dtype=np.int64)
        first = ids.shape[1]
        for j, (column, room) in enumerate(self.options.rooms.items(), 1):
            known = {value: first + i for i, value in enumerate(encoding.categories[column])}
            first += len(room) if isinstance(room, tuple) else room
            ids[:, j] = [known.get(value, j) for value in self._values(rows, column, known, found)]
        return ids

    def _values(self, rows: Sequence[Record], column: str, known: Mapping[str, int], found: Found) -> Iterator[str]:
        for place, record in rows:
            value = self.category(place, record, column)
            if value is None:
                if self.options.missing != "fill":
                    raise self.missing(place, column)
                found.missing[column] += 1
            elif value not in known:
                if self.options.unknown == "refuse":
                    raise DataError(
                        f"{place}: '{column}' holds {value!r:.40}, which is none of its {len(known)} values: mend it, give "
                        f"categories.{column} more, or write unknown: vector"
                    )
                found.unknown[column] += 1
                found.example.setdefault(column, f"{value!r:.40} at {place}")
            yield "" if value is None else value


def learn_encoding(options: TableFields, tables: Sequence[TableDocuments]) -> TableEncoding:
    """Means and deviations (of the population), and the values of categories, from the rows of tables that training sees.

    Raises:
        DataError: rows that do not hold what is asked, or no rows.
    """
    numbers = (*(options.numbers or ()), *(options.target or ()))
    moments, counts = {name: _Moments() for name in numbers}, {name: Counter[str]() for name in options.rooms}
    rows = 0
    for table in tables:
        records = table.chosen("training")
        while chunk := list(islice(records, _CHUNK_ROWS)):
            rows += len(chunk)
            for name in numbers:
                moments[name].add([number for place, record in chunk if (number := table.number(place, record, name)) is not None])
            for name, count in counts.items():
                count.update(value for place, record in chunk if (value := table.category(place, record, name)) is not None)
    for name, moment in moments.items():
        if not moment.count:
            raise DataError(f"{tables[0].name}: column '{name}' holds no number in the {rows} rows of training: leave it out")
        if not moment.std < _LARGEST_STD:
            raise DataError(f"{tables[0].name}: the numbers of column '{name}' are too large for float32: scale them down")
    for name in options.target or ():
        if not moments[name].std:
            raise DataError(f"{tables[0].name}: target '{name}' is the same in all {rows} rows of training: there is nothing to predict")
    values = {}
    for name, room in options.rooms.items():
        frequent = [value for value, _ in sorted(counts[name].items(), key=lambda each: (-each[1], each[0]))]
        values[name] = room if isinstance(room, tuple) else tuple(frequent[:room])
    return TableEncoding(rows=rows, numbers={name: Scale(moment.mean, moment.std) for name, moment in moments.items()}, categories=values)


@define
class _Moments:
    """Mean and sum of squared deviations, joined chunk by chunk (Chan, Golub, LeVeque 1979, equation 2.1)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = inf
    high: float = -inf

    def add(self, numbers: Sequence[float]) -> None:
        if not numbers:
            return
        values = np.array(numbers, dtype=np.float64)
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        count, mean = len(values), float(values.mean())
        with np.errstate(over="ignore"):
            squares, apart, total = float(((values - mean) ** 2).sum()), mean - self.mean, self.count + count
        self.squares += squares + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Of the population."""
        if self.low == self.high:
            return 0.0  # what rounding leaves of the squares is not a deviation
        return float((self.squares / self.count) ** 0.5)


def read_unlabelled(options: Any, file: str, rows: int, tokenizer: Tokenizer) -> Iterator[dict[str, torch.Tensor]]:
    """Rows of a file, encoded as the run's own; columns of targets and labels need not be there."""
    encoding, wanted = encoding_in(tokenizer), (*(options.numbers or ()), *options.rooms)
    table = TableDocuments(options.records_of(file, wanted), options)
    records, found = iter(table.records), Found()
    while chunk := list(islice(records, rows)):
        features, categories = table.inputs(chunk, encoding, found)
        yield {"features": torch.from_numpy(features), "categories": torch.from_numpy(categories)}
    for line in found.lines():
        warnings.warn(f"{file}: {line}", stacklevel=2)


def tell_rows(options: Any, predictions: Mapping[str, torch.Tensor], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Predictions as plain values, a map a row."""
    encoding = encoding_in(tokenizer)
    shown: list[dict[str, Any]] = [{} for _ in next(iter(predictions.values()))]
    names = options.target if options.target is not None else options.classes
    for name, tensor in predictions.items():
        for row, value in zip(shown, tensor.tolist(), strict=True):
            if name == "prediction" and options.target is not None:
                scales = [encoding.numbers[column] for column in options.target]
                row |= {column: v * s.std + s.mean for column, s, v in zip(options.target, scales, value, strict=True)}
            elif name == "label" and options.classes is not None:
                row[options.label or name] = options.classes[value]
            elif isinstance(value, list) and names is not None and len(value) == len(names):
                row[name] = dict(zip(names, value, strict=True))
            else:
                row[options.label if name == "label" and options.label else name] = value
    return shown
