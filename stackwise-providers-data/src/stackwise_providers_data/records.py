"""Records, one mapping a line or row, and what they hold: documents of text, labels, lists of numbers.

A record is held out by a hash of the contents that are read from it, so that equal records always lie in the same part. Where the share
would leave a part without a record, as it does where there are few, the records with the lowest hashes are held out: the share of
them, at least one and not all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from attrs import frozen

from stackwise import DataError
from stackwise_providers_data.corpus import Corpus, open_corpus
from stackwise_providers_data.extras import require
from stackwise_providers_data.files import MAGIC_BYTES, refuse_compressed, unreadable
from stackwise_providers_data.remote_files import located_files
from stackwise_providers_data.splits import HASHES, Part, is_in, no_documents, split_hash
from stackwise_providers_data.tokenizer_options import TokenizerChoice

Record = tuple[str, Mapping[str, Any]]
"""Where a record comes from, for messages, and its fields."""


class Records(Protocol):
    """Where records come from."""

    @property
    def name(self) -> str:
        """What messages call them."""
        ...

    @property
    def noun(self) -> str:
        """What one is, in the plural."""
        ...

    def files(self) -> Sequence[Path]:
        """The files they are read from."""
        ...

    def __iter__(self) -> Iterator[Record]: ...


@frozen(eq=False)
class JsonLines:
    """Every line that is not blank, file after file in the order of their paths."""

    paths: tuple[str, ...]
    name: str = "jsonl"
    noun: str = "lines"

    def files(self) -> list[Path]:
        """The files that the globs find."""
        return located_files(self.paths)

    def __iter__(self) -> Iterator[Record]:
        """`file:line` and the object on it.

        Raises:
            DataError: a file that cannot be read, or a line that is not a JSON object.
        """
        for path in self.files():
            try:
                with path.open("rb") as file:
                    refuse_compressed(path, file.peek(MAGIC_BYTES)[:MAGIC_BYTES])
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield f"{path}:{number}", _record_of(f"{path}:{number}", line)
            except OSError as fault:
                raise unreadable(path, fault) from fault


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field '{next(name for name in record if names.count(name) > 1)}' stands in it twice")
    return record


def _record_of(place: str, line: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=_unambiguous)
    except UnicodeDecodeError as fault:
        raise DataError(f"{place}: this line is not UTF-8 at byte {fault.start}: save the file as UTF-8") from fault
    except (ValueError, RecursionError) as fault:
        cut = "" if line.endswith(b"\n") else " (the file ends in it: it may be cut off)"
        raise DataError(f"{place}: this line is not JSON{cut}: {fault}: mend or remove it") from fault
    if not isinstance(record, dict):
        raise DataError(f'{place}: this line holds a {type(record).__name__}: every line is an object of fields, like {{"text": "…"}}')
    return record


class DatasetRows:
    """The rows of a dataset on disk.

    Args:
        path: its folder.
        part: which one, where the folder holds several.
        wanted: the fields that are read.
        optional: fields that are read where the dataset has them.

    Raises:
        UserError: the datasets library is not installed.
        DataError: no such dataset, no such part of it, or a field that it has not.
    """

    name = "hf-dataset"
    noun = "rows"

    def __init__(self, path: str, part: str, wanted: Sequence[str], optional: Sequence[str] = ()) -> None:
        library = require("datasets", "datasets", "hf-dataset")
        self._path = Path(path)
        try:
            dataset = library.load_from_disk(str(self._path))
        except FileNotFoundError as fault:
            raise DataError(f"path: {path!r} holds no dataset: give the folder that save_to_disk wrote") from fault
        except Exception as fault:  # whatever the library and its readers raise on damaged files
            raise DataError(f"path: the dataset in {path!r} cannot be read: {fault}") from fault
        if isinstance(dataset, dict):
            if part not in dataset:
                raise DataError(f"part: {path!r} holds {', '.join(sorted(dataset))} and no '{part}': name one of them")
            dataset = dataset[part]
        if missing := [field for field in wanted if field not in dataset.column_names]:
            raise DataError(f"{path}: there is no field '{missing[0]}'; the dataset has {', '.join(dataset.column_names)}")
        self._rows = dataset.select_columns([*wanted, *(set(optional) & set(dataset.column_names))]).with_format(None)

    def files(self) -> list[Path]:
        """Every file of the folder."""
        return sorted(path for path in self._path.rglob("*") if path.is_file())

    def __iter__(self) -> Iterator[Record]:
        """`folder row i` and the row."""
        for i, row in enumerate(self._rows):
            yield f"{self._path} row {i}", row


class RecordFields(Protocol):
    """What options say of the records that they read; each of `columns` is the key of a field as well."""

    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def mode(self) -> str: ...
    @property
    def label(self) -> str | None: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def features(self) -> str | None: ...
    @property
    def share(self) -> float: ...
    @property
    def tokenizer(self) -> TokenizerChoice: ...


@frozen(eq=False)
class RecordDocuments:
    """The texts of records, column after column, as documents."""

    records: Records
    options: RecordFields

    @property
    def name(self) -> str:
        """What messages call them."""
        return self.records.name

    @property
    def noun(self) -> str:
        """What a document is, in the plural."""
        return self.records.noun if len(self.options.columns) == 1 else "texts"

    def files(self) -> Sequence[Path]:
        """The files of all records."""
        return self.records.files()

    def identity(self) -> Any:
        """The fields that are read, and the share held out."""
        options = self.options
        columns = [getattr(options, key) for key in options.columns]
        return [columns, options.label, options.share, getattr(options, "part", None), "both parts have records"]

    def chosen(self, part: Part) -> Iterator[Record]:
        """The records of a part.

        Raises:
            DataError: none.
        """
        total = count = 0
        limit = HASHES if part == "whole" else self._hash_limit()
        for place, record in self.records:
            total += 1
            if is_in(part, heldout=self._hash(place, record) < limit):
                count += 1
                yield place, record
        if not count:
            raise no_documents(self.name, self.options.share, total, self.records.noun, part)

    def _hash(self, place: str, record: Mapping[str, Any]) -> int:
        keys = [getattr(self.options, key) for key in (*self.options.columns, "features", "label") if getattr(self.options, key)]
        return split_hash(json.dumps([_field(place, record, key) for key in keys], default=str))

    def _hash_limit(self) -> float:
        """The hash below which records are held out. Reading stops as soon as both parts are known to have a record."""
        share, limit = self.options.share, self.options.share * HASHES
        if share in (0, 1):
            return limit
        hashes, lowest, highest = set[int](), HASHES, -1
        for place, record in self.records:
            hashes.add(place_in_order := self._hash(place, record))
            lowest, highest = min(lowest, place_in_order), max(highest, place_in_order)
            if lowest < limit <= highest:
                return limit
        distinct = sorted(hashes)
        return distinct[min(max(1, round(share * len(distinct))), len(distinct) - 1)] if len(distinct) > 1 else 0

    def read(self, part: Part) -> Iterator[tuple[str, bytes]]:
        """Place and text of every column of every record of a part.

        Raises:
            DataError: no record, or a field that is missing or no text.
        """
        for place, record in self.chosen(part):
            for column in self.options.columns:
                yield place, _text(place, record, getattr(self.options, column))

    def labels(self, part: Part) -> npt.NDArray[np.int64]:
        """The class of every record of a part, int64 [records].

        Raises:
            DataError: a label that is not an id, or none of the classes.
        """
        return np.array([self._label(place, record) for place, record in self.chosen(part)], dtype=np.int64)

    def numbers(self, part: Part, width: int | None) -> npt.NDArray[np.float32]:
        """The features of every record of a part, float32 [records, width].

        Raises:
            DataError: lists that hold more than finite numbers, or are not of one length.
        """
        assert self.options.features is not None
        rows = []
        for place, record in self.chosen(part):
            row = _numbers(place, record, self.options.features)
            width = len(row) if width is None else width
            if len(row) != width:
                raise DataError(
                    f"{place}: '{self.options.features}' holds {len(row)} numbers, {width} are wanted: give lists of one length"
                )
            rows.append(row)
        return np.array(rows, dtype=np.float32)

    def _label(self, place: str, record: Mapping[str, Any]) -> int:
        assert self.options.label is not None
        value, classes = _field(place, record, self.options.label), self.options.classes
        if classes is None:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
                raise DataError(f"{place}: the label {value!r} is not an id: give whole numbers from 0, or name the classes")
            return value
        if value not in classes:
            raise DataError(f"{place}: the label {value!r} is none of the classes {', '.join(classes)}")
        return classes.index(value)


def open_texts(documents: RecordDocuments, part: Part) -> Corpus:
    """The texts of a part of the records; what follows a prompt ends with a separator of its own.

    Raises:
        DataError: records that cannot be read or tokenized.
        UserError: a library is missing, or the cache cannot be written.
    """
    options = documents.options
    one_text = options.mode in ("text", "labelled")
    ends = None if one_text else tuple(column != "prompt" for column in options.columns)
    return open_corpus(documents, options.tokenizer, part, ends=ends)


def _field(place: str, record: Mapping[str, Any], field: str) -> Any:
    if field not in record:
        raise DataError(f"{place}: there is no field '{field}'; this one has {', '.join(map(str, record)) or 'none'}")
    return record[field]


def _text(place: str, record: Mapping[str, Any], field: str) -> bytes:
    value = _field(place, record, field)
    if not isinstance(value, str):
        raise DataError(f"{place}: '{field}' holds {value!r:.40} where text is wanted: mend or remove it")
    try:
        return value.encode()
    except UnicodeEncodeError as fault:
        raise DataError(f"{place}: '{field}' holds half a character at {fault.start} (a lone surrogate): mend or remove it") from fault


def _numbers(place: str, record: Mapping[str, Any], field: str) -> list[float]:
    value = _field(place, record, field)
    entries = value if isinstance(value, list) else None
    if not entries or not all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in entries):
        raise DataError(f"{place}: '{field}' is not a list of numbers: mend or remove it")
    try:
        numbers = [float(entry) for entry in entries]
    except OverflowError:
        numbers = [float("inf")]
    if not all(isfinite(number) for number in numbers):
        raise DataError(f"{place}: '{field}' holds NaN or infinity: drop or fill it")
    return numbers
