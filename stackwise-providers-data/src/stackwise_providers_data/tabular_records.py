"""Records from tables: rows of Parquet files, read row group after row group, and of CSV files and JSON lines, read line after line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from stackwise import DataError
from stackwise_providers_data.extras import require
from stackwise_providers_data.files import MAGIC_BYTES, refuse_compressed, unreadable
from stackwise_providers_data.records import JsonLines, Record
from stackwise_providers_data.remote_files import located_files

_BATCH_ROWS = 1024
_LARGEST_CELL = 1 << 30

CellType = Literal["number", "whole number", "category"]
_MAKE: Mapping[CellType, Callable[[str], Any]] = {"number": float, "whole number": int, "category": str}


@frozen(eq=False)
class ObjectRows:
    """A JSON object on each line, as a row with the columns that are read."""

    paths: tuple[str, ...]
    wanted: Sequence[str]
    name: str = "jsonl"
    noun: str = "lines"

    def files(self) -> list[Path]:
        """The files that the globs find."""
        return located_files(self.paths)

    def __iter__(self) -> Iterator[Record]:
        """`file:line` and the object on it.

        Raises:
            DataError: as `JsonLines`, or an object without a column that is read.
        """
        for place, record in JsonLines(self.paths):
            if missing := [column for column in self.wanted if column not in record]:
                raise DataError(f"{place}: this line has no '{missing[0]}', and it has {', '.join(record) or 'nothing'}: name every column")
            yield place, record


@frozen(eq=False)
class ParquetRows:
    """Every row, file after file in the order of their paths. At most one row group of one file is in memory."""

    paths: tuple[str, ...]
    wanted: Sequence[str]
    """Columns that are read."""
    optional: Sequence[str] = ()
    """Columns that are read where a file has them."""
    name: str = "parquet"
    noun: str = "rows"

    def files(self) -> list[Path]:
        """The files that the globs find."""
        return located_files(self.paths)

    def __iter__(self) -> Iterator[Record]:
        """`file row i` and the row.

        Raises:
            DataError: a file that is not Parquet, a row group that cannot be read, or a column that a file has not.
            UserError: pyarrow is not installed.
        """
        parquet = require("pyarrow.parquet", "parquet", self.name)
        faults = (require("pyarrow", "parquet", self.name).ArrowException, OSError, ValueError)
        for path in self.files():
            try:
                file = parquet.ParquetFile(path, page_checksum_verification=True)
            except faults as fault:
                raise DataError(f"{path}: this is not a whole Parquet file: {fault}: write it again") from fault
            with file:
                self._check_columns(path, names := file.schema_arrow.names)
                columns = [*self.wanted, *(set(self.optional) & set(names))]
                number = 0
                for group in range(file.num_row_groups):
                    batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)
                    while True:
                        try:
                            batch = next(batches, None)
                            rows = [] if batch is None else batch.to_pylist()
                        except faults as fault:
                            groups = f"row group {group} of {file.num_row_groups} (counted from 0)"
                            raise DataError(f"{path}: {groups} cannot be read: {fault}: write the file again") from fault
                        if batch is None:
                            break
                        for row in rows:
                            yield f"{path} row {number}", row
                            number += 1

    def _check_columns(self, path: Path, names: Sequence[str]) -> None:
        if missing := [column for column in self.wanted if column not in names]:
            raise _no_column(f"{path}", missing[0], names)


@frozen(eq=False)
class CsvRows:
    """Every row, file after file in the order of their paths; the first line of a file names its columns."""

    paths: tuple[str, ...]
    wanted: Sequence[str]
    """Columns that are read."""
    types: Mapping[str, CellType]
    """Column → what its cells hold; those of other columns are text, an empty one included."""
    empty: frozenset[str]
    """Cells that hold no value, in columns with a type."""
    delimiter: str
    name: str = "csv"
    noun: str = "rows"

    def files(self) -> list[Path]:
        """The files that the globs find."""
        return located_files(self.paths)

    def __iter__(self) -> Iterator[Record]:
        """`file:line` and the row's values by column.

        Raises:
            DataError: a file that cannot be read, without a header or a wanted column, a row of another number of cells than the
                header, or a cell that holds no value of its type.
        """
        for path in self.files():
            try:
                with path.open("rb") as file:
                    refuse_compressed(path, file.peek(MAGIC_BYTES)[:MAGIC_BYTES])
                    yield from self._rows(path, _lines(path, file))
            except OSError as fault:
                raise unreadable(path, fault) from fault

    def _rows(self, path: Path, lines: Iterator[str]) -> Iterator[Record]:
        csv.field_size_limit(_LARGEST_CELL)  # of the process; documents are longer than its 128 KiB
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        rows = _placed_rows(path, reader)
        header = next(rows, None)
        if header is None:
            raise DataError(f"{path}: the file is empty: its first line names the columns")
        if twice := sorted({name for name in header if header.count(name) > 1} & {*self.wanted}):
            raise DataError(f"{path}:1: two columns are called '{twice[0]}': rename one")
        if missing := [column for column in self.wanted if column not in header]:
            raise _no_column(f"{path}:1", missing[0], header)
        places = [(column, header.index(column)) for column in self.wanted]
        for row in rows:
            place = f"{path}:{reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{place}: {len(row)} cells in this row and {len(header)} columns in the header: mend or remove the row")
            yield place, {column: self._value(place, column, row[i]) for column, i in places}

    def _value(self, place: str, column: str, cell: str) -> Any:
        held = self.types.get(column)
        if held is None:
            return cell
        if cell in self.empty:
            return None
        try:
            if "_" in cell and held != "category":
                raise ValueError(cell)  # Python reads 1_000, and nobody else does
            return _MAKE[held](cell)
        except ValueError:
            raise DataError(f"{place}: '{column}' holds {cell!r:.40}, which is not a {held}: mend it, or name it under `empty`") from None


def _lines(path: Path, file: Any) -> Iterator[str]:
    for i, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if i == 1 else "utf-8")
        except UnicodeDecodeError as fault:
            raise DataError(f"{path}:{i}: this line is not UTF-8 at byte {fault.start}: save the file as UTF-8") from fault


def _placed_rows(path: Path, reader: Any) -> Iterator[list[str]]:
    """The rows of a reader, its mistakes with their place."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error as fault:
            raise DataError(f"{path}:{reader.line_num}: this row cannot be read: {fault}: mend its quotes and line ends") from fault
        if row is None:
            return
        yield row


def _no_column(place: str, column: str, names: Sequence[str]) -> DataError:
    return DataError(f"{place}: there is no column '{column}'; the file has {', '.join(names) or 'none'}")
