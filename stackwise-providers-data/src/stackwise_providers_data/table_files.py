"""The loaders of tables in files: text and examples as of other records, or rows of numbers and categories."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stackwise import BuildContext
from stackwise_providers_data.cache import obtain
from stackwise_providers_data.examples import Examples, Fields
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.record_files import build_records
from stackwise_providers_data.splits import Part, part_of
from stackwise_providers_data.table_options import TableOptions
from stackwise_providers_data.tables import Columns, Found, TableDocuments, TableEncoding, encoding_in, learn_encoding
from stackwise_providers_data.text_rows import TextRows
from stackwise_providers_data.walk import EpochWalk

_IN_MEMORY_BYTES = 64 << 20
_RACY_S = 2.0
_FORMAT = 1


def build_table(options: TableOptions, context: BuildContext) -> TextRows | Examples:
    """The factory of `parquet` and of `csv`.

    Raises:
        DataError: no files or rows, a row that does not hold what is asked, a split without rows.
        UserError: a library that is missing, or a cache that cannot be written.
    """
    if not options.is_table:
        return build_records(options, context)
    documents, part = options.table(), part_of(context, options.heldout)
    encoding = learn_encoding(options, [documents]) if options.kept is None else encoding_in(options.kept)
    vocabulary = encoding.as_tokenizer().vocabulary
    columns, notes = _open(documents, part, encoding, vocabulary)
    constant = [f"'{name}' is the same in all rows of training, and read as 0" for name, scale in encoding.numbers.items() if not scale.std]
    for line in (*constant, *notes["lines"]):
        print(f"data: {documents.name}: {line}", file=sys.stderr)
    if options.target is not None:
        stds = np.array([encoding.numbers[name].std for name in options.target], dtype=np.float32)

    def assemble(rows: Indices, length: int) -> Fields:
        fields = {name: np.asarray(column[rows]) for name, column in columns.items()}
        return {**fields, "target_std": np.tile(stds, (len(rows), 1))} if options.target is not None else fields

    walk = EpochWalk(notes["rows"], seed=context.seed, shuffle=options.shuffle, repeat=options.repeat, unit="rows", name=documents.name)
    if part == "training":
        walk.apply_values({"exposed": options.exposed})
    fingerprint = {documents.records.noun: notes["rows"], "sha256": notes["sha256"], "vocabulary": vocabulary}
    return Examples(assemble, options.to_spec(), walk=walk, fingerprint=fingerprint, name=documents.name)


def _open(documents: TableDocuments, part: Part, encoding: TableEncoding, vocabulary: str) -> tuple[Columns, Mapping[str, Any]]:
    """The encoded rows of a part, those of large files as memory maps in the cache, and what is noted of them."""
    files, digest, found = documents.files(), _Digest(), Found()
    chunks = digest.through(documents.encoded(part, encoding, found))
    if sum(path.stat().st_size for path in files) <= _IN_MEMORY_BYTES:
        pieces = list(chunks)
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}, digest.notes(found)

    def write(folder: Path) -> Mapping[str, Any]:
        for piece in chunks:
            for name, column in piece.items():
                with (folder / f"{name}.bin").open("ab") as file:
                    column.tofile(file)
        return digest.notes(found)

    path, notes = obtain(_entry_name(documents, part, vocabulary), write)
    shapes = {name: (np.dtype(dtype), (notes["rows"], *sizes)) for name, (dtype, sizes) in notes["columns"].items()}
    maps = {name: np.memmap(path / f"{name}.bin", dtype=dtype, mode="r", shape=shape) for name, (dtype, shape) in shapes.items()}
    return dict(maps), notes


def _entry_name(documents: TableDocuments, part: Part, vocabulary: str) -> str:
    """What the encoded rows depend on. A file that was just written to is not remembered until it is old enough for its time to show any
    later change.
    """
    stats = [(str(path.resolve()), (status := path.stat()).st_size, status.st_mtime_ns) for path in documents.files()]
    youngest = max(changed for _, _, changed in stats)
    time.sleep(max(0.0, min(_RACY_S, youngest / 1e9 + _RACY_S - time.time())))
    options = documents.options
    rules = [options.missing, options.unknown, options.classes, getattr(options, "empty", None), getattr(options, "delimiter", None)]
    text = json.dumps([_FORMAT, documents.name, options.table_columns, options.share, stats, vocabulary, part, rules])
    return f"table-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


class _Digest:
    """Counts rows and digests columns as they go by."""

    def __init__(self) -> None:
        self._rows = 0
        self._digests: dict[str, Any] = {}
        self._columns: dict[str, tuple[str, list[int]]] = {}

    def through(self, chunks: Iterator[Columns]) -> Iterator[Columns]:
        for chunk in chunks:
            for name, column in chunk.items():
                column = np.ascontiguousarray(column)
                self._columns[name] = column.dtype.name, list(column.shape[1:])
                self._digests.setdefault(name, hashlib.sha256()).update(column.tobytes())
            self._rows += len(chunk["features"])
            yield chunk

    def notes(self, found: Found) -> dict[str, Any]:
        text = json.dumps([[name, self._columns[name], digest.hexdigest()] for name, digest in sorted(self._digests.items())])
        return {
            "rows": self._rows,
            "columns": self._columns,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "lines": list(found.lines()),
        }
